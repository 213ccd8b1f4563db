"""Images in whatever form Python users have them: paths, PIL images, arrays and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, bfloat16

from lowshot_cli.config.values import given_path
from lowshot_cli.data.colours import to_bytes
from lowshot_cli.data.decoding import as_pixels, decode
from lowshot_cli.data.image_files import summaries
from lowshot_cli.data.photos import find_photos
from lowshot_cli.errors import DataError

AnyImage = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
# One image or many.
AnyImages = AnyImage | Iterable[AnyImage]


def list_images(images: AnyImages) -> tuple[list[AnyImage], bool]:
    """The images as a list, and whether a single image was given rather than a list of one.

    Raises:
        DataError: there are no images, or nothing is at a path.
    """
    if isinstance(images, str | Path):
        path = given_path(images)
        found = _at(path)
        return found, found == [path]
    if isinstance(images, np.ndarray | Tensor) and images.ndim != 4:
        return [images], True
    if isinstance(images, Image.Image) or not isinstance(images, Iterable):
        return [images], True
    listed: list[AnyImage] = []
    for image in images:
        listed += _at(given_path(image)) if isinstance(image, str | Path) else [image]
    if not listed:
        raise DataError("no images", "give at least one")
    return listed, False


def _at(path: Path) -> list[AnyImage]:
    """The image at a path, or those in a folder; warns of files that look like images too."""
    found = find_photos([path])
    if lines := summaries(found.unused):
        warnings.warn(f"left out {'; '.join(lines)}", stacklevel=2)
    return list(found.files)


def decode_any(image: AnyImage, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels `(3, S, S)` of an image.

    Arrays and tensors hold uint8, uint16, booleans, or floating-point numbers from 0 to 1.

    Raises:
        DataError: it is not a readable image.
    """
    if isinstance(image, str | Path):
        try:
            return decode(given_path(image), size)
        except DataError as error:
            raise DataError(f"{image}: {error.message}", error.hint) from None
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError(f"a tensor {list(image.shape)} is not an image", "give (3, H, W)")
        image = image.detach().cpu().permute(1, 2, 0)
        # NumPy has no bfloat16.
        image = (image.float() if image.dtype == bfloat16 else image).numpy()
    if not isinstance(image, Image.Image):
        image = _from_array(np.asarray(image))
    return as_pixels(image, size)


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"an array {list(array.shape)} is not an image", "give (H, W, 3)")
    values = to_bytes(array)
    try:
        return Image.fromarray(values)
    except (TypeError, ValueError):
        raise DataError(f"an array {list(array.shape)} is not an image", "give (H, W, 3)") from None
