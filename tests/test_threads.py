"""Work for several threads: in order, and with the bits of a single thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lowshot_cli.threads import map_in_order, threads_per_operation

LONG = torch.randn(10, 200_000, generator=torch.Generator().manual_seed(0))


def _sums(at_once: int) -> list[float]:
    return list(map_in_order(lambda row: row.sum().item(), LONG, at_once))


def test_results_come_in_order_with_the_bits_of_one_thread() -> None:
    def on_threads(count: int) -> list[float]:
        with threads_per_operation(count):
            return [row.sum().item() for row in LONG]

    alone = on_threads(1)
    assert alone != on_threads(3)  # so that there is something to show
    for ours in (1, 3):
        with threads_per_operation(ours):
            assert [_sums(at_once) for at_once in (1, 2, 3)] == [alone] * 3


@pytest.mark.parametrize("at_once", [1, 3])
def test_afterwards_old_and_new_threads_have_as_many_threads_as_before(at_once: int) -> None:
    found = []
    with threads_per_operation(4):
        _sums(at_once)
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        found.append(torch.get_num_threads())
    assert found == [4, 4]


@pytest.mark.parametrize("at_once", [1, 2])
def test_once_asked_to_stop_no_more_begins_and_what_has_begun_is_finished(at_once: int) -> None:
    read, begun, asked = [], [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            asked.set()
        return number

    found = list(map_in_order(work, items(), at_once, should_stop=asked.is_set))
    assert found == sorted(begun)
    assert 3 in found
    assert len(found) <= len(read) < 20


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_comes_in_its_turn_and_ends_the_work(at_once: int) -> None:
    def work(number: int) -> float:
        return 1 / (3 - number)

    results = map_in_order(work, range(100), at_once)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_each_item_may_have_several_threads() -> None:
    def threads(_: Tensor) -> int:
        return torch.get_num_threads()

    for at_once in (1, 2):
        assert set(map_in_order(threads, LONG, at_once, threads_each=3)) == {3}
