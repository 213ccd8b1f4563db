"""Files of weights as people have them, by any name, and what is said of files that hold none."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import subprocess
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowshot_cli.errors import CheckpointError
from lowshot_cli.models.weights_file import read_weights_file

TENSORS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


def _saved(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def _safetensors(folder: Path) -> bytes:
    save_file(TENSORS, folder / "made")
    return (folder / "made").read_bytes()


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["w.safetensors", "w.pth", "w.pt", "w.PTH", "w.ckpt", "w.bin", "w.pth.tar", "weights"]
)
@pytest.mark.parametrize("form", ["safetensors", "zip", "older"])
def test_a_file_is_read_by_its_content_not_its_name(tmp_path: Path, name: str, form: str) -> None:
    contents: dict[str, Callable[[], bytes]] = {
        "safetensors": lambda: _safetensors(tmp_path),
        "zip": lambda: _saved(TENSORS),
        "older": lambda: _saved(TENSORS, _use_new_zipfile_serialization=False),
    }
    (tmp_path / name).write_bytes(contents[form]())
    read = read_weights_file(tmp_path / name)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[key]) for key, tensor in read.items())


def test_names_in_nested_containers_begin_with_their_keys(tmp_path: Path) -> None:
    looped: dict[str, Any] = {"net": OrderedDict(TENSORS), "epoch": 3, "sizes": [torch.ones(1)]}
    looped["itself"] = looped
    torch.save({"state": looped}, tmp_path / "w.ckpt")
    assert set(read_weights_file(tmp_path / "w.ckpt")) == {
        "state/net/conv.weight",
        "state/net/conv.bias",
        "state/sizes/0",
    }


def test_objects_beside_the_weights_are_neither_rebuilt_nor_in_the_way(tmp_path: Path) -> None:
    beside = {"args": Namespace(lr=0.1), "more": SimpleNamespace(path=tmp_path, kind=OSError("x"))}
    torch.save({"state_dict": TENSORS, **beside}, tmp_path / "w.ckpt")
    assert set(read_weights_file(tmp_path / "w.ckpt")) == {f"state_dict/{n}" for n in TENSORS}


class _Program:
    def __init__(self, marker: Path, call: Any) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.call, (f"touch '{self.marker}'",))


@pytest.mark.parametrize("call", [os.system, subprocess.getoutput, eval, exec])
@pytest.mark.parametrize("newer", [True, False])
def test_no_program_in_a_file_is_run(tmp_path: Path, call: Any, newer: bool) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": TENSORS, "x": _Program(marker, call)}
    written = _saved(content, _use_new_zipfile_serialization=newer)
    (tmp_path / "evil.pth").write_bytes(written)
    said: Any = suppress(CheckpointError)
    if not newer or call is os.system:
        said = pytest.raises(CheckpointError, match="could run any program")
    with said:
        read_weights_file(tmp_path / "evil.pth")
    assert not marker.exists()


HEADER = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
OTHERS: dict[str, tuple[bytes, str]] = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "page": (b"<!DOCTYPE html>\n<html lang='en'>", "web page"),
    "denied": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "server"),
    "marked page": (b"\xef\xbb\xbf\r\n<HTML>", "web page"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}', "several files"),
    "json": (b'{"architectures": ["ResNet"]}', "JSON"),
    "text": (b"Entry not found", "text file"),
    "empty": (b"", "empty"),
    "zeros": (bytes(3000), "zeros"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.6.0", "ONNX"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0\0\0", "HDF5"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00", "NumPy array"),
    "gzip": (b"\x1f\x8b\x08\x00\0\0\0\0", "compressed"),
    "tar": (bytes([65]) * 100 + bytes(157) + b"ustar\x0000", "archive"),
    "noise": (b"\xfe\x01\x02\x03\x04\x05\x06\x07\x08", "neither safetensors nor"),
    "keras": (_zip("metadata.json", "config.json", "model.weights.h5"), "Keras"),
    "npz": (_zip("a.npy"), "NumPy arrays"),
    "zip": (_zip("model/weights.pth"), "zip archive"),
    "script": (_zip("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "TorchScript"),
    "pickle": (pickle.dumps({"a": 1}), "pickle that torch.save did not write"),
    "cut zip": (_saved(TENSORS)[:-40], "cut short"),
    "cut older": (_saved(TENSORS, _use_new_zipfile_serialization=False)[:-4], "cut short"),
    "cut data": (len(HEADER).to_bytes(8, "little") + HEADER + bytes(8), "71 of 99 bytes"),
    "cut header": (len(HEADER).to_bytes(8, "little") + HEADER[:9], "cut short"),
    "one tensor": (_saved(torch.zeros(3)), "holds a Tensor"),
    "no tensors": (_saved({"epoch": 1, "lr": 0.1}), "no tensors under its keys epoch, lr"),
    "model": (_saved(nn.Linear(2, 2)), "a whole pickled model, torch.nn.modules.linear.Linear"),
    "model by key": (_saved({"epoch": 1, "model": nn.Linear(2, 2)}), "a whole pickled model"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_holds_no_weights_is_said_to_be_what_it_is(tmp_path: Path, kind: str) -> None:
    content, said = OTHERS[kind]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_weights_file(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_folders_and_what_is_no_regular_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(
        CheckpointError, match=r"it is a folder .*name a file, such as .*/model\.sa"
    ):
        read_weights_file(tmp_path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_weights_file(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="no weights at"):
        read_weights_file(tmp_path / "absent")


def test_what_is_advised_for_a_pickled_model_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": nn.Linear(2, 2)}, "it's a model.pt")
    with pytest.raises(CheckpointError) as caught:
        read_weights_file(Path("it's a model.pt"))
    code = shlex.split((caught.value.hint or "").partition("python ")[2])
    assert code[0] == "-c"
    exec(code[1], {})
    read: dict[str, Tensor] = read_weights_file(Path("weights.pth"))
    assert set(read) == {"weight", "bias"}
