"""Options of the commands that measure or use a model, or change its classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from lowshot_cli import choices as c
from lowshot_cli import completion

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
