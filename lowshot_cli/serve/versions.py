"""The files that a model was before it was changed, so that changes can be undone.

Every state of the served model is a file of the folder `versions`, numbered in order. The model's
own file is one of them, by a hard link where the file system has links. So a change is one rename,
and after a kill the file itself tells which version it is.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from lowshot_cli.storage.files import file_hash, write_atomically
from lowshot_cli.storage.locks import remove_abandoned

# The newest that are kept.
MOST = 20
_SUFFIX = ".safetensors"


class Versions:
    """The numbered files of a folder.

    Args:
        folder: made with the first version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.is_dir():
            remove_abandoned(folder)

    def paths(self) -> list[Path]:
        """The versions, oldest first."""
        found = self.folder.glob(f"*{_SUFFIX}")
        numbered = [path for path in found if path.stem.isdecimal() and path.stem.isascii()]
        return sorted(numbered, key=lambda path: int(path.stem))

    def of(self, file: Path) -> Path | None:
        """The version that a file is, or None."""
        paths = self.paths()[::-1]
        linked = (path for path in paths if path.samefile(file))
        return next(linked, None) or _copy_of(file, paths)

    def keep(self, file: Path) -> None:
        """Make a file the newest version, unless it is one already.

        Raises:
            OSError: the folder cannot be written to.
        """
        if self.of(file) is None:
            put(file, self.next())

    def next(self) -> Path:
        """Where the next version goes; the folder is made."""
        self.folder.mkdir(exist_ok=True)
        last = max((int(path.stem) for path in self.paths()), default=0)
        return self.folder / f"{last + 1:04}{_SUFFIX}"

    def trim(self, spared: Sequence[Path]) -> None:
        """Delete the oldest versions beyond the number that is kept, except some."""
        for path in self.paths()[:-MOST]:
            if path not in spared:
                path.unlink(missing_ok=True)


def put(file: Path, place: Path) -> None:
    """Put a file in another place too, at once whole, in the place of what was there.

    Raises:
        OSError: that folder cannot be written to; what was there is unchanged.
    """
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(file.resolve(), temporary)  # not a link to a symbolic link
        except OSError:  # a file system without links
            write_atomically(temporary, file.read_bytes())
        temporary.replace(place)
    finally:
        # Renaming a link to another link of the same file leaves both.
        temporary.unlink(missing_ok=True)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files are one, or hold the same bytes."""
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and file_hash(one) == file_hash(other)


def _copy_of(file: Path, paths: Sequence[Path]) -> Path | None:
    return next((path for path in paths if same_content(path, file)), None)
