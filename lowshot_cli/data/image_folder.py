"""The user's own images: `train/<class>/` and `test/<class>/`, or `<class>/` alone."""

from __future__ import annotations

from pathlib import Path

from lowshot_cli.data.class_folders import sort_into_classes
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.decoding import decode
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import FIRST_LISTING, LISTING, list_photos, refuse_unused
from lowshot_cli.data.image_store import load_or_decode
from lowshot_cli.errors import DataError
from lowshot_cli.progress import OnProgress, silent
from lowshot_cli.storage.cache import DiskCache

IMAGE_SIZE = 64


def load(
    root: Path,
    image_size: int,
    cache: DiskCache | None = None,
    *,
    framing: Framing = CROP,
    rules: int = LISTING,
    skip_bad: bool = False,
    strict: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Load a folder of class folders, or a `.zip` of one.

    All images in a class folder belong to the class, however deep they lie. Without `train/` and
    `test/` (or `val/`, `valid/`, `validation/`), a fifth of each class (one image at least) is kept
    for testing.

    Args:
        root: the folder or the archive.
        image_size: side in pixels.
        cache: where decoded images are kept for the next time.
        framing: how each image becomes a square.
        rules: by which images are listed; those of a checkpoint for its dataset.
        skip_bad: leave unreadable images out instead of refusing them.
        strict: refuse files that look like input and are not used.
        on_progress: gets reports while images are decoded.

    Raises:
        DataError: no such folder, no classes, a class without images, or files that are refused.
    """
    classes = sort_into_classes(root, list_photos(root), rules)
    if strict:
        refuse_unused(classes.unused)
    images, skipped, blank = load_or_decode(
        root,
        {"train": classes.train, "test": classes.test},
        image_size,
        decode,
        cache,
        framing=framing,
        skip_bad=skip_bad,
        on_progress=on_progress,
    )
    for label, name in enumerate(classes.names):
        if not len(images["train"].of_class(label)):
            raise DataError(f"no image of class {name!r} can be read", f"check the files in {root}")
    return Dataset(
        "folder",
        classes.names,
        images["train"],
        images["test"],
        mirror=True,
        default_classes=None,
        skipped=skipped,
        unused=classes.unused,
        # Models made by the first rules hash the names as they are on the disk.
        hashed_names=classes.folders if rules == FIRST_LISTING else None,
        blank=blank,
        framing=framing,
    )
