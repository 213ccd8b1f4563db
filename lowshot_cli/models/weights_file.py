"""Reads weights files by their content, and says what a file is that holds no weights.

Nothing in a file is ever run: pickles are read with PyTorch's `weights_only`, which rebuilds
tensors and plain containers. Any other object in them becomes a placeholder.
"""

from __future__ import annotations

import json
import re
import shlex
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lowshot_cli.errors import CheckpointError, one_line
from lowshot_cli.storage.header import header_size, read_header
from lowshot_cli.storage.tensors import read_tensors

# Separates the keys of nested mappings; the names in a state dict have dots.
SEPARATOR = "/"
_HEAD = 1024  # bytes of a file that tell what it is
_SAVE = "save the model's state_dict() there with safetensors or torch.save"
_AGAIN = "download it again"
_FILE_ITSELF = "download the file itself, not the page that shows it"
_JOIN = "load the model with its library, and save its state_dict() in one file"
_PULL = "fetch the file with `git lfs pull`"
_UNPACK = "unpack it and name the file of weights in it"
_WEIGHTS = "name a file of weights that safetensors or torch.save wrote"
_FOR_PYTORCH = "name a file of PyTorch weights; this is a format of another library"
_TEXT = rb"(?:\xef\xbb\xbf)?\s*"
# What a file is by its first bytes, if it is no archive and no pickle, and what to do about it.
_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what, advice)
    for pattern, what, advice in (
        (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", _PULL),
        (_TEXT + rb"<(?:!|html|head|body|\?xml)", "a web page or a server's answer", _FILE_ITSELF),
        (_TEXT + rb'\{.*"weight_map"', "an index of weights in several files", _JOIN),
        (_TEXT + rb'[{[][\s"\w{}[\]-]', "JSON", _WEIGHTS),
        # A protobuf of ONNX begins with its version, then names the program that wrote it.
        (rb"\x08[\x01-\x1f][\x12\x1a\x22\x32\x3a\x42]", "an ONNX model", _FOR_PYTORCH),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _FOR_PYTORCH),
        (rb".{4}TFL3", "a TFLite model", _FOR_PYTORCH),
        (rb"GGUF", "a GGUF file", _FOR_PYTORCH),
        (rb"\x93NUMPY", "a NumPy array", _WEIGHTS),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", _UNPACK),
        (rb"7z\xbc\xaf|Rar!|.{257}ustar", "an archive", _UNPACK),
        (rb"\x80[\x02-\x05]", "a pickle that torch.save did not write", _SAVE),
        (rb"\0+\Z", "a file of zeros, as after a download that stopped", _AGAIN),
        (rb"[^\0-\x08\x0e-\x1f]+\Z", "a text file", _WEIGHTS),
        (rb"", "neither safetensors nor a file of torch.save", _WEIGHTS),
    )
)
# A number near the beginning of what `torch.save` wrote before it wrote zip archives.
_OLDER = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_GLOBAL = re.compile(r"GLOBAL (\S+)")
# Keys that a message shows, and levels of nesting that are looked into.
_SHOWN, _DEEPEST = 5, 20
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


