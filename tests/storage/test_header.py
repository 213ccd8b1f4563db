"""A header is read by itself, and no longer than it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lowshot_cli.storage.header import SHORT_HEADER, header_size, read_header
from lowshot_cli.storage.tensors import write_tensors


def _write(path: Path, header: bytes, length: int | None = None) -> Path:
    said = len(header) if length is None else length
    path.write_bytes(said.to_bytes(8, "little") + header)
    return path


def test_the_header_says_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"weights": torch.zeros(2, 3)}, {"note": "mug"})
    header = read_header(path)
    assert header["__metadata__"] == {"note": "mug"}
    assert header["weights"]["shape"] == [2, 3]


def test_a_header_may_grow_with_its_file_alone(tmp_path: Path) -> None:
    long = json.dumps({"a": "x" * SHORT_HEADER}).encode()
    with pytest.raises(ValueError, match="its header claims"):
        header_size(_write(tmp_path / "short", long))
    path = _write(tmp_path / "long", long)
    with path.open("ab") as file:
        file.truncate(11 * len(long))
    assert len(read_header(path)["a"]) == SHORT_HEADER


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b"{}", 2**63),
        (b"[" * 9**5, None),
    ],
    ids=["empty", "cut off", "a list", "no text", "endless", "nested"],
)
def test_what_is_no_header_is_a_value_error(
    tmp_path: Path, header: bytes, length: int | None
) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_header(_write(tmp_path / "broken", header, length))
