"""Metrics as pure functions of tensors. Accuracies are in percent, differences in points.

A margin is how far a query's best base cosine lies above its novel one. With every novel cosine
shifted by s, a base query stays right while its margin is above s, and a novel query is right once
its margin is below s; ties count as wrong for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

FloatArray = npt.NDArray[np.float64]


def harmonic_mean(base: FloatArray, novel: FloatArray) -> FloatArray:
    """2·base·novel / (base + novel) elementwise, 0 where both are 0."""
    total = base + novel
    return np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total > 0)


def t_interval(values: FloatArray, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean of independent values; None for fewer than two."""
    return t_interval_of_sums(len(values), values.sum(), (values**2).sum(), level)


def t_interval_of_sums(
    count: float, total: float, squares: float, level: float = 0.95
) -> tuple[float, float] | None:
    """The same from the number of values, their sum and the sum of their squares."""
    if count < 2:
        return None
    mean = float(total / count)
    variance = max(float(squares - count * mean**2), 0.0) / (count - 1)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * (variance / count) ** 0.5
    return mean - half, mean + half


@dataclass(frozen=True)
class Summary:
    """A metric over the trials of one cell.

    Attributes:
        mean: mean over class means.
        std_between: standard deviation over class means.
        std_within: standard deviation over the trials of a class, pooled over classes.
        ci95: t interval over class means, None for fewer than two classes.
    """

    mean: float
    std_between: float
    std_within: float
    ci95: tuple[float, float] | None


def summarise(counts: FloatArray, sums: FloatArray, squares: FloatArray) -> Summary:
    """Summarise a metric from per-class sums, so that no trial needs to be kept.

    Trials of one class share its difficulty, so the interval is taken over the class means and not
    over the trials, which would make it too narrow.

    Args:
        counts: `(C,)` trials of each class.
        sums: `(C,)` sum of the metric over them.
        squares: `(C,)` sum of its squares.
    """
    means = sums / counts
    residual = np.maximum(squares - counts * means**2, 0).sum()
    freedom = (counts - 1).sum()
    return Summary(
        mean=float(means.mean()),
        std_between=float(means.std(ddof=1)) if len(means) > 1 else 0.0,
        std_within=float(np.sqrt(residual / freedom)) if freedom > 0 else 0.0,
        ci95=t_interval(means),
    )