class _Placeholder:
    """Stands for an object that is not rebuilt; it keeps the object's attributes alone."""

    def __init__(self, *_: object) -> None:
        pass

    def __new__(cls, *_: object) -> _Placeholder:
        """As in `object`, for any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep the attributes of the object."""
        self.__dict__.update(state if isinstance(state, dict) else {})


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, whatever it is called.

    Args:
        path: a safetensors file, or one of `torch.save`.

    Returns:
        The tensors by name. Names in nested mappings begin with their keys: a tensor `fc.bias` in
        the mapping `model` is `model/fc.bias`.

    Raises:
        CheckpointError: the file is absent, damaged, or holds no tensors; the message says what it
            is instead.
    """
    head = _beginning(path)
    # It begins with the length of the JSON that follows, which is below 4 GiB.
    if head[4:9] == b"\0\0\0\0{":
        return _of_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
    elif _OLDER not in head[:40]:
        what, advice = next((w, a) for pattern, w, a in _OTHERS if pattern.match(head))
        _refuse(path, f"it is {what}", advice)
    content = _unpickled(path)
    if (found := _pickled_model(content)) is not None:
        model, place = found
        loaded = f'torch.load({_quoted(path)}, "cpu", weights_only=False){place}'
        raise CheckpointError(
            f"{path} holds a whole pickled model, {type(model).__name__}, not a state dict",
            f"where you trust it, {_conversion(loaded)}",
        )
    tensors = dict(_tensors(content, "", set()))
    if not tensors:
        raise CheckpointError(f"{path} holds {_told(content)}, not a state dict", _SAVE)
    return tensors


def _refuse(path: Path, what: str, advice: str) -> NoReturn:
    raise CheckpointError(f"cannot read the weights {path}: {what}", advice) from None


def _beginning(path: Path) -> bytes:
    try:
        if path.is_dir():
            inside = [each for each in sorted(path.iterdir()) if each.suffix in _SUFFIXES]
            example = f", such as {inside[0]}" if inside else ""
            _refuse(path, "it is a folder", f"name a file{example}")
        if path.exists() and not path.is_file():
            _refuse(path, "it is not a regular file", "name a file of weights")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}", "check the path in `weights`") from None
    except OSError as error:
        _refuse(path, one_line(error), "check the path and your permissions there")
    if not head:
        _refuse(path, "it is empty", _AGAIN)
    return head


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        size, start = path.stat().st_size, 8 + header_size(path)
        header = read_header(path) if start < size else {}
        ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
        whole = start + max(ends, default=0)
        if size < whole:
            raise ValueError(f"it is cut short: {size:,} of {whole:,} bytes are there")
        tensors, metadata = read_tensors(path)
    except Exception as error:  # a damaged file can make a reader fail in any way
        _refuse(path, one_line(error), _AGAIN)
    if "lowshot" in metadata:  # of this package's own checkpoints the network alone counts
        tensors = {n: tensor for n, tensor in tensors.items() if n.startswith("backbone.")}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors", _SAVE)
    return tensors


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that `torch.save` did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        _refuse(path, "it is cut short or damaged", _AGAIN)
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last or any("/code/" in name for name in names):
        how = f'torch.jit.load({_quoted(path)}, "cpu")'
        _refuse(path, "it is a TorchScript program", _conversion(how))
    if "data.pkl" in last:
        return
    if "model.weights.h5" in last:
        _refuse(path, "it is a Keras model", _FOR_PYTORCH)
    if any(name.endswith(".npy") for name in names):
        _refuse(path, "it is an archive of NumPy arrays", _WEIGHTS)
    if any("archive_format" in name for name in last):
        _refuse(path, "it is a program of torch.export", _WEIGHTS)
    _refuse(path, "it is a zip archive that torch.save did not write", _UNPACK)


def _conversion(load: str) -> str:
    """The advice to write a state dict by hand."""
    code = f'import torch; torch.save({load}.state_dict(), "weights.pth")'
    return f"make a state dict with python -c {shlex.quote(code)}"


def _quoted(text: object) -> str:
    """Text as code, in double quotes, as a shell puts single ones around it."""
    return json.dumps(str(text), ensure_ascii=False)


def _unpickled(path: Path) -> object:
    """What a pickle of `torch.save` holds, with placeholders for objects that need code."""
    unknown: list[str] = []
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters becomes the error below
            if zipfile.is_zipfile(path):
                unknown = sorted(get_unsafe_globals_in_checkpoint(path))
            stubs: list[Any] = [(type(name, (_Placeholder,), {}), name) for name in unknown]
            # By its path it would be read as its suffix says.
            with path.open("rb") as file, safe_globals(stubs):
                content: object = torch.load(file, map_location="cpu", weights_only=True)
                return content
    except Exception as error:  # a damaged file can make a reader fail in any way
        text = one_line(error)
        named = _GLOBAL.search(str(error))
        if isinstance(error, UnpicklingError) and (named or unknown):
            held = named.group(1) if named else unknown[0]
            what = f"it holds more than tensors, such as {held}, which could run any program"
            _refuse(path, what, "where you trust it, save the model's state_dict() alone")
        if isinstance(error, UnpicklingError | EOFError | RuntimeError):
            _refuse(path, "it is cut short or damaged", _AGAIN)
        _refuse(path, text, _SAVE)


def _tensors(content: object, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, with its keys."""
    # A pickle can hold itself, or be nested without end.
    if id(content) in seen or path.count(SEPARATOR) > _DEEPEST:
        return
    seen.add(id(content))
    for key, value in _items(content):
        if isinstance(value, Tensor):
            yield f"{path}{key}", value
        else:
            yield from _tensors(value, f"{path}{key}{SEPARATOR}", seen)


def _items(content: object) -> list[tuple[object, object]]:
    if isinstance(content, Mapping):
        return list(content.items())
    return list(enumerate(content)) if isinstance(content, list | tuple) else []


def _pickled_model(content: object) -> tuple[_Placeholder, str] | None:
    """A pickled model that stands in place of a state dict, and its index in the content."""
    items = _items(content)
    if any("state_dict" in str(key) for key, _ in items):
        return None
    found = ((content, ""), *((value, f"[{_quoted(key)}]") for key, value in items))
    return next(
        ((v, at) for v, at in found if isinstance(v, _Placeholder) and hasattr(v, "_modules")), None
    )


def _told(content: object) -> str:
    """What is in a file without tensors, in words."""
    if isinstance(content, Mapping):
        keys = ", ".join(str(key) for key in list(content)[:_SHOWN])
        return f"no tensors under its keys {keys}" if keys else "an empty mapping"
    return f"a {type(content).__name__}"
