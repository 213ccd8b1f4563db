"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowshot_cli.errors import LowshotError

try:
    import fcntl
except ImportError:  # no such locks on this platform, so nothing is ever found locked
    fcntl = None  # type: ignore[assignment]


LOCK = ".lowshot.lock"


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process has it locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file; a file that has vanished is held by none."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes results into a folder, and clear away what a dead one left.

    Raises:
        LowshotError: another process is at it; says which.
        OSError: the folder cannot be written to.
    """
    path = folder / LOCK
    descriptor = _open_locked(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        remove_abandoned(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not try_lock(descriptor):
            owner = os.read(descriptor, 200).decode("utf-8", "replace")
            os.close(descriptor)
            raise LowshotError(
                f"{path.parent} is in use by {owner or 'another process'}",
                "wait until it has finished, or name another --workdir",
            )
        # Its last owner may have deleted it between the opening and the locking.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Delete the temporary files in a folder whose writers are dead.

    Args:
        folder: searched, but not the folders in it.
        name: pattern of the files that were being written.
    """
    for temporary in folder.glob(f".{name}.*.tmp"):
        if not is_held(temporary):
            temporary.unlink(missing_ok=True)
