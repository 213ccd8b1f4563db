"""The summary of a sweep, as `results.json` holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lowshot_cli.config.methods import find_method
from lowshot_cli.evaluation.statistics import (
    METRICS,
    Interval,
    Metric,
    MetricName,
    interval_from_json,
    interval_to_json,
)

Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """Results of one method with one number of shots.

    Attributes:
        method: as in `--method`.
        shots: support images per class.
        n_trials: number of trials.
        n_classes: number of novel classes in them.
        metrics: by name.
        session: number of the session in a sequence, from 1; None without a sequence.
    """

    method: str
    shots: int
    n_trials: int
    n_classes: int
    metrics: Mapping[MetricName, Metric]
    session: int | None = None

    def to_json(self) -> Json:
        """As in the `--json` contract."""
        session = {} if self.session is None else {"session": self.session}
        metrics: Json = {name: metric.to_json() for name, metric in self.metrics.items()}
        return {
            "method": self.method,
            "shots": self.shots,
            **session,
            "n_trials": self.n_trials,
            "n_classes": self.n_classes,
            **metrics,
        }

    @classmethod
    def from_json(cls, values: Json) -> Cell:
        """Read back what `to_json` gave."""
        return cls(
            _method(values["method"]),
            values["shots"],
            values["n_trials"],
            values["n_classes"],
            {name: Metric.from_json(values[name]) for name in METRICS},
            values.get("session"),
        )


@dataclass(frozen=True)
class MeanDifference:
    """Mean gain of one method over another, over class means, in points."""

    mean: float
    ci95: Interval | None


@dataclass(frozen=True)
class PairedDifference:
    """Two methods on the same draws.

    Attributes:
        methods: the method measured, and the one it is compared with.
        shots: support images per class.
        metrics: differences by name; empty where the two share no class.
    """

    methods: tuple[str, str]
    shots: int
    metrics: Mapping[MetricName, MeanDifference]

    def to_json(self) -> Json:
        """As in the `--json` contract."""
        found: Json = {
            name: {"mean": each.mean, "ci95": interval_to_json(each.ci95)}
            for name, each in self.metrics.items()
        }
        return {"methods": list(self.methods), "shots": self.shots, **found}

    @classmethod
    def from_json(cls, values: Json) -> PairedDifference:
        """Read back what `to_json` gave."""
        second, first = values["methods"]
        metrics = {
            name: MeanDifference(values[name]["mean"], interval_from_json(values[name]["ci95"]))
            for name in METRICS
            if name in values
        }
        return cls((_method(second), _method(first)), values["shots"], metrics)


# Per class of a group the indices of its support images.
Supports = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassResult:
    """One novel class, or one group of classes, in one cell.

    Attributes:
        method: as in `--method`.
        shots: support images per class.
        name: the class or the group.
        metrics: means over its trials, by name.
        confused_with: the base class that took most of its test images.
        confused_percent: percent of its test images that this class took, mean over the trials.
        best_trial: number of the trial with the largest NCR@2.
        worst_trial: number of the trial with the smallest.
        best_support: training images that the best trial drew.
        worst_support: training images that the worst trial drew.
    """

    method: str
    shots: int
    name: str
    metrics: Mapping[MetricName, float]
    confused_with: str
    confused_percent: float
    best_trial: int
    worst_trial: int
    best_support: Supports = ()
    worst_support: Supports = ()

    def to_json(self) -> Json:
        """As in the `--json` contract."""
        return {
            "method": self.method,
            "shots": self.shots,
            "class": self.name,
            **{str(name): mean for name, mean in self.metrics.items()},
            "confused_with": self.confused_with,
            "confused_percent": self.confused_percent,
            "best_trial": self.best_trial,
            "worst_trial": self.worst_trial,
            "best_support": [list(each) for each in self.best_support],
            "worst_support": [list(each) for each in self.worst_support],
        }

    @classmethod
    def from_json(cls, values: Json) -> ClassResult:
        """Read back what `to_json` gave, here or in version 0.1.0."""
        values = {_OLD_NAMES.get(key, key): value for key, value in values.items()}
        return cls(
            method=_method(values["method"]),
            shots=values["shots"],
            name=values["class"],
            metrics={name: values[name] for name in METRICS},
            confused_with=values["confused_with"],
            confused_percent=values["confused_percent"],
            best_trial=values["best_trial"],
            worst_trial=values["worst_trial"],
            best_support=tuple(map(tuple, values["best_support"])),
            worst_support=tuple(map(tuple, values["worst_support"])),
        )


# Names in version 0.1.0.
_OLD_NAMES = {"swallowed_by": "confused_with", "swallowed": "confused_percent"}


def _method(name: str) -> str:
    """The current name of a method."""
    known = find_method(name)
    return known.name if known else name


@dataclass(frozen=True)
class Timing:
    """How long a sweep took; if it was resumed, since then."""

    embed_seconds: float
    trials_seconds: float
    trials_per_second: float


@dataclass(frozen=True)
class SweepSummary:
    """The content of `results.json`.

    Attributes:
        cells: one per method and number of shots; in a sequence, after the last session.
        base_accuracy_before: test accuracy of the base model, percent.
        dropped_duplicates: test images left out, as they resemble a training image.
        avoided_duplicates: training images of novel classes that were drawn only if there were no
            others, as they resemble test images.
        timing: how long it took.
        run_dir: the run folder.
        versions: of the package and its libraries.
        hardware: what it ran on.
        ways: novel classes that a trial adds; 1 in a sequence.
        left_out: novel classes left over, too few for another group.
        paired: differences between methods; empty in a sequence.
        classes: results of each class; empty in a sequence.
        sessions: results of each session; empty without a sequence.
    """

    cells: tuple[Cell, ...]
    base_accuracy_before: float
    dropped_duplicates: int
    avoided_duplicates: int
    timing: Timing
    run_dir: str
    versions: Mapping[str, str]
    hardware: str
    ways: int = 1
    left_out: tuple[str, ...] = ()
    paired: tuple[PairedDifference, ...] = ()
    classes: tuple[ClassResult, ...] = ()
    sessions: tuple[Cell, ...] = ()

    @property
    def is_sequence(self) -> bool:
        """Whether the sweep added classes in a sequence of sessions."""
        return bool(self.sessions)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order in which they were named."""
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    def sorted_cells(self) -> list[Cell]:
        """Cells by method, in the order in which methods were named, then by number of shots."""
        return sorted(self.cells, key=lambda c: (self.methods.index(c.method), c.shots))

    def to_json(self) -> Json:
        """As in the `--json` contract."""
        if self.is_sequence:
            found: Json = {"cells": _to_json(self.cells), "sessions": _to_json(self.sessions)}
        else:
            found = {
                "ways": self.ways,
                "left_out": list(self.left_out),
                "cells": _to_json(self.cells),
                "paired": _to_json(self.paired),
                "classes": _to_json(self.classes),
            }
        return {
            **found,
            "base_accuracy_before": self.base_accuracy_before,
            "dropped_duplicates": self.dropped_duplicates,
            "avoided_duplicates": self.avoided_duplicates,
            "timing": asdict(self.timing),
            "run_dir": self.run_dir,
            "versions": dict(self.versions),
            "hardware": self.hardware,
        }

    @classmethod
    def from_json(cls, values: Json) -> SweepSummary:
        """Read back what `to_json` gave, here or in version 0.1.0.

        Raises:
            KeyError, TypeError, ValueError: it is not a summary.
        """
        return cls(
            cells=tuple(map(Cell.from_json, values["cells"])),
            base_accuracy_before=values["base_accuracy_before"],
            dropped_duplicates=values["dropped_duplicates"],
            avoided_duplicates=values["avoided_duplicates"],
            timing=Timing(**values["timing"]),
            run_dir=values["run_dir"],
            versions=values["versions"],
            hardware=values["hardware"],
            ways=values.get("ways", 1),
            left_out=tuple(values.get("left_out", ())),
            paired=tuple(map(PairedDifference.from_json, values.get("paired", ()))),
            classes=tuple(map(ClassResult.from_json, values.get("classes", ()))),
            sessions=tuple(map(Cell.from_json, values.get("sessions", ()))),
        )


def _to_json(found: Sequence[Cell | PairedDifference | ClassResult]) -> list[Json]:
    return [each.to_json() for each in found]
