"""Weight imprinting (Qi, Brown, Lowe: "Low-Shot Learning with Imprinted Weights", CVPR 2018).

Embeddings x and class weights w both lie on the unit sphere, so a class's weight is a template and
an embedding of the class is its best guess. Leading dimensions `...` run over trials and classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.metrics import allowed_losses, margins_of, turning_points
from lowshot_cli.model import nearest_rows

UNCALIBRATED_METHODS = frozenset({"imprint", "random"})
DEFAULT_MAX_FORGETTING = 2.0
SHRINKAGE = 0.5
# Covariances of next to nothing, such as of one image a class, still have an inverse.
_LEAST_RIDGE = 1e-6
# A bias this far below a turning point stays below it when the cosines are summed in another order.
_CLEARANCE = 1e-6


def imprint(support: Tensor) -> Tensor:
    """The proxy of a class is the normalised mean of its support embeddings (section 3.2, eq. 4-5).

    Args:
        support: `(..., k, D)` unit embeddings, or means over augmented views of one image each.

    Returns:
        `(..., D)` unit rows.
    """
    return F.normalize(support.mean(-2), dim=-1)


def shrunk_precision(within: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """Inverse `(D, D)` of a covariance `(D, D)` with a multiple of its mean variance added.

    Args:
        within: within-class covariance of base embeddings.
        shrinkage: the multiple; more of it brings `whitened` closer to `imprint`.
    """
    size = len(within)
    ridge = (shrinkage * within.trace() / size).clamp(min=_LEAST_RIDGE) * torch.eye(size)
    precision: Tensor = torch.linalg.inv(within + ridge)
    return precision


def whitened(support: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """The direction that best tells a class from all others if all spread alike.

    w = normalise((m - mu) P), the linear discriminant of Fisher (1936) with shared statistics as in
    Hariharan, Malik, Ramanan: "Discriminative decorrelation", ECCV 2012, eq. 5. Directions in which
    base classes vary within themselves count less than in the plain mean.

    Args:
        support: `(..., k, D)` unit embeddings.
        mean: `(D,)` mean over base classes, mu.
        precision: `(D, D)` from `shrunk_precision`, P.

    Returns:
        `(..., D)` unit rows.
    """
    return F.normalize((support.mean(-2) - mean) @ precision, dim=-1)


def calibrated(
    support: Tensor, proxies: Tensor, sharpness: float = 16.0, share: float = 0.5
) -> Tensor:
    """A prototype drawn towards the base classes it resembles.

    From a few shots a novel prototype is biased, and base prototypes like it tell which way (Wang
    et al., TEEN: "Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration",
    NeurIPS 2023, eq. 5-7). Base rows stand in for base prototypes.

    Args:
        support: `(..., k, D)` unit embeddings.
        proxies: `(C, D)` unit base rows.
        sharpness: factor on the cosines whose softmax weighs the base rows.
        share: of the base rows in the result.

    Returns:
        `(..., D)` unit rows.
    """
    prototype = imprint(support)
    resembled = (sharpness * prototype @ proxies.T).softmax(-1) @ proxies
    return F.normalize(torch.lerp(prototype, resembled, share), dim=-1)


def cluster_means(support: Tensor, count: int, rounds: int = 10) -> Tensor:
    """Means of a class's clusters, for several proxies a class (section 3.3.1 of the paper).

    K-means (Lloyd 1982), begun at the first support and at those farthest from the ones begun at.

    Args:
        support: `(..., k, D)` unit embeddings.
        count: clusters wanted; there are no more than supports.
        rounds: of assigning and averaging.

    Returns:
        `(..., min(count, k), D)`, not normalised.
    """
    begun = [support[..., 0, :]]
    distance = support.new_full(support.shape[:-1], torch.inf)
    for _ in range(min(count, support.shape[-2]) - 1):
        step = (support - begun[-1].unsqueeze(-2)).square().sum(-1)
        distance = torch.minimum(distance, step)
        farthest = distance.argmax(-1)[..., None, None]
        begun.append(support.take_along_dim(farthest, -2).squeeze(-2))
    means = torch.stack(begun, -2)
    for _ in range(rounds):
        owner = torch.cdist(support, means).argmin(-1)
        member = F.one_hot(owner, means.shape[-2]).to(support.dtype)
        counts = member.sum(-2).unsqueeze(-1)
        means = torch.where(counts > 0, member.mT @ support / counts.clamp(min=1), means)
    return means


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
            return margins_of(self.embeddings, self.best, rows[:, 0])
        cosines = (rows.reshape(-1, size) @ self.embeddings.T).view(trials, ways, -1)
        return self.best - cosines.amax(1)

    def turning_points(self, margins: Tensor, points: tuple[float, ...]) -> Tensor:
        """Shifts `(T, len(points))` below which at most that many points of base accuracy go."""
        if not bool(self.right_now.all() & self.right_before.all()):
            margins = margins.masked_fill(~self.right_now, -torch.inf)[:, self.right_before]
        return turning_points(margins, [allowed_losses(share, self.total) for share in points])

    def accuracy(self, margins: Tensor, bias: Tensor) -> Tensor:
        """Base accuracy `(T,)` in percent with the novel bias `(T,)`."""
        kept = margins > bias[:, None]
        if not bool(self.right_now.all()):
            kept &= self.right_now
        return 100 * kept.sum(1, dtype=torch.float64) / self.total


def operating_bias(rows: Tensor, holdout: BaseQueries, max_forgetting: float) -> Tensor:
    """The largest novel bias that costs at most `max_forgetting` points on the base hold-out.

    Args:
        rows: `(T, W, D)` novel rows of each trial, sharing one bias.
        holdout: base hold-out queries, used for nothing else that shaped the rows.
        max_forgetting: points of base accuracy, against the pristine base model.

    Returns:
        `(T,)`. 0 where no bias could cost as much.
    """
    shifts = holdout.turning_points(holdout.margins(rows), (max_forgetting,))[:, 0]
    return torch.where(shifts.isfinite(), shifts - _CLEARANCE, torch.zeros_like(shifts))


def class_statistics(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over class means `(D,)` and covariance within classes `(D, D)` of `(N, D)`."""
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), embeddings.shape[1]).index_add_(0, labels, embeddings)
    means = sums / counts[:, None]
    centred = embeddings - means[labels]
    return means.mean(0), centred.T @ centred / len(embeddings)


def budget_of(method: str, max_forgetting: float | str | None) -> float | None:
    """The forgetting budget in points; None means bias 0.

    `imprint` and `random` are the paper's, which has no bias, unless a budget is asked for.
    """
    if max_forgetting == "none" or (max_forgetting is None and method in UNCALIBRATED_METHODS):
        return None
    return DEFAULT_MAX_FORGETTING if max_forgetting is None else float(max_forgetting)
