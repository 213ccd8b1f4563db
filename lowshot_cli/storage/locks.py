"""Locks that end with the process that holds them, however it ends.

They are untested on Windows.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lowshot_cli.errors import LowshotError

LOCK = ".lowshot.lock"


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process has it locked."""
    # Imported here, as many commands lock nothing.
    from filelock import lock_descriptor

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:  # a file system without locks: every file counts as free
        return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes results into a folder, and delete what a dead one left.

    Raises:
        LowshotError: another process is writing there; the message says which.
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
        # Deleted while still locked, so that no process locks a file that is about to vanish.
        with suppress(PermissionError):  # Windows cannot delete an open file, so it stays
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not try_lock(descriptor):
            raise LowshotError(
                f"{path.parent} is in use by {_read_owner(descriptor) or 'another process'}",
                "wait until it has finished, stop it, or use another `workdir`",
            )
        # Its last owner may have deleted it before this process locked it.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _read_owner(descriptor: int) -> str:
    """What the holder wrote into a lock file; closes the descriptor."""
    try:
        return os.read(descriptor, 200).decode("utf-8", "replace")
    except OSError:  # Windows lets no other process read a locked file
        return ""
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Delete the temporary files in a folder whose writers are dead.

    Args:
        folder: the folder to search, without the folders in it.
        name: pattern of the files that were being written.
    """
    for temporary in folder.glob(f".{name}.*.tmp"):
        try:
            descriptor = os.open(temporary, os.O_RDWR)
        except OSError:  # it has vanished, or is another user's
            continue
        try:
            # Deleted while locked: a writer that has just made it locks it next, and then looks
            # whether it is still there.
            if try_lock(descriptor):
                with suppress(PermissionError):  # Windows cannot delete an open file
                    temporary.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
