"""Images of several requests embedded together, as a network takes many faster than each alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

# Images that are embedded together, and those of a request that stay together.
MOST, PIECE = 64, 16
_Answer = TypeVar("_Answer")


class _Request:
    """A request whose images are embedded in pieces; used with the lock of its batches held."""

    def __init__(self, pixels: Tensor, answer: Callable[[Tensor], Any]) -> None:
        self.answer = answer
        self.future: Future[Any] = Future()
        self.embedded: dict[int, Tensor] = {}
        self.pieces = [_Piece(self, n, part) for n, part in enumerate(pixels.split(PIECE))]
        self.has_begun = self.has_failed = False

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it still."""
        if not self.has_begun:
            self.has_begun = True
            self.has_failed = not self.future.set_running_or_notify_cancel()
        return not self.has_failed


@dataclass(frozen=True)
class _Piece:
    request: _Request
    place: int
    pixels: Tensor


class Batches:
    """Embeds what waits, in threads of its own, each a batch at a time.

    Args:
        embed: from images `(N, 3, S, S)` uint8 to embeddings `(N, D)`; called in several threads.
        workers: how many threads embed, each alone. On a processor, as many of them as it has cores
            take less time than one that shares its work out: they need not wait for one another.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor], workers: int = 1) -> None:
        self._embed, self._n_workers = embed, workers
        self._waiting: deque[_Piece] = deque()
        self._count = 0  # of images that wait
        self._lock = Lock()
        threads = 1 if workers > 1 else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(workers, "batches", torch.set_num_threads, (threads,))

    def submit(self, pixels: Tensor, answer: Callable[[Tensor], _Answer]) -> Future[_Answer]:
        """Embed images `(n, 3, S, S)` uint8 with those of others.

        Args:
            pixels: the images.
            answer: makes the result of their embeddings `(n, D)`; what it raises concerns no other.
        """
        request = _Request(pixels, answer)
        with self._lock:
            self._waiting.extend(request.pieces)
            self._count += len(pixels)
        # Whichever call comes first takes what waits; the last ones may find nothing to do.
        for _ in request.pieces:
            self._pool.submit(self._work)
        return request.future

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        self._pool.shutdown()

    def _work(self) -> None:
        with self._lock:
            pieces = self._next()
        if not pieces:
            return
        try:
            sizes = [len(piece.pixels) for piece in pieces]
            parts = self._embed(torch.cat([piece.pixels for piece in pieces])).split(sizes)
        except Exception as error:  # each asks what became of its images
            for piece in pieces:
                self._fail(piece.request, error)
            return
        for piece, embeddings in zip(pieces, parts, strict=True):
            self._finish(piece, embeddings)

    def _next(self) -> list[_Piece]:
        """The pieces of the next batch: a worker's share of what waits, and one piece at least."""
        share = min(MOST, math.ceil(self._count / self._n_workers))
        pieces: list[_Piece] = []
        size = 0
        while self._waiting and (not pieces or size + len(self._waiting[0].pixels) <= share):
            piece = self._waiting.popleft()
            self._count -= len(piece.pixels)
            if piece.request.is_wanted:
                pieces.append(piece)
                size += len(piece.pixels)
        return pieces

    def _finish(self, piece: _Piece, embeddings: Tensor) -> None:
        """Keep the embeddings of a piece; with the last one its request is answered."""
        request = piece.request
        with self._lock:
            request.embedded[piece.place] = embeddings
            if len(request.embedded) < len(request.pieces):
                return
        try:
            whole = torch.cat([request.embedded[piece.place] for piece in request.pieces])
            request.future.set_result(request.answer(whole))
        except Exception as error:
            self._fail(request, error)

    def _fail(self, request: _Request, error: Exception) -> None:
        with self._lock:
            if request.has_failed:
                return
            request.has_failed = True
        request.future.set_exception(error)
