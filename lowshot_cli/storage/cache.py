"""A folder of entries that can be made again; the least recently used are deleted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import platformdirs
from safetensors import SafetensorError

if TYPE_CHECKING:
    from torch import Tensor

_ABANDONED_SECONDS = 24 * 3600


class Entry(NamedTuple):
    """A file or folder of a cache: its size in bytes, and when it was last used (Unix seconds)."""

    path: Path
    size: int
    used: float


@dataclass(frozen=True)
class DiskCache:
    """Entries are named by a hash of everything they depend on, so a stale one is never found.

    Hidden entries are being written. One that is a day old was left behind by a killed process.

    Attributes:
        folder: holds the entries.
        limit: bytes that all entries may take together.
    """

    folder: Path
    limit: int

    @classmethod
    def of_user(cls, name: str, limit: int) -> DiskCache:
        """A cache in the user's cache folder."""
        return cls(Path(platformdirs.user_cache_dir("lowshot", appauthor=False)) / name, limit)

    def entries(self) -> list[Entry]:
        """All finished entries."""
        return [entry for entry in self._all() if not entry.path.name.startswith(".")]

    def path(self, key: str) -> Path:
        """The file for the tensors under a key, whether it exists or not."""
        return self.folder / f"{key}.safetensors"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors under a key, memory-mapped; None if absent, unreadable or damaged.

        A damaged entry is deleted. One that cannot be read for now, for lack of memory, file
        descriptors or permission, stays.
        """
        from lowshot_cli.storage.tensors import read_tensors

        path = self.path(key)
        try:
            tensors, _ = read_tensors(path)
        except (OSError, MemoryError, RuntimeError):  # PyTorch has no error of its own for memory
            return None
        except (SafetensorError, ValueError):
            path.unlink(missing_ok=True)
            return None
        self.touch(path)
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors; a folder that cannot be written to is not an error."""
        # Imported here, as torch takes seconds to import and listing a cache does not need it.
        from lowshot_cli.storage.tensors import write_tensors

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Making an entry again after a power loss costs less than always waiting for the disk.
            write_tensors(self.path(key), tensors, {}, durable=False)
        except OSError:
            return

    def touch(self, path: Path) -> None:
        """Note that an entry has been used."""
        try:
            os.utime(path)
        except OSError:  # a cache that cannot be written to can still be read
            return

    def trim(self, keep: Path | None = None) -> None:
        """Delete the least recently used entries until the rest fits the limit, never `keep`."""
        for entry in self._all():
            if entry.path.name.startswith(".") and time.time() - entry.used > _ABANDONED_SECONDS:
                _delete(entry.path)
        entries = self.entries()
        excess = sum(entry.size for entry in entries) - self.limit
        for entry in sorted(entries, key=lambda entry: entry.used):
            if excess <= 0:
                break
            if entry.path != keep:
                _delete(entry.path)
                excess -= entry.size

    def clear(self) -> None:
        """Delete every finished entry."""
        for entry in self.entries():
            _delete(entry.path)

    def _all(self) -> list[Entry]:
        found = []
        for path in self.folder.glob("*"):
            try:
                files = [file.stat() for file in path.iterdir()] if path.is_dir() else [path.stat()]
                found.append(Entry(path, sum(s.st_size for s in files), path.stat().st_mtime))
            except FileNotFoundError:  # another process was quicker
                continue
        return found


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


_DECODED_LIMIT = 20 * 1024**3


def image_cache() -> DiskCache:
    """Where decoded images are kept between runs, in the user's cache folder."""
    return DiskCache.of_user("images", _DECODED_LIMIT)


CACHE_LIMIT = 2 * 1024**3


def embedding_cache() -> DiskCache:
    """Where embeddings are kept between runs, in the user's cache folder."""
    return DiskCache.of_user("embeddings", CACHE_LIMIT)
