"""Image files of a folder or of a zip archive, which is read in place."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

from lowshot_cli.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Images hardly compress, so an archive that grows by more than this was made to fill memory.
_MOST_GROWTH, _HARMLESS_BYTES = 100, 1024**3
_MOST_IMAGE_BYTES = 256 * 1024**2
# Folders within a dataset: its files lie at most in train/<class>/.
_DEPTH = 2
_MAKE_AGAIN = "make it again from the folder of images"
_Parts = tuple[str, ...]


class Photo(NamedTuple):
    """An image file. There may be millions, so it is small and quickly made.

    Attributes:
        name: its path within the dataset.
        path: the file's path, or that of the archive that it is a member of.
        version: distinguishes this file from others of its name: size and time, or size and CRC.
        archive: open for reading; None for a file of its own.
        member: its name in the archive.
    """

    name: str
    path: str
    version: tuple[int, int]
    archive: ZipFile | None = None
    member: str = ""

    def open(self) -> IO[bytes]:
        """Open it for reading."""
        return self.archive.open(self.member) if self.archive else Path(self.path).open("rb")


Tree = Mapping[_Parts, list[Photo]]


def as_text(name: str) -> str:
    """A file's name as text that can be stored, with bytes that are not UTF-8 in hex."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_outside(name: str) -> bool:
    """Whether a member of an archive lies outside the archive's own folder."""
    place = PurePosixPath(name.replace("\\", "/"))
    return place.is_absolute() or ".." in place.parts


def list_photos(root: Path) -> Tree:
    """The images of every folder under `root`, or in a `.zip`, by the folder's path in it.

    Hidden files, and those without the name of an image such as `Thumbs.db`, are left out.

    Raises:
        DataError: neither a folder nor a readable archive.
    """
    if root.is_dir():
        return _list_folder(root)
    if root.is_file():
        return _list_archive(root)
    raise DataError(f"there is no folder {root}", "check `data_dir`")


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    own = name.rpartition("/")[2]
    stem, _, suffix = own.rpartition(".")
    return bool(stem) and f".{suffix.lower()}" in SUFFIXES and not own.startswith(".")


def _list_folder(root: Path) -> Tree:
    tree: dict[_Parts, list[Photo]] = {}
    # Links are followed, as class folders often are links; the limit on depth ends loops.
    for folder, below, files in os.walk(root, followlinks=True):
        parts = Path(folder).relative_to(root).parts
        below[:] = [name for name in below if not name.startswith(".") and len(parts) < _DEPTH]
        images = sorted(name for name in files if is_image(name))
        above = "".join(f"{part}/" for part in parts)
        tree[tuple(map(as_text, parts))] = [_photo(folder, above, name) for name in images]
    return tree


def _photo(folder: str, above: str, name: str) -> Photo:
    path = f"{folder}{os.sep}{name}"
    status = os.stat(path)  # noqa: PTH116 - `Path.stat` takes several times as long
    return Photo(as_text(above + name), path, (status.st_size, status.st_mtime_ns))


def _list_archive(path: Path) -> Tree:
    try:
        archive = ZipFile(path)
    except (BadZipFile, OSError) as error:
        raise DataError(
            f"{path} is neither a folder nor a zip archive: {error}", "check `data_dir`"
        ) from None
    _refuse_hostile(archive, path)
    tree: dict[_Parts, list[Photo]] = {}
    for info in sorted(archive.infolist(), key=lambda info: info.filename):
        *parts, name = PurePosixPath(info.filename).parts or ("",)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if info.is_dir() or hidden or not is_image(name):
            continue
        photo = Photo(info.filename, str(path), (info.file_size, info.CRC), archive, info.filename)
        tree.setdefault(tuple(parts), []).append(photo)
    # An archive of a folder holds the folder itself, so drop folders that all images share.
    while tree and len({parts[:1] for parts in tree}) == 1 and min(map(len, tree)) > 1:
        tree = {parts[1:]: photos for parts, photos in tree.items()}
    return tree


def _refuse_hostile(archive: ZipFile, path: Path) -> None:
    """Refuse an archive that holds links or members outside it, or grows too much when unpacked.

    Raises:
        DataError: it does; the message names the member.
    """
    total = 0
    for info in archive.infolist():
        if is_outside(info.filename):
            raise DataError(f"{path} has a member outside itself: {info.filename!r}", _MAKE_AGAIN)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path} holds a link: {info.filename!r}", _MAKE_AGAIN)
        total += info.file_size
        if is_image(info.filename) and info.file_size > _MOST_IMAGE_BYTES:
            raise DataError(
                f"{path}: {info.filename!r} takes {info.file_size:,} bytes", "leave it out"
            )
    if total > max(_HARMLESS_BYTES, _MOST_GROWTH * path.stat().st_size):
        raise DataError(f"{path} would grow to {total:,} bytes", "unpack it and name the folder")
