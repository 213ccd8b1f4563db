"""Photos outside any dataset: files, folders and globs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.data.dataset import BATCH
from lowshot_cli.data.decoding import ByteArray, decode, is_blank
from lowshot_cli.data.image_files import is_image
from lowshot_cli.data.image_store import cannot_read
from lowshot_cli.errors import DataError


@dataclass(frozen=True)
class Photos:
    """Decoded photos.

    Attributes:
        pixels: `(N, 3, S, S)` uint8.
        files: the file of each.
        unreadable: files that cannot be decoded, each with the reason.
    """

    pixels: Tensor
    files: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """A line about each file that was left out."""
        return tuple(f"{file} ({reason})" for file, reason in self.unreadable)

    @property
    def blank(self) -> tuple[str, ...]:
        """The files of which nothing is left: every pixel is white or was transparent."""
        pairs = zip(self.files, self.pixels.numpy(), strict=True)
        return tuple(str(file) for file, pixels in pairs if is_blank(pixels))


def find_photos(sources: Iterable[Path], *, deep: bool = False) -> list[Path]:
    """The image files that `sources` name, in order and each once.

    Args:
        sources: files, folders and globs.
        deep: search the folders within a folder too.

    Raises:
        DataError: a source that is absent or holds no images.
    """
    found: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            inside = source.rglob("*") if deep else source.iterdir()
            files = sorted(path for path in inside if is_image(path.name) and path.is_file())
            if not files:
                raise DataError(f"{source} has no images", "name a folder with image files in it")
        elif source.is_file():
            files = [source]
        else:
            root = Path(source.anchor)
            pattern = str(source.relative_to(root))
            try:
                files = sorted(path for path in root.glob(pattern) if is_image(path.name))
            except ValueError as error:  # such as ** beside other characters
                raise DataError(
                    f"{source} is not a pattern: {error}", "put ** between two slashes"
                ) from None
            if not files:
                raise DataError(f"there is no image at {source}", "check the path")
        found |= dict.fromkeys(files)
    return list(found)


def read_photos(files: Sequence[Path], image_size: int, batch: int = BATCH) -> Iterator[Photos]:
    """Decode image files in parallel, one batch ahead of the one in use.

    Args:
        files: from `find_photos`.
        image_size: side in pixels.
        batch: number of files in a batch.
    """

    def read(path: Path) -> ByteArray | str:
        try:
            return decode(path, image_size)
        except DataError as error:
            return error.message

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


def _gathered(jobs: Sequence[tuple[Path, Future[ByteArray | str]]], image_size: int) -> Photos:
    results = [(path, job.result()) for path, job in jobs]
    good = [(path, pixels) for path, pixels in results if not isinstance(pixels, str)]
    bad = tuple((path, reason) for path, reason in results if isinstance(reason, str))
    empty = np.empty((0, 3, image_size, image_size), np.uint8)
    stacked = np.stack([pixels for _, pixels in good]) if good else empty
    return Photos(torch.from_numpy(stacked), tuple(path for path, _ in good), bad)


def load_photos(files: Sequence[Path], image_size: int, *, skip_bad: bool = False) -> Photos:
    """Decode image files.

    Args:
        files: from `find_photos`.
        image_size: side in pixels.
        skip_bad: leave unreadable files out instead of refusing them.

    Raises:
        DataError: some files cannot be read, or none with `skip_bad`.
    """
    parts = list(read_photos(files, image_size))
    photos = Photos(
        torch.cat([part.pixels for part in parts]),
        tuple(file for part in parts for file in part.files),
        tuple(bad for part in parts for bad in part.unreadable),
    )
    if photos.unreadable and not (skip_bad and photos.files):
        raise cannot_read(photos.skipped, f"{len(files)} images")
    return photos
