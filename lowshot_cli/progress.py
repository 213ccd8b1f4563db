"""Progress reports of the engine, how it is asked to stop, and how libraries are kept quiet."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One report.

    Attributes:
        stage: what is being done, such as `training`.
        done: units finished.
        total: units in all.
        unit: what `done` and `total` count.
        facts: other numbers by name, such as `loss`.
        important: whether output without a progress bar shows this report before the stage is
            finished, as at the end of an epoch.
        note: a line for people, such as a warning; shown once.
    """

    stage: str
    done: int
    total: int
    unit: str = "images"
    facts: Mapping[str, float] = field(default_factory=dict)
    important: bool = False
    note: str = ""

    @property
    def milestone(self) -> bool:
        """Whether output without a progress bar shows this report."""
        return self.important or self.done == self.total


OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


def silent(_: Progress) -> None:
    """Ignore a report."""


def never() -> bool:
    """Never ask to stop."""
    return False


@contextmanager
def silenced() -> Iterator[None]:
    """Keep warnings, logs and prints of libraries from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)
