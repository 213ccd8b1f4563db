"""Locks: one process a folder, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lowshot_cli.errors import LowshotError
from lowshot_cli.storage.files import write_atomically
from lowshot_cli.storage.locks import LOCK, locked, try_lock

HOLD = """
import sys, time
from pathlib import Path
from lowshot_cli.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    if not path.exists():
        return False
    with path.open("r+b") as file:
        return not try_lock(file.fileno())


def _hold(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_a_lock_names_its_owner_and_ends_with_it_however_it_ends(tmp_path: Path) -> None:
    with _hold(tmp_path) as holder:
        for _ in range(2):  # who is refused leaves the owner's name as it is
            owner = f"process {holder.pid} on {os.uname().nodename}"
            with pytest.raises(LowshotError, match=f"is in use by {owner}"), locked(tmp_path):
                raise AssertionError
        assert _is_held(tmp_path / LOCK)
        holder.kill()
        holder.wait()
    assert not _is_held(tmp_path / LOCK)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_cleared_of_what_dead_writers_left(tmp_path: Path) -> None:
    (tmp_path / ".base.safetensors.12345678.tmp").write_bytes(b"half")
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_many_threads_write_one_file_and_it_is_always_whole(tmp_path: Path) -> None:
    path, failed = tmp_path / "file", []

    def write(letter: bytes) -> None:
        try:
            for _ in range(20):
                write_atomically(path, letter * 1000, durable=False)
                assert len(set(path.read_bytes())) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
