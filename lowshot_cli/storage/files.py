"""Files that are either whole or not there."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowshot_cli.errors import LowshotError, UsageError, one_line
from lowshot_cli.storage.locks import remove_abandoned, try_lock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The log that commands keep in a work folder, by which one is recognised.
LOG = "log.jsonl"
# Characters of a file's name that go into that of its temporary file, as names have a limit.
_NAME_PART = 100


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a temporary file in the same folder, then put it in `path`'s place.

    The temporary file is locked until then. So one that a killed process left behind is recognised
    by its missing lock, and the next write to `path` deletes it.

    Args:
        path: the file to write.
        content: its whole content.
        durable: wait until it has reached the disk, so that it survives a power loss.

    Raises:
        OSError: the folder cannot be written to or is full; `path` is unchanged.
    """
    remove_abandoned(path.parent, glob.escape(path.name[:_NAME_PART]))
    descriptor, temporary = create_temporary(path)
    file = os.fdopen(descriptor, "wb")
    try:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(descriptor)
        if os.name == "nt":  # untested; an open file cannot be renamed or deleted there
            file.close()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        file.close()


def create_temporary(path: Path) -> tuple[int, Path]:
    """Create a locked temporary file beside `path`: its descriptor, and where it is."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = path.with_name(f".{path.name[:_NAME_PART]}.{secrets.token_hex(4)}.tmp")
        # `tempfile` makes files that only their owner can read; this one gets the usual mode.
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileExistsError:
            continue
        # Before it was locked, another process may have deleted it as abandoned.
        if try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises:
        OSError: as `write_atomically`.
    """
    write_atomically(path, text.encode("utf-8"))


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Map a new `.npy` file of zeros for writing, with its space reserved at once.

    Raises:
        OSError: there is not enough space. Without the reservation, writing would then end the
            process by a signal.
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure_writable(folder: Path) -> None:
    """Make `folder` if necessary and check that it can be written to, before hours of work.

    Raises:
        LowshotError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".probe.", suffix=".tmp", dir=folder)
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise LowshotError(
            f"cannot write to the folder {folder}: {one_line(error)}", "use another `workdir`"
        ) from None


def ensure_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file that cost time to make.

    Raises:
        UsageError: `path` exists and `overwrite` is not set, or it is a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file to write", "name a file")
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path} exists", "`overwrite=True` replaces it, or use another `out` or `workdir`"
        )
