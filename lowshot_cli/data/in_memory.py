"""Images in whatever form Python users have them: paths, PIL images, arrays and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, bfloat16, from_numpy

from lowshot_cli.config.values import given_path, normal_name
from lowshot_cli.data.colours import to_bytes
from lowshot_cli.data.decoding import as_pixels, decode
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import Unused, summaries
from lowshot_cli.data.labelled_photos import find_classes, split_classes
from lowshot_cli.data.photos import Photos, find_photos, load_photos
from lowshot_cli.errors import DataError, UsageError

AnyImage = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
# One image or many.
AnyImages = AnyImage | Iterable[AnyImage]
# The images of one class, or of each of several.
AnyClasses = AnyImages | Mapping[str, AnyImages]


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
    _warn_of(found.unused)
    return list(found.files)


def _warn_of(unused: Sequence[Unused]) -> None:
    if lines := summaries(unused):
        warnings.warn(f"left out {'; '.join(lines)}", stacklevel=3)


def photos_by_class(
    images: AnyClasses, name: str | None, size: int, framing: Framing = CROP
) -> dict[str, Photos]:
    """The decoded images of each class.

    Args:
        images: of the class `name`; or without a name a mapping of names to images, a folder of
            class folders or a zip of one, or a CSV file of `file,class`.
        name: the class of all images; None for several.
        size: side in pixels.
        framing: how each image becomes a square.

    Raises:
        DataError: no images, something that is not an image, or another layout of folders.
        UsageError: nothing tells the class of an image, or a mapping does beside `name`.
    """
    if isinstance(images, Mapping):
        if name is not None:
            raise UsageError(f"{name!r} is named beside a mapping of classes", "leave out `name`")
        return {each: photos_of(of, size, framing) for each, of in images.items()}
    if name is not None:
        return {name: photos_of(images, size, framing)}
    if not isinstance(images, str | Path):
        raise UsageError("no class is named", "name it in `name`, or give a mapping of classes")
    found = find_classes([given_path(images)])
    _warn_of(found.unused)
    photos = load_photos(found.all.files, size, framing=framing, archived=found.archived)
    return split_classes(photos, found.files)


def photos_of(images: AnyImages, size: int, framing: Framing = CROP) -> Photos:
    """Decode images, whatever they show.

    Raises:
        DataError: there are none, or one is not a readable image.
    """
    given, _ = list_images(images)
    names = (i if isinstance(i, str | Path) else f"image {n}" for n, i in enumerate(given))
    return Photos(decode_all(given, size, framing), tuple(map(Path, names)))


def by_label(count: int, labels: str | Sequence[str]) -> dict[str, list[int]]:
    """The places of the images of each class, given the label of each or one for all.

    Raises:
        DataError: the numbers of images and labels differ.
    """
    names = [labels] * count if isinstance(labels, str) else list(labels)
    if len(names) != count:
        raise DataError(
            f"there are {count} images and {len(names)} labels", "give one label for each image"
        )
    members: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        members.setdefault(normal_name(name), []).append(place)
    return members


def decode_all(images: Iterable[AnyImage], size: int, framing: Framing = CROP) -> Tensor:
    """Pixels `(N, 3, S, S)` uint8 of at least one image.

    Raises:
        DataError: one is not a readable image.
    """
    return from_numpy(np.stack([decode_any(image, size, framing) for image in images]))


def decode_any(
    image: AnyImage, size: int, framing: Framing = CROP
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels `(3, S, S)` of an image, framed as a model asks.

    Arrays and tensors hold uint8, uint16, booleans, or floating-point numbers from 0 to 1.

    Raises:
        DataError: it is not a readable image.
    """
    if isinstance(image, str | Path):
        try:
            return decode(given_path(image), size, framing)
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
    return as_pixels(image, size, framing)


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"an array {list(array.shape)} is not an image", "give (H, W, 3)")
    values = to_bytes(array)
    try:
        return Image.fromarray(values)
    except (TypeError, ValueError):
        raise DataError(f"an array {list(array.shape)} is not an image", "give (H, W, 3)") from None
