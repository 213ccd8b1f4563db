"""Safetensors files with a checksum and a bounded header."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from lowshot_cli.storage.files import write_atomically
from lowshot_cli.storage.header import header_size

CHECKSUM = "lowshot.checksum"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], *, durable: bool = True
) -> None:
    """Write a safetensors file as `write_atomically` does, with a checksum over all of it.

    The checksum is a tensor of its own, as safetensors keeps metadata in no fixed order.

    Raises:
        OSError: as `write_atomically`.
    """
    checksum = torch.tensor(list(content_digest(tensors, metadata)), dtype=torch.uint8)
    write_atomically(path, serialise({**tensors, CHECKSUM: checksum}, metadata), durable=durable)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by name, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        SafetensorError: not a safetensors file, or a damaged one.
        ValueError: its checksum, if it has one, is not that of its content, or its header is too
            long.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    header_size(path)  # raises if it is too long
    with _interrupts_held(), safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    checksum = tensors.pop(CHECKSUM, None)
    if checksum is not None:
        given = bytes(checksum.to(torch.uint8).flatten().tolist())
        if given != content_digest(tensors, metadata):
            raise ValueError("it is damaged: its checksum does not match")
    return tensors, metadata


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while the library reads, which would report it as a damaged file."""
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


def checked_tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int | None, ...],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A tensor of a file, checked to have the given shape and type; None stands for any size.

    Raises:
        KeyError: there is no tensor of that name.
        ValueError: its shape or type differs, or a number is not finite.
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
