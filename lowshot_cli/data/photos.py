"""Photos outside any dataset: files, folders and globs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.data.folder import decode
from lowshot_cli.data.sources import is_image
from lowshot_cli.errors import DataError

_MOST_NAMED = 10


@dataclass(frozen=True)
class Photos:
    """Decoded photos.

    Attributes:
        pixels: `(N, 3, S, S)` uint8.
        files: of each.
        skipped: a line about each one that was left out as unreadable.
    """

    pixels: Tensor
    files: tuple[Path, ...]
    skipped: tuple[str, ...]


def find_photos(sources: Iterable[Path]) -> list[Path]:
    """Image files that are named, lie directly in a named folder, or match a named glob.

    Raises:
        DataError: a source that is absent or holds no images.
    """
    found: dict[Path, None] = {}
    for source in sources:
        if source.is_dir():
            files = sorted(path for path in source.iterdir() if is_image(path.name))
            if not files:
                raise DataError(f"{source} has no images", "name a folder with image files in it")
        elif source.is_file():
            files = [source]
        else:
            root = Path(source.anchor)
            pattern = str(source.relative_to(root))
            files = sorted(path for path in root.glob(pattern) if is_image(path.name))
            if not files:
                raise DataError(f"no image at {source}", "check the path")
        found |= dict.fromkeys(files)
    return list(found)


def load_photos(files: Sequence[Path], image_size: int, skip_bad: bool = False) -> Photos:
    """Decode image files in parallel.

    Args:
        files: from `find_photos`.
        image_size: side in pixels.
        skip_bad: leave unreadable files out instead of refusing them.

    Raises:
        DataError: unreadable files, or none that can be read.
    """

    def read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str:
        try:
            return decode(path, image_size)
        except DataError as error:
            return f"{path} ({error.message})"

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, files))
    bad = tuple(result for result in results if isinstance(result, str))
    good = [(f, r) for f, r in zip(files, results, strict=True) if not isinstance(r, str)]
    if bad and not (skip_bad and good):
        more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise DataError(
            f"{len(bad)} of {len(files)} images cannot be read: "
            f"{'; '.join(bad[:_MOST_NAMED])}{more}",
            "repair or delete them, or leave them out with --skip-bad",
        )
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in good]))
    return Photos(pixels, tuple(file for file, _ in good), bad)
