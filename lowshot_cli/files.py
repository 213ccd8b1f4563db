"""Files that are either whole or not there."""

from __future__ import annotations

import glob
import hashlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from lowshot_cli.errors import LowshotError, UsageError
from lowshot_cli.locks import remove_abandoned, try_lock
from lowshot_cli.meta import SHORT_HEADER

CHECKSUM = "lowshot.checksum"
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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], durable: bool = True
) -> None:
    """Write a safetensors file as `write_atomically` does, with a checksum over all of it.

    The checksum is a tensor of its own, as safetensors keeps metadata in no fixed order.

    Raises:
        OSError: as `write_atomically`.
    """
    checksum = torch.tensor(list(content_digest(tensors, metadata)), dtype=torch.uint8)
    write_atomically(path, serialise({**tensors, CHECKSUM: checksum}, metadata), durable)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by name, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        SafetensorError: not a safetensors file, or a damaged one.
        ValueError: its checksum, if it has one, is not that of its content, or it has a header out
            of proportion.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    _check_header(path)
    with _interrupts_held(), safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    checksum = tensors.pop(CHECKSUM, None)
    if checksum is not None:
        given = bytes(checksum.to(torch.uint8).flatten().tolist())
        if given != content_digest(tensors, metadata):
            raise ValueError("it is damaged: its checksum is another")
    return tensors, metadata


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait for the library's reader, which would take it for damage of the file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *caught: came.append(caught))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])


def _check_header(path: Path) -> None:
    """Parsing a header takes many times its size in memory, so it must be short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > max(SHORT_HEADER, size // 10):
        raise ValueError(f"its header is said to be {length:,} of its {size:,} bytes")


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The checksum of a safetensors file, 16 bytes over its tensors and metadata."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(sorted(metadata.items())).encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        # As bytes, since NumPy has no bf16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


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
