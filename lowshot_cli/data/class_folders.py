"""Which class and split an image belongs to, by the folder that it lies in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from posixpath import commonpath
from typing import NamedTuple

from lowshot_cli.config.values import normal_name
from lowshot_cli.data.image_files import (
    FIRST_LISTING,
    LISTING,
    Listing,
    Photo,
    Unused,
    suffix_of,
    summaries,
)
from lowshot_cli.errors import DataError, first_few

TEST_SHARE = 0.2
# Names for the folder of test images; the first that is there is taken.
_TESTS = ("test", "val", "valid", "validation")
# Names that a folder of class folders has, but hardly a class whose folder holds folders.
_SPLITS = (*_TESTS, "testing", "train", "training")
# The first rules listed images with these suffixes alone, and none deeper than the class folder.
_FIRST_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NEWER = "not listed by the version that trained the model, train again to use them"
_MOST_NAMED = 5
_Parts = tuple[str, ...]
# Files with their paths within the dataset.
_Placed = list[tuple[_Parts, Photo]]
_Classes = dict[str, _Placed]


@dataclass(frozen=True)
class ClassFolders:
    """The images of a dataset by class.

    Attributes:
        names: of the classes in label order.
        folders: names of the class folders on the disk, in label order.
        train: files of each class.
        test: the same.
        unused: files that look like input, but belong to no class or are not read.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    train: tuple[list[Photo], ...]
    test: tuple[list[Photo], ...]
    unused: tuple[Unused, ...]


class _Tree(NamedTuple):
    """A dataset's files and folders, by their paths within it."""

    root: Path
    files: _Placed
    folders: set[_Parts]
    unused: Sequence[Unused]


