"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowshot_cli.errors import LowshotError, UsageError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then put it in `path`'s place.

    Raises:
        OSError: the folder cannot be written to or is full; `path` is as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        OSError: as `write_atomically`.
    """

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), str(temporary), metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by name, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        SafetensorError: not a safetensors file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


def checked_tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int | None, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A tensor of a file, of the shape that is wanted; None stands for any size.

    Raises:
        KeyError: there is none of that name.
        ValueError: another shape or type, or a number that is not finite.
    """
    tensor = tensors[name]
    fits = len(shape) == tensor.ndim and all(
        want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite")
    return tensor


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
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe."):
            pass
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
