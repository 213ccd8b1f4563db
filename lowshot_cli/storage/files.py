"""Files that are either whole or not there."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowshot_cli.errors import LowshotError, UsageError
from lowshot_cli.storage.locks import remove_abandoned, try_lock

# As much of a file's name stands in that of its temporary file, which may not be too long.
_NAME_PART = 100


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a temporary file in the same folder, then put it in `path`'s place.

    The temporary file is locked until then, so that what a killed process left behind is told
    apart, and cleared away by whoever writes to `path` next.

    Args:
        path: of the file.
        content: all of it.
        durable: wait until it has reached the disk, so that it outlives a loss of power.

    Raises:
        OSError: the folder cannot be written to or is full; `path` is as it was.
    """
    remove_abandoned(path.parent, glob.escape(path.name[:_NAME_PART]))
    descriptor, temporary = _locked_temporary(path)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if durable:
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    while True:
        prefix = f".{path.name[:_NAME_PART]}."
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
        # Between its making and its locking it may have been taken for abandoned.
        if try_lock(descriptor) and os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises:
        OSError: as `write_atomically`.
    """
    write_atomically(path, text.encode("utf-8"))


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Map a new `.npy` file of zeros for writing, its space taken at once.

    Raises:
        OSError: there is not enough of it. Found out later, it would end the process by a signal.
    """
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
    """Make `folder` if need be and prove that files can be made in it, before hours are spent.

    Raises:
        LowshotError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".probe.", suffix=".tmp", dir=folder)
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise LowshotError(
            f"cannot write to the folder {folder}: {error.strerror}", "name another with --workdir"
        ) from None


def ensure_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that cost time to make.

    Raises:
        UsageError: `path` exists and `overwrite` is not set, or it is a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, a file is to be written there", "name a file")
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path} exists", "add --overwrite to replace it, or name another --workdir"
        )
