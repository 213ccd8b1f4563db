"""The operating point: how large the bias of novel classes may be, and what it costs base classes.

A query goes to a novel class if its best novel score plus the bias exceeds its best base score. The
margin of a base query is the bias at which this happens: best base score minus best novel one.
So the sorted margins give the number of base queries that any bias loses, and the largest bias for
any number of losses. A tie counts as lost.

Sizes in shapes: T trials, W novel proxies per trial, C base classes, N base queries, n of which are
kept, D the size of an embedding, R that of a proxy, which is D or, with an offset, D + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.models.head import as_read, nearest_proxies

# Points of base accuracy.
DEFAULT_MAX_FORGETTING = 2.0
# A bias this far below a critical shift, as a share of the largest score if that is above 1, stays
# below it when scores are summed in another order.
_CLEARANCE = 1e-6


@dataclass(frozen=True)
class BaseQueries:
    """Base queries, reduced to what is needed to count those that novel proxies cost.

    A query that both the pristine and the present model get wrong cannot be lost, so it is left
    out.

    Attributes:
        embeddings: `(n, R)`, as proxies read them, of those right now and those right before.
        best: `(n,)` largest base score of each.
        right_before: `(n,)` bool, right under the pristine base model.
        right_now: `(n,)` bool, right under the present base proxies and backbone, among base
            classes alone.
        labels: `(n,)` int64, base class of each.
        total: number of base queries, right or wrong.
    """

    embeddings: Tensor
    best: Tensor
    right_before: Tensor
    right_now: Tensor
    labels: Tensor
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
            proxies: `(C, R)` of the base classes.
            embeddings: `(N, D)` unit embeddings of base queries.
            labels: `(N,)` int64 base classes.
            right_before: `(N,)` bool under the pristine model, if it differs from this one.
            nearest: the result of `nearest_proxies`, if it is known.
        """
        best, predicted = nearest or nearest_proxies(embeddings, proxies)
        right_now = predicted == labels
        before = right_now if right_before is None else right_before
        keep = before | right_now  # (N,), n of them true
        read = as_read(embeddings[keep], proxies)  # (n, R)
        return cls(
            embeddings=read,
            best=best[keep],
            right_before=before[keep],
            right_now=right_now[keep],
            labels=labels[keep],
            total=len(labels),
        )

    @classmethod
    def pooled(cls, parts: Sequence[BaseQueries]) -> BaseQueries:
        """The queries of several folds as one set, for margins `pooled_margins`."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            embeddings=torch.cat([part.embeddings for part in parts]),
            best=torch.cat([part.best for part in parts]),
            right_before=torch.cat([part.right_before for part in parts]),
            right_now=torch.cat([part.right_now for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            total=sum(part.total for part in parts),
        )

    def margins(self, proxies: Tensor) -> Tensor:
        """Margins `(T, n)` against the nearest of each trial's novel proxies `(T, W, R)`."""
        trials, ways, size = proxies.shape
        if ways == 1:
            return compute_margins(self.embeddings, self.best, proxies[:, 0])
        cosines = (proxies.reshape(-1, size) @ self.embeddings.T).view(trials, ways, -1)
        return self.best - cosines.amax(1)  # (n,) - (T, n)

    def critical_shifts(self, margins: Tensor, points: tuple[float, ...]) -> Tensor:
        """Shifts `(T, len(points))` below which each budget of base accuracy, in points, is kept.

        Only queries that were right before can be lost. Those that changed base proxies or a
        changed backbone already get wrong are lost at any shift: their margin is minus infinity.
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
    """What the novel proxies of many trials cost the base classes, from one matrix product.

    Args:
        proxies: `(T, W, R)` novel proxies of each trial.
        queries: base queries.
        bias: `(T,)` added to the novel scores.
        points: budgets of base accuracy, in points, ascending.

    Returns:
        Base accuracy `(T,)` in percent with the bias; for each budget the shift
        `(T, len(points))` of the novel scores below which no more than that is lost.
    """
    margins = queries.margins(proxies)  # (T, n)
    return queries.accuracy(margins, bias), queries.critical_shifts(margins, points)


def pooled_margins(parts: Sequence[BaseQueries], proxies: Sequence[Tensor]) -> Tensor:
    """Margins `(T, n)` of the queries of all folds.

    Args:
        parts: the queries of each fold.
        proxies: for each fold the novel proxies `(T, W, R)` made without its images.
    """
    margins = [part.margins(made) for part, made in zip(parts, proxies, strict=True)]
    return margins[0] if len(margins) == 1 else torch.cat(margins, 1)


def operating_bias(margins: Tensor, holdout: BaseQueries, max_forgetting: float) -> Tensor:
    """The largest novel bias that costs at most `max_forgetting` points on base images.

    Args:
        margins: `(T, n)` of the images against the novel proxies of each trial, which share one
            bias; none of the images shaped the proxies that it is compared with.
        holdout: the images.
        max_forgetting: points of base accuracy, against the pristine base model.

    Returns:
        `(T,)`. Where changed base weights alone cost more than that, the largest bias that costs
        nothing more. Where all images may be lost, the largest that leaves one. 0 where none is
        right.
    """
    shifts = holdout.critical_shifts(margins, (max_forgetting,))[:, 0]  # (T,)
    if bool(holdout.right_now.any()) and bool(shifts.isinf().any()):
        least, most = margins[:, holdout.right_now].aminmax(dim=1)  # (T,), (T,)
        shifts = torch.where(shifts == -torch.inf, least, shifts.minimum(most))
    largest = torch.cat([holdout.best.abs(), holdout.best.new_ones(1)]).amax()
    biases = shifts - _CLEARANCE * torch.maximum(shifts.abs(), largest)
    return torch.where(shifts.isfinite(), biases, torch.zeros_like(shifts))


def resolve_budget(max_forgetting: float | str | None, *, biased: bool = True) -> float | None:
    """The forgetting budget in points; None means bias 0.

    Args:
        max_forgetting: points, `none` for bias 0, or None for the default of the method.
        biased: whether the method has a bias by default; the paper's `imprint` has none.
    """
    if max_forgetting == "none" or (max_forgetting is None and not biased):
        return None
    return DEFAULT_MAX_FORGETTING if max_forgetting is None else float(max_forgetting)


def budget_setting(budget: float | None) -> float | str:
    """The setting `max_forgetting` that stands for a budget in points, whatever the method."""
    return "none" if budget is None else budget


def allowed_losses(points: float, n_queries: int) -> int:
    """How many of `n_queries` may turn wrong within a budget of `points`: floor(points·n/100)."""
    # The small term keeps 2.3 points of 1000 queries at 23 in binary floating point.
    return math.floor(points * n_queries / 100 + 1e-9)


def critical_shifts(margins: Tensor, budgets: Sequence[int]) -> Tensor:
    """The shifts at which more queries are lost than each budget allows.

    Args:
        margins: `(T, n)` fp32, of the base queries that the base model gets right; minus infinity
            for one that the changed model already gets wrong.
        budgets: how many queries may be lost, ascending.

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
    """The values at these ascending places of each trial's sorted values `(T, n)`."""
    if values.device.type == "cpu":  # NumPy's selection is faster there
        return torch.from_numpy(np.partition(values.numpy(), places, axis=1)[:, places])
    return values.topk(places[-1] + 1, largest=False).values[:, torch.tensor(places)]


def compute_margins(queries: Tensor, best_base: Tensor, proxies: Tensor) -> Tensor:
    """Margins `(T, n)` of queries `(n, R)` against one novel proxy per trial, `(T, R)`.

    Args:
        queries: `(n, R)` embeddings as proxies read them.
        best_base: `(n,)` largest base score of each query.
        proxies: `(T, R)`.
    """
    # best_base - proxies @ queries.T, in one pass over the result.
    return torch.addmm(best_base, proxies, queries.T, alpha=-1)
