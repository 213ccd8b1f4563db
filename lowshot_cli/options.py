"""Command-line options, each typed and described once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Optional

from typer import Option

from lowshot_cli import choices as c
from lowshot_cli import completion

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
    Optional[c.DatasetName],
    _common("--dataset", help="Where images come from.", show_default="cifar100"),
]
DataDir = Annotated[
    Optional[Path],
    _common(
        "--data-dir",
        help="Folder that holds the dataset, or a .zip of one, such as photos/.",
        envvar="LOWSHOT_DATA",
        show_default="the user's data folder",
    ),
]
ImageSize = Annotated[
    Optional[int],
    _common("--image-size", help="Side of the images in pixels.", show_default="the dataset's"),
]
SkipBad = Annotated[
    Optional[bool],
    _common("--skip-bad", help="Leave out image files that cannot be read.", show_default=False),
]
ConfigFile = Annotated[
    Optional[Path],
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
    Optional[int],
    _common("--seed", help="Whole number that decides every draw.", show_default="0"),
]
DeviceName = Annotated[
    Optional[c.Device],
    _common("--device", help="Where to compute.", show_default="auto: the GPU if any"),
]
Workdir = Annotated[
    Optional[Path],
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
    Optional[Path],
    _checkpoint(
        "--checkpoint",
        help="Start from this file, such as runs/base.safetensors.",
        show_default="the work folder's",
        autocompletion=completion.checkpoints,
    ),
]
Out = Annotated[
    Optional[Path],
    _checkpoint(
        "--out",
        help="Write the checkpoint to this file, such as mug.safetensors.",
        show_default="in the work folder",
    ),
]
Overwrite = Annotated[bool, _checkpoint("--overwrite", help="Replace a file that is there.")]
MaxForgetting = Annotated[
    Optional[str],
    _bias(
        "--max-forgetting",
        help="Points of base accuracy that the novel bias may cost, such as 0.5; "
        "`none` means bias 0.",
        show_default="2; none for imprint and random",
    ),
]

Classes = Annotated[
    Optional[str],
    _base(
        "--classes",
        help="Base classes: how many, or names with commas between, such as apple,bus.",
        show_default="40; all of a folder",
    ),
]
SplitName = Annotated[
    Optional[c.Split],
    _base("--split", help="Order that --classes N counts in.", show_default="seeded"),
]
ClassOrderSeed = Annotated[
    Optional[int],
    _base(
        "--class-order-seed",
        help="Whole number that decides the seeded order.",
        show_default="1993",
    ),
]
Holdout = Annotated[
    Optional[int],
    _base(
        "--holdout",
        help="Training images of each base class that are kept back.",
        show_default="50",
    ),
]
Backbone = Annotated[
    Optional[str],
    _backbone(
        "--backbone",
        help="Network: resnet9, resnet18, torchvision:NAME or timm:NAME, "
        "such as torchvision:resnet50.",
        show_default="resnet9",
    ),
]
Width = Annotated[
    Optional[int],
    _backbone("--width", help="Channels of resnet9's first stage.", show_default="32"),
]
EmbeddingSize = Annotated[
    Optional[int],
    _backbone(
        "--embedding-size",
        help="Dimensions of the embedding.",
        show_default="64: or the model's",
    ),
]
Weights = Annotated[
    Optional[str],
    _backbone(
        "--weights",
        help="Start from the library's (DEFAULT) or a .safetensors, .pth or .pt file, such as "
        "model.pth; "
        "images for a torchvision or timm model are then normalised as ImageNet's.",
        show_default="random",
    ),
]
InputSize = Annotated[
    Optional[int],
    _backbone(
        "--input-size",
        help="Side in pixels that images are resized to.",
        show_default="none; 224 with weights",
    ),
]
FreezeBackbone = Annotated[
    Optional[bool],
    _backbone("--freeze-backbone", help="Train the rows and projection alone.", show_default=False),
]
BackboneRate = Annotated[
    Optional[float],
    _training("--backbone-lr", help="Peak learning rate of the backbone.", show_default="--lr"),
]
Epochs = Annotated[
    Optional[int],
    _training(
        "--epochs",
        help="Epochs, which are passes over fit images; 0 imprints base classes.",
        show_default="54",
    ),
]
BatchSize = Annotated[
    Optional[int], _training("--batch-size", help="Images in a step.", show_default="128")
]
LearningRate = Annotated[
    Optional[float], _training("--lr", help="Peak learning rate.", show_default="0.2")
]
PrecisionName = Annotated[
    Optional[c.Precision],
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
    Optional[list[str]],
    _new(
        "--class",
        help='Class to add, such as apple or "my mug"; repeat for several.',
        show_default="none",
        autocompletion=completion.new_classes,
    ),
]
ClassImages = Annotated[
    Optional[list[Path]],
    _new(
        "--images",
        help="Photos of the class: a file, folder or glob, such as photos/; repeat for several.",
        show_default="drawn from the dataset",
    ),
]
Shots = Annotated[
    Optional[int], _new("--shots", help="Support images of each class.", show_default="5")
]
Method = Annotated[
    Optional[c.ImprintMethod],
    _new("--method", help="How the new row is made.", show_default="whitened"),
]
Add = Annotated[
    bool, _new("--add", help="Add to imprinted.safetensors instead of starting from the base.")
]
Replace = Annotated[bool, _new("--replace", help="Imprint a known class anew.")]
FromRun = Annotated[
    Optional[Path],
    _rebuild(
        "--from-run",
        help="Rebuild a trial of this sweep folder, such as runs/sweep-20250131-120000.",
        show_default="none",
    ),
]
Trial = Annotated[
    Optional[int],
    _rebuild("--trial", help="Row of its results.csv, from 0.", show_default="none"),
]

ScopeName = Annotated[
    Optional[c.Scope],
    _training("--scope", help="Train the rows, or the whole network.", show_default="head"),
]
LossName = Annotated[
    Optional[c.Loss],
    _training("--loss", help="Whether classes are weighted alike.", show_default="adaptive"),
]
NovelWeight = Annotated[
    Optional[float],
    _training(
        "--novel-weight",
        help="Fixed weight of a novel sample, base being 1, such as 40.",
        show_default="from the batches",
    ),
]
FreezeBase = Annotated[
    Optional[c.FreezeBase],
    _training(
        "--freeze-base",
        help="When base rows stay as they are.",
        show_default="always for head, alternate for full",
    ),
]
Steps = Annotated[
    Optional[int],
    _training("--steps", help="Optimiser steps of --scope head.", show_default="100"),
]
FinetuneEpochs = Annotated[
    Optional[int], _training("--epochs", help="Epochs of --scope full.", show_default="2")
]
FinetuneRate = Annotated[
    Optional[float],
    _training("--lr", help="Learning rate of --scope full.", show_default="0.001"),
]

Version = Annotated[bool, Option("--version", help="Print the version and stop.", is_eager=True)]

__all__ = [name for name in dir() if name[0].isupper() and name not in ("Literal", "Path")]
