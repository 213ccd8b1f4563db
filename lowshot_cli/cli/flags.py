"""Command-line options, each typed and described once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from lowshot_cli.cli import completion
from lowshot_cli.config import schema as c

COMMON = "Common options"


_common = partial(Option, rich_help_panel=COMMON)


_base = partial(Option, rich_help_panel="Base classes")


_backbone = partial(Option, rich_help_panel="Backbone")


_training = partial(Option, rich_help_panel="Training")


_new = partial(Option, rich_help_panel="New classes")


_rebuild = partial(Option, rich_help_panel="A trial of a sweep")


_bias = partial(Option, rich_help_panel="Operating point")


_checkpoint = partial(Option, rich_help_panel="Checkpoints")


Dataset = Annotated[
    c.DatasetName | None,
    _common("--dataset", help="Where images come from.", show_default="cifar100"),
]


DataDir = Annotated[
    Path | None,
    _common(
        "--data-dir",
        help="Folder that holds the dataset, or a .zip of one, such as photos/.",
        envvar="LOWSHOT_DATA",
        show_default="the user's data folder",
    ),
]


ImageSize = Annotated[
    int | None,
    _common("--image-size", help="Side of the images in pixels.", show_default="the dataset's"),
]


SkipBad = Annotated[
    bool | None,
    _common("--skip-bad", help="Leave out image files that cannot be read.", show_default=False),
]


ConfigFile = Annotated[
    Path | None,
    _common(
        "--config",
        help="YAML file, such as configs/quickstart.yaml; flags win over it.",
        show_default="none",
    ),
]


PrintConfig = Annotated[
    bool, _common("--print-config", help="Print the resolved config as YAML and stop.")
]


Seed = Annotated[
    int | None,
    _common("--seed", help="Whole number that decides every draw.", show_default="0"),
]


DeviceName = Annotated[
    c.Device | None,
    _common("--device", help="Where to compute.", show_default="auto: the GPU if any"),
]


Workdir = Annotated[
    Path | None,
    _common(
        "--workdir",
        help="Folder of the checkpoints and runs.",
        envvar="LOWSHOT_WORKDIR",
        show_default="runs",
    ),
]


Json = Annotated[bool, _common("--json", help="Print results as JSON.")]


Quiet = Annotated[bool, _common("--quiet", help="No progress and no notes.")]


CheckpointFile = Annotated[
    Path | None,
    _checkpoint(
        "--checkpoint",
        help="Start from this file, such as runs/base.safetensors.",
        show_default="the work folder's",
        autocompletion=completion.checkpoints,
    ),
]


Out = Annotated[
    Path | None,
    _checkpoint(
        "--out",
        help="Write the checkpoint to this file, such as mug.safetensors.",
        show_default="in the work folder",
    ),
]


Overwrite = Annotated[bool, _checkpoint("--overwrite", help="Replace a file that is there.")]


MaxForgetting = Annotated[
    str | None,
    _bias(
        "--max-forgetting",
        help="Points of base accuracy that the novel bias may cost, such as 0.5; "
        "`none` means bias 0.",
        show_default="2; none for imprint and random",
    ),
]


Classes = Annotated[
    str | None,
    _base(
        "--classes",
        help="Base classes: how many, or names with commas between, such as apple,bus.",
        show_default="40; all of a folder",
    ),
]


SplitName = Annotated[
    c.Split | None,
    _base("--split", help="Order that --classes N counts in.", show_default="seeded"),
]


ClassOrderSeed = Annotated[
    int | None,
    _base(
        "--class-order-seed",
        help="Whole number that decides the seeded order.",
        show_default="1993",
    ),
]


Holdout = Annotated[
    int | None,
    _base(
        "--holdout",
        help="Training images of each base class that are kept back.",
        show_default="50",
    ),
]


Backbone = Annotated[
    str | None,
    _backbone(
        "--backbone",
        help="Network: resnet9, resnet18, torchvision:NAME or timm:NAME, "
        "such as torchvision:resnet50.",
        show_default="resnet9",
    ),
]


Width = Annotated[
    int | None,
    _backbone("--width", help="Channels of resnet9's first stage.", show_default="32"),
]


EmbeddingSize = Annotated[
    int | None,
    _backbone(
        "--embedding-size",
        help="Dimensions of the embedding.",
        show_default="64: or the model's",
    ),
]


Weights = Annotated[
    str | None,
    _backbone(
        "--weights",
        help="Start from the library's (DEFAULT) or a .safetensors, .pth or .pt file, such as "
        "model.pth; "
        "images for a torchvision or timm model are then normalised as ImageNet's.",
        show_default="random",
    ),
]


InputSize = Annotated[
    int | None,
    _backbone(
        "--input-size",
        help="Side in pixels that images are resized to.",
        show_default="none; 224 with weights",
    ),
]


FreezeBackbone = Annotated[
    bool | None,
    _backbone("--freeze-backbone", help="Train the rows and projection alone.", show_default=False),
]


BackboneRate = Annotated[
    float | None,
    _training("--backbone-lr", help="Peak learning rate of the backbone.", show_default="--lr"),
]


Epochs = Annotated[
    int | None,
    _training(
        "--epochs",
        help="Epochs, which are passes over fit images; 0 imprints base classes.",
        show_default="54",
    ),
]


BatchSize = Annotated[
    int | None, _training("--batch-size", help="Images in a step.", show_default="128")
]


LearningRate = Annotated[
    float | None, _training("--lr", help="Peak learning rate.", show_default="0.2")
]


PrecisionName = Annotated[
    c.Precision | None,
    _training(
        "--precision",
        help="Arithmetic of training.",
        show_default="auto: bf16 where it is faster",
    ),
]


DryRun = Annotated[
    bool,
    _common("--dry-run", help="Print the plan with time and memory, write nothing and stop."),
]


ResumeTraining = Annotated[
    bool, _training("--resume", help="Go on with the training that was stopped.")
]


ClassNames = Annotated[
    list[str] | None,
    _new(
        "--class",
        help='Class to add, such as apple or "my mug"; repeat for several.',
        show_default="none",
        autocompletion=completion.new_classes,
    ),
]


ClassImages = Annotated[
    list[Path] | None,
    _new(
        "--images",
        help="Photos of the class: a file, folder or glob, such as photos/; repeat for several.",
        show_default="drawn from the dataset",
    ),
]


Shots = Annotated[
    int | None, _new("--shots", help="Support images of each class.", show_default="5")
]


Method = Annotated[
    str | None,
    _new("--method", help="How the new row is made.", show_default="whitened"),
]


Add = Annotated[
    bool, _new("--add", help="Add to imprinted.safetensors instead of starting from the base.")
]


Replace = Annotated[bool, _new("--replace", help="Imprint a known class anew.")]


FromRun = Annotated[
    Path | None,
    _rebuild(
        "--from-run",
        help="Rebuild a trial of this sweep folder, such as runs/sweep-20250131-120000.",
        show_default="none",
    ),
]


Trial = Annotated[
    int | None,
    _rebuild("--trial", help="Row of its results.csv, from 0.", show_default="none"),
]


ScopeName = Annotated[
    c.Scope | None,
    _training("--scope", help="Train the rows, or the whole network.", show_default="head"),
]


LossName = Annotated[
    c.Loss | None,
    _training("--loss", help="Whether classes are weighted alike.", show_default="adaptive"),
]


NovelWeight = Annotated[
    float | None,
    _training(
        "--novel-weight",
        help="Fixed weight of a novel sample, base being 1, such as 40.",
        show_default="from the batches",
    ),
]


FreezeBase = Annotated[
    c.FreezeBase | None,
    _training(
        "--freeze-base",
        help="When base rows stay as they are.",
        show_default="always for head, alternate for full",
    ),
]


Steps = Annotated[
    int | None,
    _training("--steps", help="Optimiser steps of --scope head.", show_default="100"),
]


FinetuneEpochs = Annotated[
    int | None, _training("--epochs", help="Epochs of --scope full.", show_default="2")
]


FinetuneRate = Annotated[
    float | None,
    _training("--lr", help="Learning rate of --scope full.", show_default="0.001"),
]


Version = Annotated[bool, Option("--version", help="Print the version and stop.", is_eager=True)]


__all__ = [name for name in dir() if name[0].isupper() and name not in ("Literal", "Path")]


_export = partial(Option, rich_help_panel="Export")


_unknown = partial(Option, rich_help_panel="Unknown classes")


Checkpoints = Annotated[
    list[Path] | None,
    Argument(
        metavar="CHECKPOINT",
        help="Files to evaluate, such as runs/base.safetensors.",
        show_default="all of the work folder",
        autocompletion=completion.checkpoints,
    ),
]


LabelledImages = Annotated[
    list[str] | None,
    Option(
        "--images",
        help="Photos of a class, as NAME=PATH: a file, folder or glob, such as mug=photos/; "
        "repeat for several.",
        show_default="the dataset's test images",
    ),
]


Report = Annotated[
    Path | None,
    Option("--report", help="Also write a page with plots to this file, such as report.html."),
]


OpenSet = Annotated[
    bool, _unknown("--open-set", help="Also measure how classes never seen are rejected.")
]


FalseAlarm = Annotated[
    float | None,
    _unknown(
        "--false-alarm",
        help="Percent of hold-out images that may be taken for unknown ones; asks for it as well.",
        show_default=str(c.FALSE_ALARM),
        min=0,
        max=100,
    ),
]


def false_alarm_of(asked: bool, given: float | None) -> float | None:
    """Percent of false alarms where unknown images are asked for, by either option."""
    return c.FALSE_ALARM if asked and given is None else given


ExportFolder = Annotated[
    Path | None,
    _export("--out", help="Folder to write to.", show_default="export in the work folder"),
]


ExportFormatName = Annotated[
    c.ExportFormat, _export("--format", help="ONNX, a PyTorch program, or both.")
]


ExportOverwrite = Annotated[bool, _export("--overwrite", help="Replace an export that is there.")]


CheckExport = Annotated[
    bool,
    _export("--check", help="Compare the export, made now or there already, with the checkpoint."),
]


CheckImages = Annotated[
    list[Path] | None,
    _export(
        "--images",
        help="Photos to check on: a file, folder or glob, such as photos/; repeat for several.",
        show_default="test images, or noise",
    ),
]


Sources = Annotated[
    list[str] | None,
    Argument(
        metavar="IMAGES",
        help='Files, folders or globs, such as photos/ or "*.jpg"; - reads a list.',
        show_default=False,
    ),
]


ModelFile = Annotated[
    Path | None,
    Option(
        "--checkpoint",
        help="Model to use, such as runs/imprinted.safetensors.",
        show_default="the work folder's furthest",
        rich_help_panel="Checkpoints",
        autocompletion=completion.checkpoints,
    ),
]


Top = Annotated[int, Option("--top", help="How many of the most probable classes to name.", min=1)]


Unknown = Annotated[
    bool,
    _unknown("--unknown", help="Mark images that are of no known class."),
]


Csv = Annotated[bool, Option("--csv", help="Print results as CSV.")]


OldName = Annotated[
    str,
    Argument(
        metavar="NAME",
        help='The class, such as "my mug".',
        show_default=False,
        autocompletion=completion.known_classes,
    ),
]


NewName = Annotated[
    str, Argument(metavar="NEW_NAME", help='Its new name, such as "blue mug".', show_default=False)
]


Force = Annotated[bool, Option("--force", help="Base classes too.")]


Clear = Annotated[bool, Option("--clear", help="Delete all cached embeddings and decoded images.")]


AtLeast = Annotated[
    float,
    Option(
        "--at-least",
        help="Similarity from which images count as the same, 1 being that of equal ones.",
        min=0,
        max=1,
    ),
]


__all__ = [name for name in dir() if name[0].isupper() and name not in ("Literal", "Path")]


_trials = partial(Option, rich_help_panel="Which trials")


_bases = partial(Option, rich_help_panel="Several base models")


_run = partial(Option, rich_help_panel="Run folder")


_workers = partial(Option, rich_help_panel="Where trials run")


Trials = Annotated[
    int | None,
    _trials("--trials", help="Trials of each class and number of shots.", show_default="20"),
]


ShotList = Annotated[
    str | None,
    _trials(
        "--shots",
        help="Numbers of support images, with commas between.",
        show_default="1,5,10,20",
    ),
]


Novel = Annotated[
    str | None,
    _trials(
        "--novel",
        help="Novel classes: `all`, a number to sample, or names, such as apple,bus.",
        show_default="all",
    ),
]


Methods = Annotated[
    str | None,
    _trials(
        "--method",
        help="Methods, with commas between.",
        show_default="imprint,random,whitened,finetune-head",
        autocompletion=completion.sweep_methods,
    ),
]


Ways = Annotated[
    int | None,
    _trials("--ways", help="Novel classes added together.", show_default="1"),
]


DropDuplicates = Annotated[
    bool | None,
    _trials(
        "--drop-duplicates",
        help="Leave out test images that resemble a training image.",
        show_default=False,
    ),
]


SaveModels = Annotated[bool, _run("--save-models", help="Keep every trial's rows and bias.")]


ResumeSweep = Annotated[
    Path | None,
    _run(
        "--resume",
        help="Go on with this folder, such as runs/sweep-20250131-120000.",
        show_default="none",
    ),
]


ClassOrderSeeds = Annotated[
    str | None,
    _bases(
        "--class-order-seeds",
        help="Train and sweep a base model for each of these, such as 0,1,2.",
        show_default="one base model",
    ),
]


Backbones = Annotated[
    str | None,
    _bases(
        "--backbones",
        help="Train and sweep a base model with each of these, such as resnet9,resnet18.",
        show_default="one base model",
    ),
]


Executor = Annotated[
    c.Executor,
    _workers("--executor", help="In this process, or on a Ray cluster."),
]


RayAddress = Annotated[
    str | None,
    _workers(
        "--ray-address",
        help="Cluster to join, such as 10.0.0.1:6379, or auto for the one on this machine.",
        show_default="one of its own",
    ),
]


GpusPerWorker = Annotated[
    float,
    _workers("--gpus-per-worker", help="GPUs for each worker of Ray, such as 0.5."),
]


Threads = Annotated[
    int | None,
    _workers(
        "--threads",
        help="PyTorch's threads in each process that runs trials, such as 4; the last digits of "
        "rows depend on it.",
        show_default="1 on Ray, else PyTorch's own number",
    ),
]
