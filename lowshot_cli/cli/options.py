"""Options of single commands; `flags.py` has those of settings and those that are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from lowshot_cli.cli import completion
from lowshot_cli.cli.flags import EXPORT, UNKNOWN, argument, option, typed_path
from lowshot_cli.config.presentation import NEW_CLASSES, TRAINING
from lowshot_cli.config.values import Executor, ExportFormat

_REBUILD, _BASES = "A trial of a sweep", "Several base models"
_RUN, _WORKERS, _ADDRESS = "Run folder", "Where trials run", "Address"

ResumeTraining = Annotated[
    bool, option("--resume", "Continue an interrupted training.", panel=TRAINING)
]

ClassImages = Annotated[
    list[Path] | None,
    option(
        "--images",
        "Photos of the class: a file, folder or glob, such as photos/; repeat it for several. "
        "Without --class: a folder that holds a folder for each class, or a CSV file of "
        "`file,class`.",
        panel=NEW_CLASSES,
        metavar="FOLDER|FILE",
        default="drawn from the dataset",
        parser=typed_path,
    ),
]

Add = Annotated[
    bool,
    option(
        "--add",
        "Add to imprinted.safetensors instead of starting from the base.",
        panel=NEW_CLASSES,
    ),
]

Replace = Annotated[
    bool,
    option("--replace", "Replace a class that the model already knows.", panel=NEW_CLASSES),
]

FromRun = Annotated[
    Path | None,
    option(
        "--from-run",
        "Rebuild a trial of this run folder, such as runs/sweep-20250131-120000.",
        panel=_REBUILD,
        metavar="FOLDER",
        parser=typed_path,
    ),
]

Trial = Annotated[
    int | None,
    option("--trial", "Row of its results.csv, counted from 0.", panel=_REBUILD, metavar="N"),
]

Checkpoints = Annotated[
    list[Path] | None,
    argument(
        "CHECKPOINT",
        "Files to evaluate, such as runs/base.safetensors.",
        default="all in the work folder",
        autocompletion=completion.checkpoints,
        parser=typed_path,
    ),
]

LabelledImages = Annotated[
    list[str] | None,
    option(
        "--images",
        "Photos of a class, as NAME=PATH: a file, folder or glob, such as mug=photos/; repeat "
        "it for several.",
        metavar="NAME=PATH",
        default="the dataset's test images",
    ),
]

OpenSet = Annotated[
    bool,
    option("--open-set", "Also measure how well unknown classes are rejected.", panel=UNKNOWN),
]

Report = Annotated[
    Path | None,
    option(
        "--report",
        "Also write a page with plots to this file, such as report.html.",
        metavar="FILE",
        parser=typed_path,
    ),
]

ClassOrderSeeds = Annotated[
    str | None,
    option(
        "--class-order-seeds",
        "Train and sweep a base model for each of these seeds, such as 0,1,2.",
        panel=_BASES,
        metavar="N,N,...",
        default="one base model",
    ),
]

Backbones = Annotated[
    str | None,
    option(
        "--backbones",
        "Train and sweep a base model with each of these backbones, such as resnet9,resnet18.",
        panel=_BASES,
        metavar="NAMES",
        default="one base model",
    ),
]

SaveModels = Annotated[
    bool, option("--save-models", "Keep the proxies and bias of every trial.", panel=_RUN)
]

ResumeSweep = Annotated[
    Path | None,
    option(
        "--resume",
        "Continue the run in this folder, such as runs/sweep-20250131-120000.",
        panel=_RUN,
        metavar="FOLDER",
        parser=typed_path,
    ),
]

ExecutorName = Annotated[
    Executor,
    option(
        "--executor",
        "Run trials in this process, or on a Ray cluster.",
        panel=_WORKERS,
        metavar="local|ray",
        default="local",
    ),
]

RayAddress = Annotated[
    str | None,
    option(
        "--ray-address",
        "Cluster to join, such as 10.0.0.1:6379, or auto for the one on this machine.",
        panel=_WORKERS,
        metavar="HOST:PORT|auto",
        default="a new cluster on this machine",
    ),
]

GpusPerWorker = Annotated[
    float,
    option(
        "--gpus-per-worker",
        "GPUs for each Ray worker, such as 0.5.",
        panel=_WORKERS,
        metavar="X",
        default="0",
    ),
]

Threads = Annotated[
    int | None,
    option(
        "--threads",
        "Threads of each process that runs trials, such as 4. Only rows of finetune-full depend on "
        "their number.",
        panel=_WORKERS,
        metavar="N",
        default="1 on Ray, otherwise PyTorch's default",
    ),
]

Sources = Annotated[
    list[str] | None,
    argument(
        "IMAGES", 'Files, folders or globs, such as photos/ or "*.jpg"; - reads a list from stdin.'
    ),
]

Top = Annotated[
    int,
    option(
        "--top",
        "How many of the most probable classes to list.",
        metavar="N",
        default="3",
        min=1,
    ),
]

Unknown = Annotated[
    bool, option("--unknown", "Mark images that belong to no known class.", panel=UNKNOWN)
]

Confidence = Annotated[
    float | None,
    option(
        "--confidence",
        "Give each image a set of classes; this share of the sets, such as 0.9, holds the right "
        "one.",
        metavar="X",
    ),
]

SetConfidence = Annotated[
    float | None,
    option(
        "--confidence",
        "Also measure the sets of classes that predict gives at this confidence, such as 0.9.",
        metavar="X",
    ),
]

Csv = Annotated[bool, option("--csv", "Print results as CSV.")]

ExportFormatName = Annotated[
    ExportFormat,
    option(
        "--format",
        "ONNX, a PyTorch program, a state dict for torchvision or timm, or the first two.",
        panel=EXPORT,
        metavar="onnx|torch|state-dict|all",
        default="all",
    ),
]

Check = Annotated[
    bool,
    option(
        "--check",
        "Compare the export, new or existing, with the checkpoint.",
        panel=EXPORT,
    ),
]

CheckImages = Annotated[
    list[Path] | None,
    option(
        "--images",
        "Photos to compare on: a file, folder or glob, such as photos/; repeat it for several.",
        panel=EXPORT,
        metavar="FOLDER|FILE",
        default="test images, or noise",
        parser=typed_path,
    ),
]

ExportFolder = Annotated[
    Path | None,
    option(
        "--out",
        "Folder to write to.",
        panel=EXPORT,
        metavar="FOLDER",
        default="export in the work folder",
        parser=typed_path,
    ),
]

ExportOverwrite = Annotated[
    bool, option("--overwrite", "Replace an existing export.", panel=EXPORT)
]

OldName = Annotated[
    str,
    argument("NAME", 'The class, such as "my mug".', autocompletion=completion.known_classes),
]

Force = Annotated[bool, option("--force", "Allow a base class to be changed.")]

NewName = Annotated[str, argument("NEW_NAME", 'Its new name, such as "blue mug".')]

Clear = Annotated[bool, option("--clear", "Delete all cached embeddings and decoded images.")]

AtLeast = Annotated[
    float,
    option(
        "--at-least",
        "Similarity from which two images count as the same; equal images have 1.",
        metavar="X",
        default="0.85",
        min=0,
        max=1,
    ),
]

Port = Annotated[
    int,
    option(
        "--port",
        "Number of the port to listen at; 0 takes a free one.",
        panel=_ADDRESS,
        metavar="N",
        default="8000",
        min=0,
        max=65535,
    ),
]

Host = Annotated[
    str,
    option(
        "--host",
        "Address to listen at. Beyond this machine, such as with 0.0.0.0, requests need a token, "
        "which is printed.",
        panel=_ADDRESS,
        metavar="ADDRESS",
        default="127.0.0.1",
    ),
]

Open = Annotated[bool, option("--open", "Open the page in the browser.", panel=_ADDRESS)]
