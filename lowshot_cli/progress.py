"""What the engine reports while it works, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One report.

    Attributes:
        stage: what is being done, such as `training`.
        done: units finished.
        total: units in all.
        unit: what is counted.
        facts: further numbers by name, such as `loss`.
        milestone: whether a log without a progress bar should show this report.
        note: a line for people, such as a warning; shown once.
    """

    stage: str
    done: int
    total: int
    unit: str = "images"
    facts: Mapping[str, float] = field(default_factory=dict)
    milestone: bool = False
    note: str = ""


OnProgress = Callable[[Progress], None]


ShouldStop = Callable[[], bool]


def silent(_: Progress) -> None:
    """Report to nobody."""


def never() -> bool:
    """Go on to the end."""
    return False
