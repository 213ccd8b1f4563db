"""From files, arrays and tensors to pixels: the expected ones are computed by hand."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from lowshot_cli.data import decoding
from lowshot_cli.data.decoding import decode
from lowshot_cli.data.in_memory import decode_any
from lowshot_cli.errors import DataError

Numbers = np.ndarray[Any, Any]
# A picture of 2x2: 0, 1000, 30000 and 65535 of 65535 are 0, 3.9, 116.7 and 255 of 255.
DEEP, DEEP_AS_BYTES = [[0, 1000], [30000, 65535]], [0, 4, 117, 255]


def pixels(content: bytes) -> list[int]:
    """The grey of a 2x2 picture, row by row."""
    found = decode(io.BytesIO(content), 2)
    assert (found == found[0]).all(), "not grey"
    return [int(value) for value in found[0].ravel()]


def png(depth: int, colour: int, data: bytes, key: bytes = b"") -> bytes:
    """A 2x2 PNG; `data` holds the two rows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, depth, colour, 0, 0, 0))
    half = len(data) // 2
    rows = chunk(b"IDAT", zlib.compress(b"\0" + data[:half] + b"\0" + data[half:]))
    transparent = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + header + transparent + rows + chunk(b"IEND", b"")


def tiff(
    data: bytes,
    bits: int,
    *,
    order: str = "<",
    deflated: bool = False,
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """A 2x2 TIFF of one strip, or of one for each sample in `tags`; all tags are SHORT."""
    data = zlib.compress(data) if deflated else data
    more = tags or {}
    planes = more.get(277, [1])[0] if 284 in more else 1
    start = 1000
    entries = {256: [2], 257: [2], 258: [bits] * more.get(277, [1])[0], 259: [8 if deflated else 1]}
    size = len(data) // planes
    entries |= {262: [1], 273: [start + n * size for n in range(planes)], 278: [2]}
    entries |= {279: [size] * planes} | more
    made, apart = struct.pack(order + "H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}H", *values)
        if len(content) > 4:
            apart, content = apart + content, struct.pack(order + "I", 500 + len(apart))
        made += struct.pack(order + "HHI", tag, 3, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return ((head + made).ljust(500, b"\0") + apart).ljust(start, b"\0") + data


def numbers(values: list[list[Any]], kind: str) -> bytes:
    return np.array(values).astype(kind).tobytes()


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "sample_format", "values", "expected"),
    [
        ("u2", 1, DEEP, DEEP_AS_BYTES),
        ("u2", 1, [[0, 1], [128, 256]], [0, 0, 0, 1]),
        ("i2", 2, [[0, 1000], [16384, 32767]], [0, 8, 128, 255]),
        ("i4", 2, [[0, 2**26], [2**30, 2**31 - 1]], [0, 8, 128, 255]),
        ("f4", 3, [[0, 0.25], [0.5, 1]], [0, 64, 128, 255]),
        ("f4", 3, [[0, 0.01], [0.1, 0.1]], [0, 3, 26, 26]),
    ],
)
def test_the_samples_of_a_tiff_are_scaled_by_their_type(
    deflated: bool,
    order: str,
    kind: str,
    sample_format: int,
    values: list[list[Any]],
    expected: list[int],
) -> None:
    data, bits = numbers(values, order + kind), 8 * int(kind[1])
    content = tiff(data, bits, order=order, deflated=deflated, tags={339: [sample_format]})
    assert pixels(content) == expected
    inverted = tiff(
        data, bits, order=order, deflated=deflated, tags={339: [sample_format], 262: [0]}
    )
    # Pillow knows samples of which 0 is white in these alone.
    if kind == "f4" or (kind == "u2" and order == "<"):
        assert np.allclose(pixels(inverted), 255 - np.array(expected), atol=1)


