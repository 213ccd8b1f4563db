"""Pictures that are broken, huge, odd or not what they are called."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lowshot_cli.data.decoding import decode
from lowshot_cli.errors import DataError
from tests.conftest import RunCommand

SIDE = 16
GREY = np.full((3, SIDE, SIDE), 128, np.uint8)


def _saved(form: str, mode: str = "RGB", colour: Any = (128, 128, 128), **settings: Any) -> bytes:
    made = io.BytesIO()
    Image.new(mode, (40, 30), colour).save(made, form, **settings)
    return made.getvalue()


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _tiff(value: float) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((30, 40), value, np.float32)).save(made, "TIFF")
    return made.getvalue()


def _eps() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "EPS")
    return made.getvalue()


REFUSED = {
    "zero bytes.png": b"",
    "text.jpg": b"no image",
    "truncated.jpg": _saved("JPEG", quality=95)[:400],
    "truncated.png": _saved("PNG")[:60],
    "bomb.png": _png_that_claims(30_000, 30_000),
    "wide.png": _png_that_claims(2**31 - 1, 1),
    "no pixels.png": _png_that_claims(0, 0),
    "nan.tiff": _tiff(float("nan")),
    "infinite.tiff": _tiff(float("inf")),
    "postscript.png": _eps(),
    "pcx.png": _saved("PCX"),
    "icon.bmp": _saved("ICO"),
}
ACCEPTED = {
    "a png.jpg": _saved("PNG"),
    "a webp.gif": _saved("WEBP", lossless=True),
    "grey.png": _saved("PNG", "L", 128),
    "palette.gif": _saved("GIF"),
    "cmyk.tiff": _saved("TIFF", "CMYK", (127, 127, 127, 0)),
    "cmyk.jpg": _saved("JPEG", "CMYK", (127, 127, 127, 0), quality=95),
    "sixteen bits.png": _saved("PNG", "I;16", 128 * 257),
    "transparent.png": _saved("PNG", "LA", (128, 255)),
    "fractions.tiff": _tiff(128 / 255),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_an_error_of_that_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(REFUSED[name])
    with pytest.raises(DataError) as caught:
        decode(path, SIDE)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_picture_is_read_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(ACCEPTED[name])
    assert np.abs(decode(path, SIDE).astype(int) - GREY).max() <= 2


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), (128, 128, 128)).save(path)
    assert (decode(path, SIDE) == GREY).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_of_a_moving_picture_counts(tmp_path: Path, form: str) -> None:
    path = tmp_path / "moving"
    first, second = (Image.new("RGB", (40, 30), (level,) * 3) for level in (128, 0))
    first.save(
        path,
        form,
        save_all=True,
        append_images=[second],
        **({"lossless": True} if form == "WEBP" else {}),
    )
    assert np.abs(decode(path, SIDE).astype(int) - GREY).max() <= 2


def test_each_broken_file_is_named_and_the_others_are_used(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in {**REFUSED, **ACCEPTED}.items():
        (folder / name).write_bytes(content)
    result = lowshot("predict", folder, "--workdir", workdir)
    assert result.exit_code == 3
    assert len(result.stdout.splitlines()) == len(ACCEPTED)
    total = len(REFUSED) + len(ACCEPTED)
    assert f"{len(REFUSED)} of {total} images cannot be read" in result.stderr
    left_out = lowshot("predict", folder, "--workdir", workdir, "--skip-bad")
    assert left_out.exit_code == 0
    assert all(name in left_out.stderr for name in REFUSED)
