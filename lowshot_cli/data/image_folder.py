"""The user's own images: `train/<class>/*` and `test/<class>/*`, or `<class>/*` alone."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.decoding import decode
from lowshot_cli.data.image_files import SUFFIXES, Photo, Tree, list_photos
from lowshot_cli.data.image_store import load_or_decode
from lowshot_cli.errors import DataError
from lowshot_cli.progress import OnProgress, silent
from lowshot_cli.storage.cache import DiskCache

IMAGE_SIZE = 64
TEST_SHARE = 0.2


_Classes = dict[str, list[Photo]]


def load(
    root: Path,
    image_size: int,
    cache: DiskCache | None = None,
    *,
    skip_bad: bool = False,
    on_progress: OnProgress = silent,
) -> Dataset:
    """Load a folder of class folders, or a `.zip` of one.

    Without `train/` and `test/`, a fifth of each class (one image at least) is kept for testing.

    Args:
        root: the folder or the archive.
        image_size: side in pixels.
        cache: where decoded images are kept for the next time.
        skip_bad: leave unreadable images out instead of refusing them.
        on_progress: gets reports while images are decoded.

    Raises:
        DataError: no such folder, no classes, a class without images, or unreadable images.
    """
    tree = list_photos(root)
    if ("train",) in {parts[:1] for parts in tree} and ("test",) in {parts[:1] for parts in tree}:
        train_files, test_files = (_class_files(root, tree, (s,)) for s in ("train", "test"))
    else:
        train_files, test_files = _hold_out(_class_files(root, tree, ()))
    names = tuple(sorted(train_files))
    strangers = sorted(set(test_files) - set(names))
    if strangers:
        raise DataError(f"{root / 'test'} has classes that train lacks: {', '.join(strangers)}")
    splits = {
        split: [files.get(name, []) for name in names]
        for split, files in (("train", train_files), ("test", test_files))
    }
    images, skipped, blank = load_or_decode(
        root, splits, image_size, decode, cache, skip_bad=skip_bad, on_progress=on_progress
    )
    for label, name in enumerate(names):
        if not len(images["train"].of_class(label)):
            raise DataError(f"no image of class {name!r} can be read", f"check the files in {root}")
    return Dataset(
        "folder",
        names,
        images["train"],
        images["test"],
        mirror=True,
        default_classes=None,
        skipped=skipped,
        blank=blank,
    )


def _class_files(root: Path, tree: Tree, above: tuple[str, ...]) -> _Classes:
    classes = {parts[-1]: files for parts, files in tree.items() if parts and parts[:-1] == above}
    place = root.joinpath(*above)
    if not classes:
        raise DataError(f"{place} has no class folders", "expected <class>/<image files>")
    for name, files in classes.items():
        if not files:
            raise DataError(
                f"{place / name} has no images", f"known: {', '.join(sorted(SUFFIXES))}"
            )
    return dict(sorted(classes.items()))


def _hold_out(classes: _Classes) -> tuple[_Classes, _Classes]:
    train, test = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(f"class {name!r} has one image, training and testing need two")
        # By a hash of the name, so that a new class or image does not reshuffle the others.
        own = [file.name.rpartition("/")[2] for file in files]
        keys = {
            blake2b(f"{name}/{last}".encode()).digest(): file
            for last, file in zip(own, files, strict=True)
        }
        held = {keys[key].name for key in sorted(keys)[: max(1, round(len(files) * TEST_SHARE))]}
        train[name] = [file for file in files if file.name not in held]
        test[name] = [file for file in files if file.name in held]
    return train, test
