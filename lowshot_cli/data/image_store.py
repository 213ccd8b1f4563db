"""Image files decoded once, into memory-mapped arrays that later runs open at once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np
import torch

from lowshot_cli.data.dataset import Images, compute_digest
from lowshot_cli.data.decoding import RULES, ByteArray, UnreadError, is_blank
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import Photo
from lowshot_cli.errors import DataError, first_few, one_line
from lowshot_cli.progress import OnProgress, Progress, silent
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.storage.files import new_array

_ABOUT = "about.json"
_FORMAT = 4
_CHUNK = 64
_MOST_NAMED = 10
ClassFiles = Sequence[Sequence[Photo]]
Report = Callable[[int], None]
Decode = Callable[[IO[bytes], int], ByteArray]


@dataclass(frozen=True)
class _Decoded:
    """About a split's array.

    Attributes:
        digests: of each class's pixels.
        bad: why each unreadable file is not in it.
        unread: those of them whose bytes may be sound; they are tried again.
        blank: the files of which nothing is left.
    """

    digests: list[str]
    bad: dict[str, str]
    unread: list[str]
    blank: list[str]


def load_or_decode(
    root: Path,
    splits: Mapping[str, ClassFiles],
    size: int,
    decode: Callable[[IO[bytes], int, Framing], ByteArray],
    cache: DiskCache | None,
    *,
    framing: Framing = CROP,
    skip_bad: bool = False,
    on_progress: OnProgress = silent,
) -> tuple[dict[str, Images], tuple[str, ...], tuple[str, ...]]:
    """The images of each split, from the cache if the same files were decoded before.

    The files are identified by their names, sizes and times, so none has to be read to find out
    whether it was decoded before. The arrays are mapped copy on write, so images take
    memory only once they are read.

    Args:
        root: folder of the dataset.
        splits: per split and label the files of the class.
        size: side in pixels.
        decode: maps a file, a side S and a framing to pixels `(3, S, S)` uint8; may raise
            `DataError`.
        cache: where arrays are kept; None, or one that cannot be written to, keeps them in memory.
        framing: how each image becomes a square.
        skip_bad: leave out files that cannot be decoded.
        on_progress: gets reports while files are decoded.

    Returns:
        The images of each split, a line about each file that was left out, and the files of
        which nothing is left.

    Raises:
        DataError: files that cannot be decoded, unless `skip_bad`; the first ten are named.
    """
    report = _counting(sum(_shape(files, size)[0] for files in splits.values()), on_progress)

    def framed(file: IO[bytes], side: int) -> ByteArray:
        return decode(file, side, framing)

    opened = None
    if cache is not None:
        home = cache.folder / _manifest_key(root, splits, size, framing)
        opened = _from_cache(home, splits, size, framed, cache, report=report)
    if opened is None:
        arrays = {split: np.empty(_shape(splits[split], size), np.uint8) for split in splits}
        opened = {
            split: (arrays[split], _decode_into(arrays[split], files, size, framed, report))
            for split, files in splits.items()
        }
    bad = [f"{n} ({why})" for _, about in opened.values() for n, why in about.bad.items()]
    if bad and not skip_bad:
        total = sum(len(group) for classes in splits.values() for group in classes)
        raise cannot_read(bad, f"{total} images in {root}")
    images = {split: _images(splits[split], *opened[split]) for split in splits}
    blank = [name for _, about in opened.values() for name in about.blank]
    return images, tuple(bad), tuple(blank)


def cannot_read(lines: Sequence[str], among: str) -> DataError:
    """The error about unreadable files, of which the first ten are named.

    Args:
        lines: a line about each of them.
        among: all files that were to be read, such as `20 images in photos/`.
    """
    return DataError(
        f"{len(lines)} of {among} cannot be read: {first_few(lines, _MOST_NAMED, '; ')}",
        "convert, repair or delete them, or leave them out with `skip_bad=True`",
    )


def _counting(total: int, on_progress: OnProgress) -> Report:
    """A function that adds to the number of decoded images and reports it."""
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        on_progress(Progress("decoding", done, total))

    return report


def _from_cache(
    home: Path,
    splits: Mapping[str, ClassFiles],
    size: int,
    decode: Decode,
    cache: DiskCache,
    *,
    report: Report,
) -> dict[str, tuple[ByteArray, _Decoded]] | None:
    found = _open(home, splits, size)
    if found is not None and _is_outdated(found, splits, size, decode):
        found = None
    if found is None and _fill(home, splits, size, decode, report):
        cache.trim(keep=home)
        found = _open(home, splits, size)
    if found is not None:
        cache.touch(home)
    return found


def _is_outdated(
    found: Mapping[str, tuple[ByteArray, _Decoded]],
    splits: Mapping[str, ClassFiles],
    size: int,
    decode: Decode,
) -> bool:
    """Whether a file that could not be read when the others were can now be read, or refused."""
    for split, (_, about) in found.items():
        if not about.unread:
            continue
        files = {file.name: file for group in splits[split] for file in group}
        for name in about.unread:
            pixels = _try(files[name], size, decode)
            if isinstance(pixels, UnreadError):
                about.bad[name] = pixels.message
            else:
                return True
    return False


def _try(file: Photo, size: int, decode: Decode) -> ByteArray | DataError:
    """A file's pixels `(3, S, S)`, or why there are none."""
    try:
        with file.open() as opened:
            return decode(opened, size)
    except DataError as error:
        return error
    except OSError as error:
        return UnreadError(one_line(error))
    except (NotImplementedError, RuntimeError, BadZipFile) as error:  # members of an archive
        return DataError(one_line(error))


