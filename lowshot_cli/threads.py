"""Results whose bits do not depend on the number of threads.

PyTorch splits an operation between its threads, and the split decides in which order numbers are
added up. So each piece of work is done by a single thread, and several pieces at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from lowshot_cli.progress import ShouldStop, never

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def threads_per_operation(count: int) -> Iterator[None]:
    """Let PyTorch use this many threads for each operation of the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_order(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    at_once: int,
    *,
    threads_each: int = 1,
    should_stop: ShouldStop = never,
) -> Iterator[_Result]:
    """Yield the function of each item, in order, several of them computed at once.

    PyTorch's inference mode and the like belong to a thread, so the function must enter them.

    Args:
        function: called with one item, in a thread of its own if there are several.
        items: read in the calling thread, a few ahead of the results.
        at_once: how many items to work on at once; with 1 the calling thread does it.
        threads_each: PyTorch's threads for each operation of the function.
        should_stop: asked once an item has begun; if it is true no other begins, but those that
            have begun are finished and yielded.
    """
    if at_once == 1:
        for item in items:
            with threads_per_operation(threads_each):
                result = function(item)
            yield result
            if should_stop():
                return
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads_each,))
    begun: deque[Future[_Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if should_stop():
                break
            if len(begun) == 2 * at_once:  # so that no thread waits while a result is used
                yield begun.popleft().result()
        while begun:
            future = begun.popleft()
            if not (should_stop() and future.cancel()):
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        # The last number set, by whichever thread, is the one that new threads start with.
        torch.set_num_threads(before)
