"""The allocator keeps the memory that a network has used."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from lowshot_cli import environment


class _Library(SimpleNamespace):
    def __init__(self, most: int) -> None:
        super().__init__(gnu_get_libc_version=None)
        self.most, self.options = most, dict[int, int]()

    def mallopt(self, option: int, value: int) -> int:
        if value > self.most:
            return 0
        self.options[option] = value
        return 1


@pytest.fixture(autouse=True)
def _forget() -> None:
    environment._keep_memory.cache_clear()


@pytest.mark.parametrize(("most", "threshold"), [(2**31 - 1, 2**30), (2**28, 2**25)])
def test_glibc_is_told_once_to_keep_memory(
    monkeypatch: pytest.MonkeyPatch, most: int, threshold: int
) -> None:
    library = _Library(most)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    environment.pick_device("cpu")
    assert library.options == {-3: threshold, -1: -1, -2: 2**26, -8: 1}
    library.options.clear()
    environment.pick_device("cpu")
    assert not library.options


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert environment.pick_device("cpu").type == "cpu"
