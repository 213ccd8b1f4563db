"""What a checkpoint keeps of the support images of a class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.data.dataset import Images
from lowshot_cli.data.photos import Photos
from lowshot_cli.errors import DataError


def distinct(photos: Photos) -> Photos:
    """The photos without those that show, pixel for pixel, what an earlier one shows."""
    first: dict[str, int] = {}
    for place, image in enumerate(photos.pixels):
        first.setdefault(pixel_hash(image), place)
    kept = list(first.values())
    return replace(
        photos, pixels=photos.pixels[kept], files=tuple(photos.files[place] for place in kept)
    )


def refuse_shared(classes: Mapping[str, Photos]) -> None:
    """Refuse photos of two classes that show, pixel for pixel, the same.

    Raises:
        DataError: there are some; the first two are named.
    """
    first: dict[str, tuple[str, Path]] = {}
    for name, photos in classes.items():
        for image, file in zip(photos.pixels, photos.files, strict=True):
            other, before = first.setdefault(pixel_hash(image), (name, file))
            if other != name:
                raise DataError(
                    f"two classes share a picture: {before} of {other!r} and {file} of {name!r}",
                    "leave out one of the two",
                )


def support_record(images: Images, indices: Tensor, method: str) -> SupportRecord:
    """Where support images came from, with a hash of each one's pixels."""
    numbers = tuple(int(i) for i in indices)
    return SupportRecord(
        method=method,
        indices=numbers,
        files=tuple(images.files[i] for i in numbers) if images.files else None,
        pixel_hashes=tuple(pixel_hash(images.pixels[i]) for i in numbers),
    )


def pixel_hash(pixels: Tensor) -> str:
    """Hex digest of one image's pixels."""
    return hashlib.blake2b(pixels.contiguous().numpy().data, digest_size=8).hexdigest()


def count_repeats(checkpoint: Checkpoint, name: str, pixels: Tensor) -> int:
    """How many of the images `(N, 3, S, S)` uint8 are supports of a class, pixel for pixel."""
    if name not in checkpoint.novel_classes:
        return 0
    record = checkpoint.meta.supports[checkpoint.novel_classes.index(name)]
    return sum(pixel_hash(image) in record.pixel_hashes for image in pixels)
