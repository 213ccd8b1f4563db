"""Broken metadata around whole pixels: the picture is taken as it lies."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from lowshot_cli.data.decoding import decode
from lowshot_cli.errors import DataError

SIDE = 12
COLOURS = Image.merge("RGB", [Image.effect_noise((40, 30), spread) for spread in (40, 80, 120)])
Change = Callable[[bytes], bytes]


def saved(form: str, **settings: object) -> bytes:
    file = io.BytesIO()
    COLOURS.save(file, form, **settings)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return decode(io.BytesIO(content), SIDE)


def turned(content: bytes) -> np.ndarray:
    """The pixels of a picture whose orientation is 3."""
    return pixels(content)[:, ::-1, ::-1]


def chunk(name: bytes, said: bytes, *, check: int | None = None) -> bytes:
    check = zlib.crc32(name + said) if check is None else check
    return struct.pack(">I", len(said)) + name + said + struct.pack(">I", check)


def in_png(made: bytes, *, late: bool = False) -> Change:
    """Add a chunk after the header, or after the pixels."""
    return lambda content: (
        content[:-12] + made + content[-12:] if late else content[:33] + made + content[33:]
    )


def in_jpeg(marker: int, said: bytes) -> Change:
    segment = struct.pack(">BBH", 0xFF, marker, len(said) + 2) + said
    return lambda content: content[:2] + segment + content[2:]


def in_webp(name: bytes, said: bytes, length: int) -> Change:
    def change(content: bytes) -> bytes:
        extended = b"VP8X" + struct.pack("<I", 10) + bytes([0x2C, 0, 0, 0, 39, 0, 0, 29, 0, 0])
        body = content[8:12] + extended + content[12:] + name + struct.pack("<I", length) + said
        return b"RIFF" + struct.pack("<I", len(body)) + body

    return change


def in_tiff(tag: int, kind: int, count: int, value: int) -> Change:
    """Add an entry to a directory that Pillow writes at the start."""

    def change(content: bytes) -> bytes:
        (start,) = struct.unpack_from("<I", content, 4)
        (known,) = struct.unpack_from("<H", content, start)
        entries = [content[start + 2 + 12 * n :][:12] for n in range(known)]
        entries.append(struct.pack("<HHII", tag, kind, count, value))
        entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
        directory = struct.pack("<H", known + 1) + b"".join(entries) + bytes(4)
        return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory

    return change


LARGE = zlib.compress(bytes(10**7))
JUNK = b"\xff\x00junk" * 9
BROKEN: dict[str, tuple[str, Change]] = {
    "junk EXIF": ("PNG", in_png(chunk(b"eXIf", JUNK))),
    "late junk EXIF": ("PNG", in_png(chunk(b"eXIf", JUNK), late=True)),
    "EXIF with a wrong sum": ("PNG", in_png(chunk(b"eXIf", JUNK, check=7))),
    "empty profile": ("PNG", in_png(chunk(b"iCCP", b""))),
    "profile of another compression": ("PNG", in_png(chunk(b"iCCP", b"x\0\7" + JUNK))),
    "profile of a gigabyte": (
        "PNG",
        in_png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**7)))),
    ),
    "text of another compression": ("PNG", in_png(chunk(b"zTXt", b"x\0\7" + JUNK))),
    "a late large text": ("PNG", in_png(chunk(b"zTXt", b"x\0\0" + LARGE), late=True)),
    "text with a wrong sum": ("PNG", in_png(chunk(b"tEXt", b"x\0y", check=7))),
    "EXIF in hex that is none": (
        "PNG",
        in_png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz")),
    ),
    "short gamma": ("PNG", in_png(chunk(b"gAMA", b"\0"))),
    "short resolution": ("PNG", in_png(chunk(b"pHYs", b"\0"))),
    "short colours": ("PNG", in_png(chunk(b"cHRM", b"\0"))),
    "animation that is none": ("PNG", in_png(chunk(b"acTL", b"\0"))),
    "frames out of order": ("PNG", in_png(chunk(b"fcTL", bytes([0, 0, 0, 9]) + bytes(22)))),
    "no end": ("PNG", lambda content: content[:-9]),
    "junk EXIF in JPEG": ("JPEG", in_jpeg(0xE1, b"Exif\0\0" + JUNK)),
    "EXIF that ends early": ("JPEG", in_jpeg(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")),
    "junk profile": ("JPEG", in_jpeg(0xE2, b"ICC_PROFILE\0\x09\x01" + JUNK)),
    "junk Photoshop": ("JPEG", in_jpeg(0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\0")),
    "more pictures that are not there": ("JPEG", in_jpeg(0xE2, b"MPF\0" + JUNK)),
    "short JFIF": ("JPEG", in_jpeg(0xE0, b"JFIF\0")),
    "EXIF that is cut off": ("WEBP", in_webp(b"EXIF", JUNK[:9], 5000)),
    "junk EXIF in WebP": ("WEBP", in_webp(b"EXIF", JUNK, len(JUNK))),
    "EXIF nowhere": ("TIFF", in_tiff(34665, 4, 1, 2**31)),
    "GPS of another type": ("TIFF", in_tiff(34853, 2, 4, 0x41414141)),
    "resolution in text": ("TIFF", in_tiff(282, 2, 4, 0x41414141)),
    "profile beyond the end": ("TIFF", in_tiff(34675, 7, 10**9, 8)),
    "XMP of another type": ("TIFF", in_tiff(700, 5, 1, 2**31)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_leaves_a_picture_as_it_lies(name: str) -> None:
    form, change = BROKEN[name]
    content = saved(form, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(pixels(change(content)), pixels(content))


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("PNG", in_png(chunk(b"iCCP", b""))),
        ("JPEG", in_jpeg(0xE2, b"MPF\0" + JUNK)),
        ("TIFF", in_tiff(282, 2, 4, 0x41414141)),
    ],
)
def test_the_orientation_survives_what_else_is_broken(form: str, change: Change) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    lying, upright = saved(form, exif=exif), saved(form)
    # Not equal to the last digit, as the picture is scaled after it is turned.
    for content in (lying, change(lying)):
        assert np.abs(turned(content).astype(int) - pixels(upright)).max() <= 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_damaged_pixels_are_refused(form: str) -> None:
    content = saved(form)
    with pytest.raises(DataError, match="damaged"):
        pixels(content[: len(content) // 2])
    if form == "PNG":
        changed = in_png(chunk(b"iCCP", b""))(content)
        with pytest.raises(DataError, match="damaged"):
            pixels(changed[: len(changed) // 2])