def sort_into_classes(root: Path, listing: Listing, rules: int = LISTING) -> ClassFolders:
    """Find the classes and their images.

    Args:
        root: the dataset, for messages.
        listing: what it holds.
        rules: by which images are listed; a model goes on with those that it was trained on.

    Raises:
        DataError: the folders have neither of the two layouts; the message says what was found, and
            what is expected.
    """
    first = rules == FIRST_LISTING
    tree = _tree(root, listing, first=first)
    known = _by_first_rules(tree) if first else tree
    tops = {parts[0] for parts in known.folders}
    test = next((name for name in (_TESTS[:1] if first else _TESTS) if name in tops), None)
    splits = ("train", test) if test and "train" in tops else ()
    if splits:
        train, tested = (_class_files(known, (str(split),)) for split in splits)
        if strangers := sorted(set(tested) - set(train)):
            raise DataError(
                f"{root / str(test)} has classes that train lacks: {', '.join(strangers)}",
                "add training images of them, or move these folders away",
            )
    else:
        if not first:
            _refuse_other_layouts(known)
        train, tested = _hold_out(_class_files(known, ()), first=first)
    folders = {name: files[0][0][len(splits) // 2] for name, files in train.items()}
    names = sorted(train, key=folders.__getitem__ if first else str)
    return ClassFolders(
        tuple(names),
        tuple(folders[name] for name in names),
        train=tuple([photo for _, photo in train[name]] for name in names),
        test=tuple([photo for _, photo in tested.get(name, [])] for name in names),
        unused=(*tree.unused, *_left_over(tree, splits, (train, tested))),
    )


def files_by_class(root: Path, listing: Listing) -> dict[str, list[Photo]]:
    """The images of each class folder, all of them, in the order of the classes' names.

    Args:
        root: the folder of class folders, for messages.
        listing: what it holds.

    Raises:
        DataError: there are no class folders, or images beside them, or a class folder has no
            images, or the folders are no classes.
    """
    tree = _tree(root, listing, first=False)
    if loose := [parts[0] for parts, _ in tree.files if len(parts) == 1]:
        images = "1 image" if len(loose) == 1 else f"{len(loose):,} images"
        beside = "beside its class folders" if tree.folders else "and no class folders"
        raise DataError(
            f"{root} has {images} {beside}: {first_few(loose, _MOST_NAMED)}",
            "name the class in `classes` if all images are of one, or put those of each class "
            "into a folder named after it",
        )
    if found := _splits_in(tree):
        raise DataError(
            f"{root} has {_listed(found)} with folders in it, which are no classes",
            f"name a folder of class folders, such as {root / found[0]}",
        )
    _refuse_nested(tree, "; if they are one class, name it in `classes`")
    classes = _class_files(tree, ())
    return {name: [photo for _, photo in classes[name]] for name in sorted(classes)}


def _tree(root: Path, listing: Listing, *, first: bool) -> _Tree:
    files = [(tuple(photo.name.split("/")), photo) for photo in listing.photos]
    folders = {tuple(folder.split("/")) for folder in listing.folders if folder}
    if files and files[0][1].archive:
        # An archive of a folder holds the folder itself, so drop folders that all images share.
        shared = _shared([parts for parts, _ in files if not first or _is_of_first(parts)])
        size = len(shared)
        files = [(p[size:] if p[:size] == shared else p[-1:], photo) for p, photo in files]
        folders = {p[size:] for p in folders if p[:size] == shared and len(p) > size}
    return _Tree(root, files, folders, listing.unused)


def _shared(paths: Sequence[_Parts]) -> _Parts:
    """The folders that hold all files, down to the one that holds class folders."""
    shared = commonpath(["/".join(parts[:-1]) for parts in paths] or [""])
    # Keep the folder of the only class.
    return tuple(shared.split("/"))[: max(map(len, paths), default=0) - 2] if shared else ()


def _is_of_first(parts: _Parts) -> bool:
    return suffix_of(parts[-1]) in _FIRST_SUFFIXES


def _by_first_rules(tree: _Tree) -> _Tree:
    """What the first rules list of it: they also decide on the layout by these files alone."""
    files = [one for one in tree.files if 2 <= len(one[0]) <= 3 and _is_of_first(one[0])]
    depth = 3 if {"train", "test"} <= {parts[0] for parts, _ in files} else 2
    files = [one for one in files if len(one[0]) == depth]
    return tree._replace(files=files, folders={p[:n] for p, _ in files for n in range(1, depth)})


def _class_files(tree: _Tree, above: _Parts) -> _Classes:
    """The files of each class whose folder lies in the folder `above`, at any depth.

    Raises:
        DataError: there are no class folders, or one holds no images.
    """
    size, place = len(above), tree.root.joinpath(*above)
    own = {parts[-1] for parts in tree.folders if parts[:-1] == above and len(parts) == size + 1}
    names = {name: normal_name(name) for name in own}
    _refuse_equal(place, list(names.values()))
    classes: _Classes = {names[name]: [] for name in own}
    loose = 0
    for parts, photo in tree.files:
        if parts[:size] == above:
            if len(parts) > size + 1:
                classes[names[parts[size]]].append((parts, photo))
            else:
                loose += 1
    if not classes:
        raise DataError(
            f"{place} has no class folders" + (f", only {loose:,} images" if loose else ""),
            "put the images of each class into a folder of its own, named after it",
        )
    for name, files in classes.items():
        if not files:
            inside = "/".join((*above, name, ""))
            lines = summaries(one for one in tree.unused if f"/{inside}" in f"/{one.name}")
            raise DataError(
                f"{place / name} has no images" + "".join(f"; {line}" for line in lines),
                "put images in it, or move it away",
            )
    return classes


def _refuse_other_layouts(tree: _Tree) -> None:
    """Refuse folders of class folders where class folders are expected.

    Raises:
        DataError: there are some; they would pass for classes.
    """
    if found := _splits_in(tree):
        raise DataError(
            f"{tree.root} has {_listed(found)} with folders in it, but not both train/ and test/ "
            "(or val/, valid/, validation/)",
            f"rename them, or name {tree.root / found[0]}, of which a fifth is then kept for "
            "testing",
        )
    _refuse_nested(tree)


def _folders_with_images(tree: _Tree) -> set[_Parts]:
    """The folders within the top ones that hold images at some depth."""
    return {parts[:2] for parts, _ in tree.files if len(parts) > 2}


def _splits_in(tree: _Tree) -> list[str]:
    """The top folders that are called like splits and hold folders."""
    tops = {parts[0] for parts in _folders_with_images(tree)}
    return sorted(name for name in tops if name.casefold() in _SPLITS)


def _listed(folders: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in folders)


def _refuse_nested(tree: _Tree, otherwise: str = "") -> None:
    """Refuse a single class folder that holds folders, which may be the classes.

    Raises:
        DataError: it does; the hint ends with `otherwise`.
    """
    below = _folders_with_images(tree)
    if len(below) > 1 and len({parts[0] for parts in tree.folders}) == 1:
        top = min(below)[0]
        inner = [name for _, name in sorted(below)]
        more = ", ..." if len(inner) > _MOST_NAMED else ""
        raise DataError(
            f"{tree.root} has one class folder, {top}/, which holds the folders "
            f"{', '.join(inner[:_MOST_NAMED])}{more}",
            f"if these are the classes, name {tree.root / top}{otherwise}",
        )


def _refuse_equal(root: Path, names: Sequence[str]) -> None:
    """Refuse two folders for the same class.

    Raises:
        DataError: names of folders differ only in how letters are encoded.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                f"{root} has {count} folders named {name!r}, encoded in different ways",
                "move the images into one of them",
            )


def _hold_out(classes: _Classes, *, first: bool) -> tuple[_Classes, _Classes]:
    """Split the files of each class into those for training and those kept for testing."""
    train, test = {}, {}
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(
                f"class {name!r} has one image, training and testing need two",
                "add images of it, or move its folder away",
            )
        # By a hash of the name, so that a new class or image does not reshuffle the others.
        paths = ["/".join(parts) for parts, _ in files]
        keys = [blake2b((path if first else normal_name(path)).encode()).digest() for path in paths]
        order = sorted(range(len(files)), key=keys.__getitem__)
        held = set(order[: max(1, round(len(files) * TEST_SHARE))])
        train[name] = [file for place, file in enumerate(files) if place not in held]
        test[name] = [file for place, file in enumerate(files) if place in held]
    return train, test


def _left_over(
    tree: _Tree, splits: Sequence[str | None], used: Sequence[_Classes]
) -> Iterator[Unused]:
    """The images that belong to no class, or that the first rules do not list."""
    names = {photo.name for classes in used for files in classes.values() for _, photo in files}
    depth = 2 if splits else 1
    loose = "in no class of train/ or test/" if splits else "beside the class folders"
    for parts, photo in tree.files:
        if photo.name not in names:
            in_class = len(parts) > depth and (not splits or parts[0] in splits)
            yield Unused(photo.name, _NEWER if in_class else loose)