@pytest.mark.parametrize("deflated", [False, True])
def test_the_depth_of_a_tiff_is_the_declared_one(deflated: bool) -> None:
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x01, 0x00])  # 0, 4095, 2048, 256 of 4095
    assert pixels(tiff(packed, 12, deflated=deflated)) == [0, 255, 128, 16]
    unsigned = numbers([[0, 2**31], [2**30, 2**32 - 1]], "<u4")
    assert pixels(tiff(unsigned, 32, deflated=deflated)) == [0, 128, 64, 255]
    data = numbers([[0, 512], [1023, 4095]], "<u2")
    for highest, expected in (
        (1023, [0, 128, 255, 255]),
        (4095, [0, 32, 64, 255]),
        # No depth, so it tells what the picture holds.
        (4000, [0, 2, 4, 16]),
        (255, [0, 2, 4, 16]),
        (65535, [0, 2, 4, 16]),
    ):
        assert pixels(tiff(data, 16, deflated=deflated, tags={281: [highest]})) == expected


@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_of_sixteen_bits_keep_their_upper_eight(order: str) -> None:
    colours = np.array([[[0, 257, 65535]] * 2] * 2, order + "u2")
    tags = {277: [3], 262: [2]}
    together = tiff(colours.tobytes(), 16, order=order, tags=tags)
    apart = colours.transpose(2, 0, 1).tobytes()
    for content in (
        together,
        tiff(apart, 16, order=order, tags={**tags, 284: [2]}),
        png(16, 2, colours.astype(">u2").tobytes()),
    ):
        assert decode(io.BytesIO(content), 2)[:, 0, 0].tolist() == [0, 1, 255]


def test_a_png_is_scaled_by_its_depth() -> None:
    assert pixels(png(1, 0, b"\x40\x80")) == [0, 255, 255, 0]
    assert pixels(png(2, 0, b"\x10\xb0")) == [0, 85, 170, 255]
    assert pixels(png(4, 0, b"\x01\xef")) == [0, 17, 238, 255]
    assert pixels(png(8, 0, bytes([0, 1, 128, 255]))) == [0, 1, 128, 255]
    assert pixels(png(16, 0, numbers(DEEP, ">u2"))) == DEEP_AS_BYTES
    assert pixels(png(16, 0, numbers([[0, 1], [128, 256]], ">u2"))) == [0, 0, 0, 1]


def test_the_transparent_colour_of_a_png_is_in_its_depth() -> None:
    key = struct.pack(">H", 1)
    assert pixels(png(1, 0, b"\x00\x40", struct.pack(">H", 0))) == [255, 255, 255, 255]
    assert pixels(png(2, 0, b"\x10\xb0", key)) == [0, 255, 170, 255]
    assert pixels(png(4, 0, b"\x01\xef", key)) == [0, 255, 238, 255]
    assert pixels(png(8, 0, bytes([0, 1, 128, 255]), key)) == [0, 255, 128, 255]
    deep = numbers(DEEP, ">u2")
    assert pixels(png(16, 0, deep, struct.pack(">H", 1000))) == [0, 255, 117, 255]
    colours = np.array(DEEP)[..., None].repeat(3, 2).astype(">u2").tobytes()
    key = struct.pack(">HHH", 30000, 30000, 30000)
    assert pixels(png(16, 2, colours, key)) == [0, 3, 255, 255]


def test_transparency_mixes_with_white() -> None:
    # Black at opacity 51 of 255 is a fifth of the way from white to black.
    assert pixels(png(8, 4, bytes([0, 51, 0, 255, 0, 0, 255, 51]))) == [204, 0, 255, 255]
    assert pixels(png(16, 4, bytes([0, 0, 51, 51] * 4))) == [204] * 4
    assert pixels(png(16, 6, bytes([0, 0, 0, 0, 0, 0, 51, 51] * 4))) == [204] * 4
    for premultiplied, expected in ((2, [204, 0, 255, 255]), (1, [204, 0, 255, 255])):
        data = bytes([0, 51, 0, 255, 0, 0, 255 if premultiplied == 2 else 51, 51])
        assert pixels(tiff(data, 8, tags={277: [2], 338: [premultiplied]})) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(numbers([[0, 1], [2, 300]], "<f4"), 32, tags={339: [3]}), "from 0 to 300, outside"),
        (tiff(numbers([[-0.5, 1], [0, 0]], "<f4"), 32, tags={339: [3]}), "from -0.5 to 1, outside"),
        (tiff(numbers([[-5, 1], [0, 9]], "<i2"), 16, tags={339: [2]}), "from -5 to 9, outside"),
        (tiff(numbers([[np.nan, 1], [0, 9]], "<f4"), 32, tags={339: [3]}), "not finite"),
        (tiff(numbers([[0, 1], [0, 1]], "<f8"), 64, tags={339: [3]}), "a kind of TIFF"),
        (tiff(bytes(6), 10), "a kind of TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, which is not read: convert it"),
        (b"%PDF-1.7", "PDF, which is not read"),
        (b"text", "unknown image format"),
    ],
)
def test_what_is_refused_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(io.BytesIO(content), 2)


