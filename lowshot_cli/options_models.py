"""Options of the commands that use a model or change its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from lowshot_cli import choices as c

ExportFolder = Annotated[
    Path | None,
    Option("--out", help="Folder to write to.", show_default="export in the work folder"),
]
ExportFormatName = Annotated[
    c.ExportFormat, Option("--format", help="ONNX, a PyTorch program, or both.")
]
ExportOverwrite = Annotated[bool, Option("--overwrite", help="Replace an export that is there.")]
CheckExport = Annotated[
    bool,
    Option("--check", help="Compare the export, made now or there already, with the checkpoint."),
]
CheckImages = Annotated[
    list[Path] | None,
    Option(
        "--images",
        help="Photos to check on: a file, folder or glob; repeat for several.",
        show_default="test images, or noise",
    ),
]
Sources = Annotated[
    list[str] | None,
    Argument(help="Images: files, folders, globs; - reads a list.", show_default=False),
]
ModelFile = Annotated[
    Path | None,
    Option("--checkpoint", help="Model to use.", show_default="the work folder's furthest"),
]
Top = Annotated[int, Option("--top", help="Most probable classes to name.", min=1)]
Unknown = Annotated[bool, Option("--unknown", help="Mark images that are of no known class.")]
Csv = Annotated[bool, Option("--csv", help="Print results as CSV.")]
OldName = Annotated[str, Argument(help="The class.", show_default=False)]
NewName = Annotated[str, Argument(help="Its new name.", show_default=False)]
Force = Annotated[bool, Option("--force", help="Base classes too.")]
Clear = Annotated[bool, Option("--clear", help="Delete all cached embeddings.")]
AtLeast = Annotated[
    float,
    Option("--at-least", help="Similarity from which images count as the same.", min=0, max=1),
]

__all__ = [name for name in dir() if name[0].isupper() and name not in ("Literal", "Path")]
