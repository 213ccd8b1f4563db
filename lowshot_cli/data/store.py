"""Image files decoded once, into memory-mapped arrays that later runs open in no time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lowshot_cli.cache import DiskCache
from lowshot_cli.data import Images, digest_of

_ABOUT = "about.json"
_FORMAT = 1
_CHUNK = 64
ByteArray = npt.NDArray[np.uint8]
ClassFiles = Sequence[Sequence[Path]]
Decode = Callable[[Path, int], ByteArray]


def load_or_decode(
    root: Path, splits: Mapping[str, ClassFiles], size: int, decode: Decode, cache: DiskCache | None
) -> dict[str, Images]:
    """The images of each split, from the cache where these very files were decoded before.

    The files are told apart by a manifest of their names, sizes and times, so nothing is read from
    them to find what was decoded. The arrays are mapped copy on write: what is not looked at takes
    no memory.

    Args:
        root: folder of the dataset.
        splits: per split and label the files of the class.
        size: side in pixels.
        decode: maps a file and a side S to its pixels `(3, S, S)` uint8; may raise `DataError`.
        cache: where arrays are kept; None, or one that cannot be written to, keeps them in memory.
    """
    if cache is not None:
        home = cache.folder / _manifest_key(root, splits, size)
        found = _open(home, root, splits, size)
        if found is None and _fill(home, splits, size, decode):
            cache.trim(keep=home)
            found = _open(home, root, splits, size)
        if found is not None:
            cache.touch(home)
            return found
    arrays = {split: np.empty(_shape(splits[split], size), np.uint8) for split in splits}
    digests = {
        split: _decode_into(arrays[split], files, size, decode) for split, files in splits.items()
    }
    return {split: _images(root, splits[split], arrays[split], digests[split]) for split in splits}


def _shape(classes: ClassFiles, size: int) -> tuple[int, int, int, int]:
    return sum(len(files) for files in classes), 3, size, size


def _manifest_key(root: Path, splits: Mapping[str, ClassFiles], size: int) -> str:
    digest = blake2b(digest_size=16)
    digest.update(repr((_FORMAT, str(root.resolve()), size)).encode())
    for split, classes in splits.items():
        for label, files in enumerate(classes):
            for file in files:
                status = file.stat()
                about = (split, label, str(file), status.st_size, status.st_mtime_ns)
                digest.update(repr(about).encode())
    return digest.hexdigest()


def _open(
    home: Path, root: Path, splits: Mapping[str, ClassFiles], size: int
) -> dict[str, Images] | None:
    """What was decoded earlier; None if it is not there or not whole."""
    try:
        digests = json.loads((home / _ABOUT).read_text(encoding="utf-8"))
        found = {}
        for split, classes in splits.items():
            array = np.load(home / f"{split}.npy", mmap_mode="c", allow_pickle=False)
            if array.shape != _shape(classes, size) or array.dtype != np.uint8:
                raise ValueError(array.shape)
            found[split] = _images(root, classes, array, digests[split])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _fill(home: Path, splits: Mapping[str, ClassFiles], size: int, decode: Decode) -> bool:
    """Decode into a hidden folder and rename it; False where the cache cannot be written to."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    except OSError:
        return False
    try:
        digests = {}
        for split, classes in splits.items():
            array = np.lib.format.open_memmap(
                temporary / f"{split}.npy", "w+", np.uint8, _shape(classes, size)
            )
            digests[split] = _decode_into(array, classes, size, decode)
            array.flush()
        (temporary / _ABOUT).write_text(json.dumps(digests), encoding="utf-8")
        shutil.rmtree(home, ignore_errors=True)
        temporary.rename(home)
    except OSError:
        return home.is_dir()  # another process was quicker, or the disk is full
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _decode_into(array: ByteArray, classes: ClassFiles, size: int, decode: Decode) -> list[str]:
    """Fill `(N, 3, S, S)` in parallel and return the digest of each class's pixels."""
    files = [file for group in classes for file in group]

    def fill(start: int) -> None:
        for place in range(start, min(start + _CHUNK, len(files))):
            array[place] = decode(files[place], size)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(0, len(files), _CHUNK)):
            pass
    ends = np.cumsum([len(group) for group in classes])
    return [digest_of(part) for part in np.split(array, ends[:-1])]


def _images(root: Path, classes: ClassFiles, array: ByteArray, digests: Sequence[str]) -> Images:
    labels = [label for label, group in enumerate(classes) for _ in group]
    return Images(
        torch.from_numpy(array),
        torch.tensor(labels, dtype=torch.int64),
        tuple(str(file.relative_to(root)) for group in classes for file in group),
        dict(enumerate(digests)),
    )
