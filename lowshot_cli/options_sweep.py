"""Options of `sweep` alone: which trials, of which base models, and where they run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from lowshot_cli import choices as c
from lowshot_cli import completion

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