def _shape(classes: ClassFiles, size: int) -> tuple[int, int, int, int]:
    return sum(len(files) for files in classes), 3, size, size


def _manifest_key(root: Path, splits: Mapping[str, ClassFiles], size: int, framing: Framing) -> str:
    digest = blake2b(digest_size=16)
    # What was cached before there were framings stays in use.
    framed = () if framing == CROP else (framing,)
    digest.update(repr((_FORMAT, RULES, str(root.resolve()), size, *framed)).encode())
    for split, classes in splits.items():
        for label, files in enumerate(classes):
            digest.update(repr((split, label, len(files))).encode())
            names = "\0".join([file.name for file in files])
            digest.update(names.encode("utf-8", "backslashreplace"))
            digest.update(np.array([file.version for file in files], np.int64).tobytes())
    return digest.hexdigest()


def _open(
    home: Path, splits: Mapping[str, ClassFiles], size: int
) -> dict[str, tuple[ByteArray, _Decoded]] | None:
    """What was decoded earlier; None if it is absent or incomplete."""
    try:
        about = json.loads((home / _ABOUT).read_text(encoding="utf-8"))
        found = {}
        for split, classes in splits.items():
            array = np.load(home / f"{split}.npy", mmap_mode="c", allow_pickle=False)
            if array.shape != _shape(classes, size) or array.dtype != np.uint8:
                raise ValueError(array.shape)
            found[split] = (array, _Decoded(**about[split]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _fill(
    home: Path, splits: Mapping[str, ClassFiles], size: int, decode: Decode, report: Report
) -> bool:
    """Decode into a hidden folder and rename it; False if the cache cannot be written to."""
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    except OSError:
        return False
    try:
        about = {}
        for split, classes in splits.items():
            array = new_array(temporary / f"{split}.npy", np.uint8, _shape(classes, size))
            about[split] = asdict(_decode_into(array, classes, size, decode, report))
            array.flush()
        (temporary / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(home, ignore_errors=True)
        temporary.rename(home)
    except OSError:
        return home.is_dir()  # another process was quicker, or the disk is full
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _decode_into(
    array: ByteArray, classes: ClassFiles, size: int, decode: Decode, report: Report
) -> _Decoded:
    """Fill `(N, 3, S, S)` in parallel, then move readable images before the others."""
    files = [file for group in classes for file in group]
    bad: dict[int, DataError] = {}
    blank: set[int] = set()

    def fill(start: int) -> int:
        part = range(start, min(start + _CHUNK, len(files)))
        for place in part:
            pixels = _try(files[place], size, decode)
            if isinstance(pixels, DataError):
                bad[place] = pixels
                continue
            array[place] = pixels
            if is_blank(pixels):
                blank.add(place)
        return len(part)

    pool = ThreadPoolExecutor()
    try:
        for count in pool.map(fill, range(0, len(files), _CHUNK)):
            report(count)
    finally:
        # After Ctrl-C, do not wait for the rest.
        pool.shutdown(cancel_futures=True)
    if bad:
        kept = [place for place in range(len(files)) if place not in bad]
        for new, old in enumerate(kept):
            array[new] = array[old]
    named = {files[place].name: bad[place].message for place in sorted(bad)}
    ends = np.cumsum([len(group) for group in _readable(classes, named)])
    return _Decoded(
        [compute_digest(part) for part in np.split(array[: ends[-1]], ends[:-1])],
        named,
        [files[place].name for place in sorted(bad) if isinstance(bad[place], UnreadError)],
        [files[place].name for place in sorted(blank)],
    )


def _readable(classes: ClassFiles, bad: Mapping[str, str]) -> ClassFiles:
    if not bad:
        return classes
    return [[file for file in group if file.name not in bad] for group in classes]


def _images(classes: ClassFiles, array: ByteArray, about: _Decoded) -> Images:
    groups = _readable(classes, about.bad)
    counts = torch.tensor([len(group) for group in groups], dtype=torch.int64)
    labels = torch.arange(len(groups)).repeat_interleave(counts)
    return Images(
        torch.from_numpy(array[: len(labels)]),
        labels,
        tuple(file.name for group in groups for file in group),
        dict(enumerate(about.digests)),
    )
