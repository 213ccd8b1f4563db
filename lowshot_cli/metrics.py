"""Metrics as pure functions of tensors. Accuracies are in percent, differences in points.

A margin is how far a query's best base cosine lies above its novel one. With every novel cosine
shifted by s, a base query stays right while its margin is above s, and a novel query is right once
its margin is below s; ties count as wrong for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor

FloatArray = npt.NDArray[np.float64]


def harmonic_mean(base: FloatArray, novel: FloatArray) -> FloatArray:
    """2·base·novel / (base + novel) elementwise, 0 where both are 0."""
    total = base + novel
    return np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total > 0)


def allowed_losses(points: float, n_queries: int) -> int:
    """How many of `n_queries` may turn wrong within a budget of `points`: floor(points·n/100)."""
    # The small term keeps 2.3 points of 1000 queries at 23 in binary floating point.
    return math.floor(points * n_queries / 100 + 1e-9)


def turning_points(margins: Tensor, budgets: Sequence[int]) -> Tensor:
    """The shifts at which more queries are lost than each budget allows.

    Args:
        margins: `(T, n)` fp32, margins of the base queries that the base model gets right; minus
            infinity for one that changed base weights have already turned wrong.
        budgets: how many may be lost, ascending.

    Returns:
        `(T, len(budgets))`: per budget b the (b + 1)-th smallest margin. Any smaller shift loses at
        most b queries. Infinity where no shift loses too many.
    """
    n_queries = margins.shape[1]
    within = [budget for budget in budgets if budget < n_queries]
    result = margins.new_full((len(margins), len(budgets)), torch.inf)
    if within:
        result[:, : len(within)] = _smallest(margins, within)
    return result


def _smallest(values: Tensor, places: list[int]) -> Tensor:
    """What stands at these places, ascending, in each row of `(T, n)` once it is sorted."""
    if values.device.type == "cpu":  # where NumPy's selection is the faster one
        return torch.from_numpy(np.partition(values.numpy(), places, axis=1)[:, places])
    return values.topk(places[-1] + 1, largest=False).values[:, torch.tensor(places)]


def margins_of(queries: Tensor, best_base: Tensor, rows: Tensor) -> Tensor:
    """Margins `(T, n)` of queries `(n, D)` against one novel row per trial, `(T, D)`.

    Args:
        queries: `(n, D)` unit embeddings.
        best_base: `(n,)` largest base cosine of each query.
        rows: `(T, D)` unit rows.
    """
    return torch.addmm(best_base, rows, queries.T, alpha=-1)


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
