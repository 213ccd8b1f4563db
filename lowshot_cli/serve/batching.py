"""Images of several requests embedded together, as a network takes many faster than each alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any, TypeVar

import torch
from torch import Tensor

# Images of a batch, but for a request that has more by itself.
MOST = 64
# Seconds that a batch waits at most for requests that are being read.
_TOGETHER = 0.02
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class _Request:
    pixels: Tensor
    answer: Callable[[Tensor], Any]
    future: Future[Any]


class Batches:
    """Embeds what waits, a batch after the other, in threads of its own.

    Args:
        embed: from images `(N, 3, S, S)` uint8 to embeddings `(N, D)`; called in several threads.
        workers: into how many parts, each in its thread, a batch is split. On a processor, as many
            as it has cores take less time than one part whose every operation is shared among them.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], workers: int = 1) -> None:
        self._embed, self._n_workers = embed, workers
        self._waiting: deque[_Request] = deque()
        self._n_read = 0  # requests that are being read
        self._changed = Condition()
        self._turns = ThreadPoolExecutor(1, "batches")
        threads = 1 if workers > 1 else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(workers, "embedding", torch.set_num_threads, (threads,))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read a request and submit its images, for which the next batch waits a little."""
        with self._changed:
            self._n_read += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_read -= 1
                self._changed.notify()

    def submit(self, pixels: Tensor, answer: Callable[[Tensor], _Answer]) -> Future[_Answer]:
        """Embed images `(n, 3, S, S)` uint8 with those of others.

        Args:
            pixels: the images.
            answer: makes the result of their embeddings `(n, D)`; what it raises concerns no other.
        """
        request = _Request(pixels, answer, Future())
        with self._changed:
            self._waiting.append(request)
        # The first turn may take the requests of others, which then find nothing to do.
        self._turns.submit(self._work)
        return request.future

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        self._turns.shutdown()
        self._pool.shutdown()

    def _work(self) -> None:
        requests = self._next()
        if not requests:
            return
        try:
            pixels = torch.cat([request.pixels for request in requests])  # (N, 3, S, S)
            parts = pixels.tensor_split(min(self._n_workers, len(pixels)))
            embeddings = torch.cat(list(self._pool.map(self._embed, parts)))  # (N, D)
        except Exception as error:  # each asks what became of its images
            for request in requests:
                request.future.set_exception(error)
            return
        sizes = [len(request.pixels) for request in requests]
        for request, own in zip(requests, embeddings.split(sizes), strict=True):
            try:
                request.future.set_result(request.answer(own))
            except Exception as error:
                request.future.set_exception(error)

    def _next(self) -> list[_Request]:
        """The requests of the next batch, in the order in which they came."""
        requests: list[_Request] = []
        size = 0
        with self._changed:
            end = time.monotonic() + _TOGETHER
            while self._n_read and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            while self._waiting and (not requests or size + len(self._waiting[0].pixels) <= MOST):
                request = self._waiting.popleft()
                if request.future.set_running_or_notify_cancel():
                    requests.append(request)
                    size += len(request.pixels)
        return requests
