"""Entries of the user's cache: damaged ones are made again, good ones survive bad luck."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lowshot_cli.storage.cache import DiskCache


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    cache = DiskCache(tmp_path, 10**6)
    cache.write("entry", {"values": torch.arange(5)})
    return cache


def _kept(cache: DiskCache) -> list[str]:
    return [entry.path.name for entry in cache.entries()]


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.EMFILE, "too many open files"),
        PermissionError(errno.EACCES, "not allowed"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_entry_that_cannot_be_read_just_now_is_kept(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def fail(_: Path) -> Any:
        raise problem

    with monkeypatch.context() as patched:
        patched.setattr("lowshot_cli.storage.tensors.read_tensors", fail)
        assert cache.read("entry") is None
    found = cache.read("entry")
    assert found is not None
    assert torch.equal(found["values"], torch.arange(5))


@pytest.mark.parametrize("place", [0, 9, -3])
def test_a_damaged_entry_is_deleted(cache: DiskCache, place: int) -> None:
    path = cache.path("entry")
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)
    assert cache.read("entry") is None
    assert _kept(cache) == []


def test_a_key_that_was_never_written_is_absent(cache: DiskCache) -> None:
    assert cache.read("other") is None
    assert _kept(cache) == ["entry.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_mode_that_the_umask_leaves(cache: DiskCache, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        cache.write("another", {"values": torch.arange(2)})
    finally:
        os.umask(before)
    assert cache.path("another").stat().st_mode & 0o777 == mode
