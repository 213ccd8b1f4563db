"""The operating point: how far novel classes may push, and what that costs base classes.

A query goes to a novel class where its novel cosine plus the novel bias beats its best base cosine.
The margin of a base query is the bias at which that happens: best base cosine minus best novel one.
So sorted margins tell for every bias how many base queries are lost, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.models.head import nearest_proxies

DEFAULT_MAX_FORGETTING = 2.0


# A bias this far below a critical shift stays below it when cosines are summed in another order.
_CLEARANCE = 1e-6


@dataclass(frozen=True)
class BaseQueries:
    """Base queries, reduced to what decides how much novel proxies cost.

    A query that the base model gets wrong before and after cannot be lost, so it is left out.

    Attributes:
        embeddings: `(n, D)` of the queries that are right now or were right before.
        best: `(n,)` largest base cosine of each.
        right_before: `(n,)` bool, right under the pristine base model.
        right_now: `(n,)` bool, right under the present base proxies and backbone, among base
            classes alone.
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
            proxies: `(C, D)` of the base classes.
            embeddings: `(N, D)` unit embeddings of base queries.
            labels: `(N,)` int64 base classes.
            right_before: `(N,)` bool under the pristine model, where it differs from this one.
            nearest: the result of `nearest_proxies`, where that is known.
        """
        best, predicted = nearest or nearest_proxies(embeddings, proxies)
        right_now = predicted == labels
        before = right_now if right_before is None else right_before
        keep = before | right_now  # (N,), of which n are true
        return cls(embeddings[keep], best[keep], before[keep], right_now[keep], len(labels))

    def margins(self, proxies: Tensor) -> Tensor:
        """Margins `(T, n)` against the nearest of each trial's novel proxies `(T, W, D)`."""
        trials, ways, size = proxies.shape
        if ways == 1:
            return compute_margins(self.embeddings, self.best, proxies[:, 0])
        cosines = (proxies.reshape(-1, size) @ self.embeddings.T).view(trials, ways, -1)
        return self.best - cosines.amax(1)  # (n,) - (T, n)

    def critical_shifts(self, margins: Tensor, points: tuple[float, ...]) -> Tensor:
        """Shifts `(T, len(points))` below which at most that many points of base accuracy are lost.

        Only queries that were right before count as lost. Those among them that changed base
        proxies or a changed backbone turned wrong are lost at any shift.
        """
        if not bool(self.right_now.all() & self.right_before.all()):
            margins = margins.masked_fill(~self.right_now, -torch.inf)[:, self.right_before]
        return critical_shifts(margins, [allowed_losses(share, self.total) for share in points])

    def accuracy(self, margins: Tensor, bias: Tensor) -> Tensor:
        """Base accuracy `(T,)` in percent with the novel bias `(T,)`."""
        kept = margins > bias[:, None]  # (T, n); a tie is lost
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


def operating_bias(proxies: Tensor, holdout: BaseQueries, max_forgetting: float) -> Tensor:
    """The largest novel bias that costs at most `max_forgetting` points on the base hold-out.

    Args:
        proxies: `(T, W, D)` novel proxies of each trial, sharing one bias.
        holdout: base hold-out queries, none of which shaped the proxies.
        max_forgetting: points of base accuracy, against the pristine base model.

    Returns:
        `(T,)`; 0 where no bias costs more than that.
    """
    shifts = holdout.critical_shifts(holdout.margins(proxies), (max_forgetting,))[:, 0]
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
        margins: `(T, n)` fp32, of the base queries that the base model gets right; minus infinity
            for one that changed base proxies have already turned wrong.
        budgets: how many may be lost, ascending.

    Returns:
        `(T, len(budgets))`: per budget b the (b + 1)-th smallest margin. Any smaller shift loses at
        most b queries. Infinity where no shift loses too many.
    """
    n_queries = margins.shape[1]
    within = [budget for budget in budgets if budget < n_queries]  # the others allow any shift
    result = margins.new_full((len(margins), len(budgets)), torch.inf)
    if within:
        result[:, : len(within)] = _smallest(margins, within)
    return result


def _smallest(values: Tensor, places: list[int]) -> Tensor:
    """The values at these places, ascending, of each sorted `(n,)` of `(T, n)`."""
    if values.device.type == "cpu":  # where NumPy's selection is the faster one
        return torch.from_numpy(np.partition(values.numpy(), places, axis=1)[:, places])
    return values.topk(places[-1] + 1, largest=False).values[:, torch.tensor(places)]


def compute_margins(queries: Tensor, best_base: Tensor, proxies: Tensor) -> Tensor:
    """Margins `(T, n)` of queries `(n, D)` against one novel proxy per trial, `(T, D)`.

    Args:
        queries: `(n, D)` unit embeddings.
        best_base: `(n,)` largest base cosine of each query.
        proxies: `(T, D)` unit proxies.
    """
    # best_base - proxies @ queries.T, in one pass over the result.
    return torch.addmm(best_base, proxies, queries.T, alpha=-1)