def test_avif_is_read_where_pillow_can(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "x.avif")
    found = decode(tmp_path / "x.avif", 16).astype(int)
    assert abs(found - np.array([250, 0, 0])[:, None, None]).max() <= 4


def test_arrays_and_tensors_are_scaled_by_their_type() -> None:
    deep = np.array(DEEP)
    for array in (deep.astype(np.uint16), torch.tensor(DEEP).to(torch.uint16).numpy()):
        assert decode_any(array, 2)[0].ravel().tolist() == DEEP_AS_BYTES
        in_colour = array[..., None].repeat(3, 2)
        assert decode_any(in_colour, 2)[2].ravel().tolist() == DEEP_AS_BYTES
    low = np.array([[0, 1], [128, 256]], np.uint16)
    assert decode_any(low, 2)[0].ravel().tolist() == [0, 0, 0, 1]
    part = np.array([[0, 0.25], [0.5, 1]])
    for kind in (np.float16, np.float32, np.float64):
        assert decode_any(part.astype(kind), 2)[0].ravel().tolist() == [0, 64, 128, 255]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.from_numpy(part).to(dtype).expand(3, 2, 2)
        assert decode_any(tensor, 2)[1].ravel().tolist() == [0, 64, 128, 255]
    assert decode_any(part > 0.3, 2)[0].ravel().tolist() == [0, 0, 255, 255]
    assert decode_any((part * 255).astype(np.uint8), 2)[0].ravel().tolist() == [0, 63, 127, 255]


def test_pillow_images_are_scaled_like_their_files() -> None:
    assert decode_any(Image.fromarray(np.array(DEEP, np.uint16)), 2)[0].ravel().tolist() == (
        DEEP_AS_BYTES
    )
    content = tiff(numbers([[0, 1000], [16384, 32767]], "<i2"), 16, tags={339: [2]})
    assert decode_any(Image.open(io.BytesIO(content)), 2)[0].ravel().tolist() == [0, 8, 128, 255]
    with pytest.raises(DataError, match="unknown depth"):
        decode_any(Image.fromarray(np.array(DEEP, np.int32)), 2)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([[0.0, 1.5], [-2, 1]]), "from -2 to 1.5, outside 0 to 1"),
        (np.array([[0.0, np.nan], [0, 1]]), "not finite"),
        (np.array(DEEP), "int64 is not an image"),
        (np.zeros((2, 2), complex), "complex128 is not an image"),
        (np.zeros((0, 2), np.uint8), "is not an image"),
        (np.zeros((2, 2, 7), np.uint16), "is not an image"),
    ],
)
def test_arrays_out_of_range_are_refused(array: Numbers, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_any(array, 2)


def test_large_pictures_are_converted_in_strips_to_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = Image.effect_noise((60, 40), 90)
    clear = Image.merge("RGBA", [noise.rotate(90 * n).resize((60, 40)) for n in range(4)])
    deep = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)
    for picture in (clear, deep, clear.convert("CMYK"), clear.convert("P"), noise):
        whole = decode_any(picture, 16)
        monkeypatch.setattr("lowshot_cli.data.colours._STRIP_PIXELS", 7 * 60)
        assert np.array_equal(decode_any(picture, 16), whole)
        monkeypatch.undo()


def test_libraries_say_nothing_about_files(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    noise = Image.effect_noise((40, 40), 90)
    noise.save(tmp_path / "x.tiff", compression="tiff_adobe_deflate")
    content = (tmp_path / "x.tiff").read_bytes()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        decoding._silence_libraries()
        for end in range(20, len(content) - 200, 99):
            with pytest.raises(DataError):
                decode(io.BytesIO(content[:end]), 16)
            (tmp_path / "cut.tiff").write_bytes(content[:end])
            with pytest.raises(DataError):
                decode(tmp_path / "cut.tiff", 16)
    assert (warned, *capfd.readouterr()) == ([], "", "")
