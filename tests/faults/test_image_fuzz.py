"""Pictures of every kind that Pillow writes, whole and damaged: pixels or one clear line."""

from __future__ import annotations

import io
import os
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowshot_cli.data.decoding import decode
from lowshot_cli.data.metadata import without_metadata
from lowshot_cli.errors import DataError

SIDE = 8
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB")
MODES += ("HSV", "I", "I;16", "I;16B", "I;16L", "F")
FORMATS = {
    "PNG": [{}, {"exif": b"Exif\0\0junk", "icc_profile": b"junk"}],
    "JPEG": [{}, {"progressive": True, "exif": b"Exif\0\0junk", "comment": b"x"}],
    "WEBP": [{}, {"lossless": True, "exif": b"Exif\0\0junk", "xmp": b"junk"}],
    "GIF": [{}, {"interlace": 0}],
    "BMP": [{}],
    "TIFF": [
        {"compression": name}
        for name in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4")
    ],
}


@cache
def files() -> dict[str, bytes]:
    """A small picture in each format, mode and setting that Pillow can combine."""
    made = {}
    for mode in MODES:
        picture = Image.new(mode, (12, 9))
        if mode in {"L", "RGB", "RGBA"}:
            picture = Image.effect_noise((12, 9), 90).convert(mode)
        for form, choices in FORMATS.items():
            for number, settings in enumerate(choices):
                file = io.BytesIO()
                try:
                    picture.save(file, form, **settings)
                except (OSError, ValueError, KeyError, TypeError, AttributeError):
                    continue  # the format has no such mode
                made[f"{form} {mode} {number}"] = file.getvalue()
    return made


def attempt(content: bytes) -> str | None:
    """None if the picture can be read, else the line about it."""
    try:
        pixels = decode(io.BytesIO(content), SIDE)
    except DataError as error:
        is_one_line = error.message and not any(odd in error.message for odd in ("\n", " at 0x"))
        # Damage is no passing error, and a crash no answer.
        return error.message if type(error) is DataError and is_one_line else f"odd: {error!r}"
    assert pixels.shape == (3, SIDE, SIDE)
    return None


def mutate(content: bytes, choose: random.Random) -> bytes:
    if choose.random() < 0.3:
        return content[: choose.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(choose.choice([1, 1, 2, 8])):
        # Headers come first, and matter most.
        place = int(len(changed) * choose.random() ** 2)
        changed[place] = choose.choice([0, 1, 127, 128, 255, choose.randrange(256)])
    return bytes(changed)


def _fuzz(count: int, seed: int) -> None:
    choose, whole = random.Random(seed), list(files().values())
    for _ in range(count):
        content = mutate(choose.choice(whole), choose)
        assert not (attempt(content) or "").startswith("odd")
        cleaned = without_metadata(content)
        assert cleaned is None or len(cleaned) <= len(content) + 12


def test_every_kind_of_picture_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(files()) > 60
    refused = {name: line for name, content in files().items() if (line := attempt(content))}
    assert refused == {}
    assert capfd.readouterr() == ("", "")


def test_damaged_pictures_are_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    _fuzz(300, seed=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_many_damaged_pictures_are_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    _fuzz(50_000, seed=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.skipif("ODD_IMAGES" not in os.environ, reason="ODD_IMAGES names no folder")
def test_no_odd_file_of_others_crashes(capfd: pytest.CaptureFixture[str]) -> None:
    """ODD_IMAGES is a folder of any files, such as Tests/images of Pillow's source archive."""
    answers = {
        path: attempt(path.read_bytes())
        for path in Path(os.environ["ODD_IMAGES"]).rglob("*")
        if path.is_file()
    }
    assert len(answers) > 100
    assert None in answers.values()
    assert [path for path, line in answers.items() if (line or "").startswith("odd")] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["PNG RGB 0", "JPEG RGB 0", "WEBP RGB 1", "TIFF RGB 0"])
def test_a_whole_picture_without_metadata_has_the_same_pixels(name: str) -> None:
    content = files()[name]
    cleaned = without_metadata(content)
    assert cleaned is not None
    expected = decode(io.BytesIO(content), SIDE)
    assert np.array_equal(decode(io.BytesIO(cleaned), SIDE), expected)
