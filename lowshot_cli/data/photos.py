"""Photos outside any dataset: files, folders and globs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import has_magic
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.data.dataset import BATCH
from lowshot_cli.data.decoding import NOT_REGULAR, UNKNOWN, ByteArray, decode, is_blank
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import (
    Photo,
    Unused,
    entries_of,
    folders_in,
    holds,
    is_folder,
    is_image,
    list_photos,
    refuse_unused,
    suffix_of,
    summaries,
    why_not_read,
)
from lowshot_cli.data.image_store import cannot_read
from lowshot_cli.errors import DataError, one_line


@dataclass(frozen=True)
class Photos:
    """Decoded photos.

    Attributes:
        pixels: `(N, 3, S, S)` uint8.
        files: the file of each.
        unreadable: files that cannot be decoded, each with the reason.
        unused: what looks like an image and is not read.
    """

    pixels: Tensor
    files: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()
    unused: tuple[Unused, ...] = ()

    @property
    def n_skipped(self) -> int:
        """Number of files that look like images and are not used."""
        return len(self.unreadable) + len(self.unused)

    @property
    def skipped(self) -> tuple[str, ...]:
        """A line about each file that was left out."""
        return tuple(f"{file} ({reason})" for file, reason in self.unreadable)

    @property
    def blank(self) -> tuple[str, ...]:
        """The files of which nothing is left: every pixel is white or was transparent."""
        pairs = zip(self.files, self.pixels.numpy(), strict=True)
        return tuple(str(file) for file, pixels in pairs if is_blank(pixels))


class Found(NamedTuple):
    """Image files that people named.

    Attributes:
        files: in order, each once.
        unused: what looks like an image and is not read.
    """

    files: list[Path]
    unused: list[Unused]


def find_photos(sources: Iterable[Path], *, strict: bool = False) -> Found:
    """The image files that `sources` name.

    Args:
        sources: files, folders, of which everything below counts, and globs.
        strict: refuse files that look like images and are not read.

    Raises:
        DataError: a source that is absent or holds no images, or unused files with `strict`.
    """
    files: dict[Path, None] = {}
    unused: dict[Unused, None] = {}
    for source in sources:
        with searching(source):
            found = _find(source)
        files |= dict.fromkeys(found.files)
        unused |= dict.fromkeys(found.unused)
    if strict:
        refuse_unused(unused)
    return Found(list(files), list(unused))


@contextmanager
def searching(source: Path) -> Iterator[None]:
    """Turn an error of the system about a source of photos into one line.

    Raises:
        DataError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{source}: {one_line(error)}", "check the path and your permissions there"
        ) from None


def _find(source: Path) -> Found:
    if source.is_dir():
        found = _in_folder(source)
        what, hint = f"{source} has no images", "name a folder with image files in it"
    elif source.exists() or source.is_symlink():  # a pipe, or a link to nothing, is unreadable
        found = Found([source], [])
    else:
        found = Found([], [])
        for path in sorted(
            set(_matching(Path(source.anchor), source.relative_to(source.anchor).parts))
        ):
            part = _one_match(path)
            found.files.extend(part.files)
            found.unused.extend(part.unused)
        what, hint = f"there is no image at {source}", "check the path"
    if not found.files:
        raise DataError("; ".join([what, *summaries(found.unused)]), hint)
    return found


def _in_folder(folder: Path) -> Found:
    listed = list_photos(folder)
    unused = [Unused(str(folder / name), reason) for name, reason in listed.unused]
    return Found(sorted(Path(photo.path) for photo in listed.photos), unused)


def _one_match(path: Path) -> Found:
    """What a glob names, unless it is no picture, or a link to a folder that it lies in."""
    if path.is_dir():
        loops = path.is_symlink() and holds(os.path.realpath(path), os.path.realpath(path.parent))
        return Found([], []) if loops else _in_folder(path)
    reason = why_not_read(path.name)
    if is_image(path.name):
        if path.is_file() or not path.exists():
            return Found([path], [])
        reason = NOT_REGULAR
    return Found([], [Unused(str(path), reason)] if reason else [])


