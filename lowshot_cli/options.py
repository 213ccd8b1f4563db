"""Command-line options, each typed and described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

from typer import Argument, Option

from lowshot_cli import choices as c

_COMMON = "Common options"

Dataset = Annotated[
    Optional[c.DatasetName],
    Option(
        "--dataset",
        help="Where images come from.",
        show_default="cifar100",
        rich_help_panel=_COMMON,
    ),
]
DataDir = Annotated[
    Optional[Path],
    Option(
        "--data-dir",
        help="Folder that holds the dataset.",
        envvar="LOWSHOT_DATA",
        show_default="the user's data folder",
        rich_help_panel=_COMMON,
    ),
]
ImageSize = Annotated[
    Optional[int],
    Option(
        "--image-size",
        help="Side of the images in pixels.",
        show_default="the dataset's",
        rich_help_panel=_COMMON,
    ),
]
SkipBad = Annotated[
    Optional[bool],
    Option(
        "--skip-bad",
        help="Leave out image files that cannot be read.",
        show_default=False,
        rich_help_panel=_COMMON,
    ),
]
ConfigFile = Annotated[
    Optional[Path],
    Option(
        "--config",
        help="YAML file; flags win over it.",
        show_default="none",
        rich_help_panel=_COMMON,
    ),
]
PrintConfig = Annotated[
    bool,
    Option(
        "--print-config",
        help="Print the resolved config as YAML and stop.",
        rich_help_panel=_COMMON,
    ),
]
Seed = Annotated[
    Optional[int],
    Option("--seed", help="Decides every draw.", show_default="0", rich_help_panel=_COMMON),
]
DeviceName = Annotated[
    Optional[c.Device],
    Option(
        "--device",
        help="Where the network runs.",
        show_default="auto: the GPU if any",
        rich_help_panel=_COMMON,
    ),
]
Workdir = Annotated[
    Optional[Path],
    Option(
        "--workdir",
        help="Folder of the checkpoints and runs.",
        envvar="LOWSHOT_WORKDIR",
        show_default="runs",
        rich_help_panel=_COMMON,
    ),
]
Json = Annotated[bool, Option("--json", help="Print results as JSON.", rich_help_panel=_COMMON)]
Quiet = Annotated[
    bool, Option("--quiet", help="No progress and no notes.", rich_help_panel=_COMMON)
]
CheckpointFile = Annotated[
    Optional[Path],
    Option("--checkpoint", help="Start from this file.", show_default="the work folder's"),
]
Out = Annotated[
    Optional[Path], Option("--out", help="Write the checkpoint here.", show_default="work folder")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace a file that is there.")]
MaxForgetting = Annotated[
    Optional[str],
    Option(
        "--max-forgetting",
        help="Points of base accuracy that the novel bias may cost; `none` means bias 0.",
        show_default="2; none for imprint and random",
    ),
]

Classes = Annotated[
    Optional[str],
    Option(
        "--classes",
        help="Base classes: how many, or names with commas between.",
        show_default="40; all of a folder",
    ),
]
SplitName = Annotated[
    Optional[c.Split],
    Option("--split", help="Order that --classes N counts in.", show_default="seeded"),
]
ClassOrderSeed = Annotated[
    Optional[int],
    Option("--class-order-seed", help="Seed of the seeded order.", show_default="1993"),
]
Holdout = Annotated[
    Optional[int],
    Option("--holdout", help="Training images per class kept back.", show_default="50"),
]
Backbone = Annotated[
    Optional[str],
    Option(
        "--backbone",
        help="Network: resnet9, resnet18, torchvision:NAME or timm:NAME.",
        show_default="resnet9",
    ),
]
Width = Annotated[
    Optional[int],
    Option("--width", help="Channels of resnet9's first stage.", show_default="32"),
]
EmbeddingSize = Annotated[
    Optional[int],
    Option("--embedding-size", help="Size of the embedding.", show_default="64: or the model's"),
]
Weights = Annotated[
    Optional[str],
    Option(
        "--weights",
        help="Start from the library's (DEFAULT) or a .safetensors, .pth or .pt file; "
        "images for a torchvision or timm model are then normalised as ImageNet's.",
        show_default="random",
    ),
]
InputSize = Annotated[
    Optional[int],
    Option("--input-size", help="Side to resize images to.", show_default="none; 224 with weights"),
]
FreezeBackbone = Annotated[
    Optional[bool],
    Option("--freeze-backbone", help="Train the rows and projection alone.", show_default=False),
]
BackboneRate = Annotated[
    Optional[float],
    Option("--backbone-lr", help="Peak learning rate of the backbone.", show_default="--lr"),
]
Epochs = Annotated[
    Optional[int],
    Option("--epochs", help="Passes over fit images; 0 imprints base classes.", show_default="54"),
]
BatchSize = Annotated[
    Optional[int], Option("--batch-size", help="Images per step.", show_default="128")
]
LearningRate = Annotated[
    Optional[float], Option("--lr", help="Peak learning rate.", show_default="0.2")
]
PrecisionName = Annotated[
    Optional[c.Precision],
    Option(
        "--precision",
        help="Arithmetic of training.",
        show_default="auto: bf16 where it is faster",
    ),
]
ResumeTraining = Annotated[
    bool, Option("--resume", help="Go on with the training that was stopped.")
]

ClassNames = Annotated[
    Optional[list[str]],
    Option("--class", help="Class to add; repeat for several.", show_default=False),
]
ClassImages = Annotated[
    Optional[list[Path]],
    Option(
        "--images",
        help="Photos of the class: a file, folder or glob; repeat for several.",
        show_default="drawn from the dataset",
    ),
]
Shots = Annotated[
    Optional[int], Option("--shots", help="Support images per class.", show_default="5")
]
Method = Annotated[
    Optional[c.ImprintMethod],
    Option("--method", help="How the new row is made.", show_default="whitened"),
]
Add = Annotated[
    bool, Option("--add", help="Add to imprinted.safetensors instead of starting from the base.")
]
Replace = Annotated[bool, Option("--replace", help="Imprint a known class anew.")]
FromRun = Annotated[
    Optional[Path],
    Option("--from-run", help="Rebuild a trial of this sweep folder.", show_default=False),
]
Trial = Annotated[
    Optional[int],
    Option("--trial", help="Row of its results.csv, from 0.", show_default=False),
]

ScopeName = Annotated[
    Optional[c.Scope],
    Option("--scope", help="Train the rows, or the whole network.", show_default="head"),
]
LossName = Annotated[
    Optional[c.Loss],
    Option("--loss", help="Whether classes are weighted alike.", show_default="adaptive"),
]
NovelWeight = Annotated[
    Optional[float],
    Option(
        "--novel-weight",
        help="Fixed weight of a novel sample, base being 1.",
        show_default="from the batches",
    ),
]
FreezeBase = Annotated[
    Optional[c.FreezeBase],
    Option(
        "--freeze-base",
        help="When base rows stay as they are.",
        show_default="always for head, alternate for full",
    ),
]
Steps = Annotated[
    Optional[int], Option("--steps", help="Steps of --scope head.", show_default="100")
]
FinetuneEpochs = Annotated[
    Optional[int], Option("--epochs", help="Epochs of --scope full.", show_default="2")
]
FinetuneRate = Annotated[
    Optional[float],
    Option("--lr", help="Learning rate of --scope full.", show_default="0.001"),
]

Checkpoints = Annotated[
    Optional[list[Path]],
    Argument(help="Checkpoints to evaluate.", show_default="all of the work folder"),
]

Trials = Annotated[
    Optional[int],
    Option("--trials", help="Trials per class and number of shots.", show_default="20"),
]
ShotList = Annotated[
    Optional[str],
    Option("--shots", help="Numbers of support images.", show_default="1,5,10,20"),
]
Novel = Annotated[
    Optional[str],
    Option("--novel", help="`all`, a number to sample, or names.", show_default="all"),
]
Methods = Annotated[
    Optional[str],
    Option(
        "--method",
        help="Methods, with commas between.",
        show_default="imprint,random,whitened,finetune-head",
    ),
]
Ways = Annotated[
    Optional[int],
    Option("--ways", help="Novel classes added together.", show_default="1"),
]
SaveModels = Annotated[bool, Option("--save-models", help="Keep every trial's rows and bias.")]
ResumeSweep = Annotated[
    Optional[Path],
    Option("--resume", help="Go on with this run folder.", show_default=False),
]
FalseAlarm = Annotated[
    float,
    Option(
        "--false-alarm",
        help="Percent of hold-out images that may be taken for unknown ones.",
        min=0,
        max=100,
    ),
]
LabelledImages = Annotated[
    Optional[list[str]],
    Option(
        "--images",
        help="Photos of a class, as NAME=PATH: a file, folder or glob; repeat for several.",
        show_default="the dataset's test images",
    ),
]
OpenSet = Annotated[
    bool, Option("--open-set", help="Also measure how classes never seen are rejected.")
]
Report = Annotated[
    Optional[Path],
    Option("--report", help="Also write a page with plots to this file.", show_default=False),
]
DropDuplicates = Annotated[
    Optional[bool],
    Option(
        "--drop-duplicates",
        help="Leave out test images that resemble a training image.",
        show_default=False,
    ),
]
Version = Annotated[bool, Option("--version", help="Print the version and stop.", is_eager=True)]

__all__ = [name for name in dir() if name[0].isupper() and name not in ("Literal", "Path")]
