"""From an image file to pixels `(3, S, S)` uint8."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from lowshot_cli.errors import DataError, one_line

ByteArray = npt.NDArray[np.uint8]
# No others are tried, whatever a file is called: some of Pillow's readers start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def decode(source: Path | IO[bytes], image_size: int) -> ByteArray:
    """Read one image as `(3, S, S)` uint8: upright, RGB, shorter side to S, centre crop.

    Of an animation it reads the first frame. Transparent pixels are laid over white.

    Raises:
        DataError: it is not a readable image.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            # JPEG is decoded at the smallest scale that is at least twice the size.
            image.draft(None, (2 * image_size, 2 * image_size))
            return as_pixels(image, image_size)
    except UnidentifiedImageError:
        raise DataError("unknown image format") from None
    # A damaged image may raise nearly anything; every way of failing means the same to the user.
    except Exception as error:
        raise DataError(f"damaged: {one_line(error)}") from None


def as_pixels(image: Image.Image, image_size: int) -> ByteArray:
    """An opened image as `(3, S, S)` uint8: upright, RGB, shorter side to S, centre crop."""
    upright = as_rgb(ImageOps.exif_transpose(image))
    square = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image in RGB: 16 bits scaled to 8, transparent pixels over white.

    Raises:
        DataError: a floating-point image with numbers that are not finite.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all():
            raise DataError("it holds numbers that are not finite")
        # White is 65535 if any value exceeds 8 bits, 255 if any exceeds 1, else 1.
        top = 65535.0 if values.max() > 255 else 255.0 if values.max() > 1 else 1.0
        grey = (values.clip(0, top) * (255 / top)).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