def _matching(folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """What lies at a glob: as in a shell, but `**` also follows links to folders.

    Args:
        folder: where the pattern starts.
        pattern: its parts.

    Raises:
        DataError: `**` stands beside other characters, or a folder cannot be read.
    """
    if not pattern:
        yield folder
        return
    first, *rest = pattern
    if "**" in first and first != "**":
        raise DataError(f"{folder / first} is not a pattern", "put ** between two slashes")
    if not has_magic(first):
        if (folder / first).exists() or (folder / first).is_symlink():
            yield from _matching(folder / first, rest)
    elif folder.is_dir():
        if first == "**":
            for path, _, _ in folders_in(folder):
                yield from _matching(Path(path), rest)
            return
        for entry in entries_of(str(folder)):
            if fnmatch(entry.name, first) and (not rest or is_folder(entry)):
                yield from _matching(folder / entry.name, rest)


def read_photos(
    files: Sequence[Path],
    image_size: int,
    batch: int = BATCH,
    *,
    framing: Framing = CROP,
    archived: Mapping[Path, Photo] | None = None,
) -> Iterator[Photos]:
    """Decode image files in parallel, one batch ahead of the one in use.

    Args:
        files: from `find_photos`.
        image_size: side in pixels.
        batch: number of files in a batch.
        framing: how each becomes a square.
        archived: those of the files that are members of an archive.
    """

    def read(path: Path) -> ByteArray | str:
        try:
            if archived and path in archived:
                with archived[path].open() as file:
                    return decode(file, image_size, framing)
            return decode(path, image_size, framing)
        except DataError as error:
            return _by_its_name(path) if error.message == UNKNOWN else error.message
        except (OSError, NotImplementedError, RuntimeError, BadZipFile) as error:  # of a member
            return one_line(error)

    waiting: deque[list[tuple[Path, Future[ByteArray | str]]]] = deque()
    pool = ThreadPoolExecutor()
    try:
        for start in range(0, len(files), batch):
            chunk = files[start : start + batch]
            waiting.append([(path, pool.submit(read, path)) for path in chunk])
            if len(waiting) > 1:
                yield _gathered(waiting.popleft(), image_size)
        while waiting:
            yield _gathered(waiting.popleft(), image_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _by_its_name(file: Path) -> str:
    """Why a file of unknown content is not read, as far as its name says."""
    if suffix_of(file.name) == ".zip":
        return "an archive, unpack it"
    return why_not_read(file.name) or UNKNOWN


def _gathered(jobs: Sequence[tuple[Path, Future[ByteArray | str]]], image_size: int) -> Photos:
    results = [(path, job.result()) for path, job in jobs]
    good = [(path, pixels) for path, pixels in results if not isinstance(pixels, str)]
    bad = tuple((path, reason) for path, reason in results if isinstance(reason, str))
    empty = np.empty((0, 3, image_size, image_size), np.uint8)
    stacked = np.stack([pixels for _, pixels in good]) if good else empty
    return Photos(torch.from_numpy(stacked), tuple(path for path, _ in good), bad)


def load_photos(
    files: Sequence[Path],
    image_size: int,
    *,
    framing: Framing = CROP,
    archived: Mapping[Path, Photo] | None = None,
    skip_bad: bool = False,
) -> Photos:
    """Decode image files.

    Args:
        files: from `find_photos`.
        image_size: side in pixels.
        framing: how each becomes a square.
        archived: those of the files that are members of an archive.
        skip_bad: leave unreadable files out instead of refusing them.

    Raises:
        DataError: some files cannot be read, or none with `skip_bad`.
    """
    parts = list(read_photos(files, image_size, framing=framing, archived=archived))
    photos = Photos(
        torch.cat([part.pixels for part in parts]),
        tuple(file for part in parts for file in part.files),
        tuple(bad for part in parts for bad in part.unreadable),
    )
    if photos.unreadable and not (skip_bad and photos.files):
        raise cannot_read(photos.skipped, f"{len(files)} images")
    return photos
