"""Images of several requests embedded together, as a network takes many faster than each alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

# Images that are embedded together.
MOST = 64
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class _Job(Generic[_Answer]):
    pixels: Tensor
    answer: Callable[[Tensor], _Answer]
    future: Future[_Answer] = field(default_factory=Future)


class Batches:
    """Embeds what waits, a batch at a time, in a thread of its own.

    Args:
        embed: from images `(N, 3, S, S)` uint8 to embeddings `(N, D)`.
    """

    def __init__(self, embed: Callable[[Tensor], Tensor]) -> None:
        self._embed = embed
        self._waiting: deque[_Job[object]] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def submit(self, pixels: Tensor, answer: Callable[[Tensor], _Answer]) -> Future[_Answer]:
        """Embed images `(n, 3, S, S)` uint8 with those of others.

        Args:
            pixels: the images.
            answer: makes the result of their embeddings `(n, D)`; what it raises concerns no other.
        """
        job = _Job(pixels, answer)
        self._waiting.append(job)  # type: ignore[arg-type]
        # Whichever call comes first takes all that waits; the others find nothing to do.
        self._worker.submit(self._work)
        return job.future

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._worker.shutdown()

    def _work(self) -> None:
        jobs = self._next()
        if not jobs:
            return
        try:
            parts = self._embed(torch.cat([job.pixels for job in jobs])).split(
                [len(job.pixels) for job in jobs]
            )
        except Exception as error:  # each asks what became of its images
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, embeddings in zip(jobs, parts, strict=True):
            try:
                job.future.set_result(job.answer(embeddings))
            except Exception as error:
                job.future.set_exception(error)

    def _next(self) -> list[_Job[object]]:
        """The jobs of the next batch; one that is larger than a batch goes alone."""
        jobs: list[_Job[object]] = []
        count = 0
        while self._waiting and (not jobs or count + len(self._waiting[0].pixels) <= MOST):
            job = self._waiting.popleft()
            if job.future.set_running_or_notify_cancel():
                jobs.append(job)
                count += len(job.pixels)
        return jobs
