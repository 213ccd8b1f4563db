"""People's own images: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lowshot_cli.cache import DiskCache
from lowshot_cli.data import Dataset
from lowshot_cli.data.splits import smallest_keys
from lowshot_cli.data.store import ByteArray, load_or_decode
from lowshot_cli.errors import DataError

IMAGE_SIZE = 64
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
TEST_SHARE = 0.2


def load(root: Path, image_size: int, cache: DiskCache | None = None) -> Dataset:
    """Load a folder of class folders.

    Without `train/` and `test/`, a fifth of each class (one image at least) is kept for testing.

    Args:
        root: the folder.
        image_size: side in pixels.
        cache: where decoded images are kept for the next time.

    Raises:
        DataError: no such folder, no classes, a class without images, an unreadable image.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}", "check --data-dir")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train_files = _class_files(root / "train")
        test_files = _class_files(root / "test")
    else:
        train_files, test_files = _hold_out(_class_files(root))
    names = tuple(sorted(train_files))
    strangers = sorted(set(test_files) - set(names))
    if strangers:
        raise DataError(f"{root / 'test'} has classes that train lacks: {', '.join(strangers)}")
    splits = {
        split: [files.get(name, []) for name in names]
        for split, files in (("train", train_files), ("test", test_files))
    }
    images = load_or_decode(root, splits, image_size, decode, cache)
    return Dataset(
        "folder", names, images["train"], images["test"], mirror=True, default_classes=None
    )


def _class_files(folder: Path) -> dict[str, list[Path]]:
    classes = {
        child.name: sorted(
            file
            for file in child.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }
    if not classes:
        raise DataError(f"{folder} has no class folders", "expected <class>/<image files>")
    for name, files in classes.items():
        if not files:
            raise DataError(
                f"{folder / name} has no images", f"known: {', '.join(sorted(SUFFIXES))}"
            )
    return classes


def _hold_out(
    classes: dict[str, list[Path]],
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    train, test = {}, {}
    for label, (name, files) in enumerate(classes.items()):
        if len(files) < 2:
            raise DataError(f"class {name!r} has one image, training and testing need two")
        held = set(
            smallest_keys(len(files), max(1, round(len(files) * TEST_SHARE)), label).tolist()
        )
        train[name] = [file for index, file in enumerate(files) if index not in held]
        test[name] = [file for index, file in enumerate(files) if index in held]
    return train, test


def decode(path: Path, image_size: int) -> ByteArray:
    """Read one image file as `(3, S, S)` uint8: upright, RGB, shorter side to S, centre crop.

    Raises:
        DataError: not a readable image.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from None
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
