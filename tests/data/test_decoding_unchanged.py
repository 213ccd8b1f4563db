"""Pictures of 8 bits give the bytes that they gave to the models that exist."""

from __future__ import annotations

import io
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowshot_cli.data.decoding import decode

PICTURES = Path(__file__).parent / "pictures"
ACROSS, DOWN = np.meshgrid(np.arange(64), np.arange(48))
COLOURS = Image.fromarray(
    np.stack([ACROSS * 4, DOWN * 5, ACROSS * DOWN % 256], 2).astype(np.uint8), "RGB"
)


def _picture(mode: str) -> Image.Image:
    if mode not in {"RGBA", "LA"}:
        return COLOURS.convert(mode)
    picture = COLOURS.convert(mode)
    picture.putalpha(Image.fromarray((ACROSS * 3 + DOWN).astype(np.uint8)))
    return picture


def _file(form: str, mode: str, settings: str) -> io.BytesIO:
    """A picture saved in a format that loses nothing."""
    file, exif = io.BytesIO(), Image.Exif()
    how: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    if settings == "key":
        how["transparency"] = _picture(mode).getpixel((20, 16))
    elif settings.isdigit():
        exif[0x0112] = int(settings)
        how["exif"] = exif
    elif settings:
        how["compression"] = settings
    _picture(mode).save(file, form, **how)
    file.seek(0)
    return file


# Made by version 0.2.0.
DIGESTS = {
    "PNG-1-": "648d93c505cbc0a8",
    "PNG-L-": "a10f14622a661ef3",
    "PNG-LA-": "eb9e6b59e79b88c5",
    "PNG-P-": "5d690051dec9ce16",
    "PNG-RGB-": "633e31c1b28ec99d",
    "PNG-RGBA-": "c47bf5c53cb2e5bd",
    "BMP-1-": "648d93c505cbc0a8",
    "BMP-L-": "a10f14622a661ef3",
    "BMP-P-": "5d690051dec9ce16",
    "BMP-RGB-": "633e31c1b28ec99d",
    "BMP-RGBA-": "633e31c1b28ec99d",
    "GIF-1-": "648d93c505cbc0a8",
    "GIF-L-": "a10f14622a661ef3",
    "GIF-P-": "5d690051dec9ce16",
    "WEBP-L-": "a10f14622a661ef3",
    "WEBP-RGB-": "633e31c1b28ec99d",
    "WEBP-RGBA-": "c47bf5c53cb2e5bd",
    "TIFF-1-": "648d93c505cbc0a8",
    "TIFF-L-": "a10f14622a661ef3",
    "TIFF-LA-": "eb9e6b59e79b88c5",
    "TIFF-P-": "5d690051dec9ce16",
    "TIFF-RGB-": "633e31c1b28ec99d",
    "TIFF-RGBA-": "c47bf5c53cb2e5bd",
    "TIFF-CMYK-": "633e31c1b28ec99d",
    "TIFF-YCbCr-": "0155353f1a462d99",
    "PNG-P-key": "6d31d0579da81be3",
    "PNG-L-key": "0d5dea24890bb662",
    "PNG-RGB-key": "fd3d24c5f59b9a30",
    "GIF-P-key": "6d31d0579da81be3",
    "PNG-RGB-2": "a361a3522bb8a8d6",
    "PNG-RGB-3": "56691f2fc29a8afd",
    "PNG-RGB-4": "fedfae1a069a332a",
    "PNG-RGB-5": "cdff690d1290eda4",
    "PNG-RGB-6": "c812b458474846c0",
    "PNG-RGB-7": "f495c2db6f15dec9",
    "PNG-RGB-8": "e1a0813928741298",
    "WEBP-RGBA-6": "ad6aa55ad9513c5e",
    "TIFF-RGB-6": "c812b458474846c0",
    "PNG-P-8": "0ba0aa563fbcf7b5",
    "TIFF-RGB-tiff_lzw": "633e31c1b28ec99d",
    "TIFF-RGBA-tiff_adobe_deflate": "c47bf5c53cb2e5bd",
    "TIFF-P-packbits": "5d690051dec9ce16",
    "TIFF-1-group4": "648d93c505cbc0a8",
    "cmyk.jpg": "f98924184deb88cf",
    "grey.jpg": "80ef87a3817551a9",
    "lossy.webp": "b1f3ce3c5ee0fef7",
    "progressive.jpg": "aa9883111da56f21",
    "turned.jpg": "962d44337a93856e",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_picture_of_eight_bits_gives_the_bytes_it_always_gave(name: str) -> None:
    file = PICTURES / name if "." in name else _file(*name.split("-"))
    assert blake2b(decode(file, 12).tobytes(), digest_size=8).hexdigest() == DIGESTS[name]
