"""The operating point: how far novel classes may push, and what that costs base classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.models.head import nearest_rows

DEFAULT_MAX_FORGETTING = 2.0


# A bias this far below a turning point stays below it when the cosines are summed in another order.
_CLEARANCE = 1e-6


@dataclass(frozen=True)
class BaseQueries:
    """Base queries, as far as they bear on what novel rows cost.

    Attributes:
        embeddings: `(n, D)` of the queries that the base model gets, or got, right.
        best: `(n,)` largest base cosine of each.
        right_before: `(n,)` bool, right under the pristine base model.
        right_now: `(n,)` bool, right under today's base rows and backbone, novel classes aside.
        total: number of base queries, right or wrong.
    """

    embeddings: Tensor
    best: Tensor
    right_before: Tensor
    right_now: Tensor
    total: int

    @classmethod
    def of(
        cls,
        proxies: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        right_before: Tensor | None = None,
        nearest: tuple[Tensor, Tensor] | None = None,
    ) -> BaseQueries:
        """Classify base queries once for all trials.

        Args:
            proxies: `(C, D)` base rows.
            embeddings: `(N, D)` unit embeddings of base queries.
            labels: `(N,)` int64 rows they belong to.
            right_before: `(N,)` bool under the pristine model, where it differs from this one.
            nearest: what `nearest_rows` says of them, where that is known.
        """
        best, predicted = nearest or nearest_rows(embeddings, proxies)
        right_now = predicted == labels
        before = right_now if right_before is None else right_before
        keep = before | right_now
        return cls(embeddings[keep], best[keep], before[keep], right_now[keep], len(labels))

    def margins(self, rows: Tensor) -> Tensor:
        """Margins `(T, n)` against the nearest of each trial's novel rows `(T, W, D)`."""
        trials, ways, size = rows.shape
        if ways == 1:
            return compute_margins(self.embeddings, self.best, rows[:, 0])
        cosines = (rows.reshape(-1, size) @ self.embeddings.T).view(trials, ways, -1)
        return self.best - cosines.amax(1)

    def critical_shifts(self, margins: Tensor, points: tuple[float, ...]) -> Tensor:
        """Shifts `(T, len(points))` below which at most that many points of base accuracy go."""
        if not bool(self.right_now.all() & self.right_before.all()):
            margins = margins.masked_fill(~self.right_now, -torch.inf)[:, self.right_before]
        return critical_shifts(margins, [allowed_losses(share, self.total) for share in points])

    def accuracy(self, margins: Tensor, bias: Tensor) -> Tensor:
        """Base accuracy `(T,)` in percent with the novel bias `(T,)`."""
        kept = margins > bias[:, None]
        if not bool(self.right_now.all()):
            kept &= self.right_now
        return 100 * kept.sum(1, dtype=torch.float64) / self.total


def score_base(
    proxies: Tensor, queries: BaseQueries, bias: Tensor, points: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """What the novel proxies of many trials cost base classes, with one product for all of it.

    Args:
        proxies: `(T, W, D)` unit novel proxies of each trial.
        queries: base queries.
        bias: `(T,)` added to the novel cosines.
        points: of base accuracy that may be lost, ascending.

    Returns:
        Base accuracy `(T,)` in percent with the bias; `(T, len(points))` the shifts of the novel
        cosines below which at most so many points are lost.
    """
    margins = queries.margins(proxies)  # (T, n)
    return queries.accuracy(margins, bias), queries.critical_shifts(margins, points)


def operating_bias(rows: Tensor, holdout: BaseQueries, max_forgetting: float) -> Tensor:
    """The largest novel bias that costs at most `max_forgetting` points on the base hold-out.

    Args:
        rows: `(T, W, D)` novel rows of each trial, sharing one bias.
        holdout: base hold-out queries, used for nothing else that shaped the rows.
        max_forgetting: points of base accuracy, against the pristine base model.

    Returns:
        `(T,)`. 0 where no bias could cost as much.
    """
    shifts = holdout.critical_shifts(holdout.margins(rows), (max_forgetting,))[:, 0]
    return torch.where(shifts.isfinite(), shifts - _CLEARANCE, torch.zeros_like(shifts))


def resolve_budget(max_forgetting: float | str | None, *, biased: bool = True) -> float | None:
    """The forgetting budget in points; None means bias 0.

    Args:
        max_forgetting: points, `none` for bias 0, or None for the default of the method.
        biased: whether the method has a bias by default; the paper's `imprint` has none.
    """
    if max_forgetting == "none" or (max_forgetting is None and not biased):
        return None
    return DEFAULT_MAX_FORGETTING if max_forgetting is None else float(max_forgetting)


def allowed_losses(points: float, n_queries: int) -> int:
    """How many of `n_queries` may turn wrong within a budget of `points`: floor(points·n/100)."""
    # The small term keeps 2.3 points of 1000 queries at 23 in binary floating point.
    return math.floor(points * n_queries / 100 + 1e-9)


def critical_shifts(margins: Tensor, budgets: Sequence[int]) -> Tensor:
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


def compute_margins(queries: Tensor, best_base: Tensor, rows: Tensor) -> Tensor:
    """Margins `(T, n)` of queries `(n, D)` against one novel row per trial, `(T, D)`.

    Args:
        queries: `(n, D)` unit embeddings.
        best_base: `(n,)` largest base cosine of each query.
        rows: `(T, D)` unit rows.
    """
    return torch.addmm(best_base, rows, queries.T, alpha=-1)
