"""Metrics and their intervals. Accuracies are in percent, differences in points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
# Names of the metrics of a trial, in rows, summaries and JSON.
MetricName = Literal[
    "novel_accuracy",
    "base_accuracy",
    "global_accuracy",
    "harmonic_mean",
    "forgetting",
    "ncr_at_2",
    "ncr_at_5",
]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
Interval = tuple[float, float]


def harmonic_mean(base: FloatArray, novel: FloatArray) -> FloatArray:
    """2·base·novel / (base + novel), elementwise; 0 where both are 0."""
    total = base + novel
    return np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total > 0)


def t_interval(values: FloatArray, level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean of independent values; None for fewer than two."""
    return t_interval_of_sums(len(values), values.sum(), (values**2).sum(), level)


def t_interval_of_sums(
    count: float, total: float, squares: float, level: float = 0.95
) -> Interval | None:
    """The same from the number of values, their sum and the sum of their squares."""
    if count < 2:
        return None
    mean = float(total / count)
    variance = max(float(squares - count * mean**2), 0.0) / (count - 1)
    from scipy.special import stdtrit  # takes a quarter of a second to import

    half = float(stdtrit(count - 1, (1 + level) / 2)) * (variance / count) ** 0.5
    return mean - half, mean + half


@dataclass(frozen=True)
class Metric:
    """A metric over the trials of one cell, in percent or points.

    Attributes:
        mean: mean over class means.
        std_between: standard deviation over class means.
        std_within: standard deviation over the trials of a class, pooled over classes.
        ci95: t interval over class means; None for fewer than two classes.
    """

    mean: float
    std_between: float
    std_within: float
    ci95: Interval | None

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return {
            "mean": self.mean,
            "std_between": self.std_between,
            "std_within": self.std_within,
            "ci95": interval_to_json(self.ci95),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Metric:
        """Read back what `to_json` gave."""
        return cls(
            values["mean"],
            values["std_between"],
            values["std_within"],
            interval_from_json(values["ci95"]),
        )


def interval_to_json(interval: Interval | None) -> list[float] | None:
    """The two ends as a list."""
    return None if interval is None else list(interval)


def interval_from_json(ends: Sequence[float] | None) -> Interval | None:
    """Read back what `interval_to_json` gave."""
    return None if ends is None else (ends[0], ends[1])


def summarise(counts: FloatArray, sums: FloatArray, squares: FloatArray) -> Metric:
    """Summarise a metric from per-class sums, so that no trial needs to be kept.

    Trials of one class share its difficulty, so the interval is over class means; over trials it
    would be too narrow.

    Args:
        counts: `(C,)` trials of each class.
        sums: `(C,)` sum of the metric over its trials.
        squares: `(C,)` sum of squares.
    """
    means = sums / counts
    residual = np.maximum(squares - counts * means**2, 0).sum()
    freedom = (counts - 1).sum()
    return Metric(
        mean=float(means.mean()),
        std_between=float(means.std(ddof=1)) if len(means) > 1 else 0.0,
        std_within=float(np.sqrt(residual / freedom)) if freedom > 0 else 0.0,
        ci95=t_interval(means),
    )
