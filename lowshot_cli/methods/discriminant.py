"""Linear discriminants: base and novel classes scored in one currency, log odds.

If the embeddings x of every class have a Gaussian distribution with one covariance S, and m is the
mean of a class, the logarithm of its density is, up to a term that all classes share,

    (m - mu)' P (x - mu) - 1/2 (m - mu)' P (m - mu)    with P, the inverse of S, shrunk

(Fisher 1936; with shared statistics Hariharan, Malik, Ramanan: "Discriminative decorrelation", ECCV
2012). It is linear in x, and the mean of a few supports gives the score of a novel class. A proxy
`(D + 1)` holds the weights and, as last number, the offset.

A mean of few images is noisy, so the covariance of novel classes is shrunk further than that of
base classes, which makes their scores larger or smaller. Scores are therefore divided by units, one
for each way to shrink, such that one scale turns all of them into log odds.

Sizes in shapes: D the size of an embedding, C base classes, N base images, k supports of a class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

# At least this is added to a diagonal, so that even a zero covariance (one image a class) has an
# inverse.
_LEAST_RIDGE = 1e-6
# Images whose scatter is added up at once.
_AT_ONCE = 8192


@dataclass(frozen=True)
class Statistics:
    """What base images say together: the means of their classes, and the scatter around them.

    Attributes:
        centre: `(D,)` mean over the means of the classes, mu; unchanged when a class is removed.
        n_centre: number of classes that `centre` is the mean over.
        means: `(C, D)` of the classes.
        counts: `(C,)` int64, images of each class.
        scatter: `(D, D)` sum over images of the outer product of their distance to their mean.
        total: number of images in `scatter`.
        shrinkage: multiple of its mean variance that is added to the covariance for base classes
            (Ledoit and Wolf 2004). Without it, directions in which base classes hardly vary would
            dominate the inverse, although their small variance is mostly chance.
        novel_shrinkage: the same for novel classes.
        unit: of the scores of base classes.
        novel_unit: of those of novel classes.
        round_unit: of scores by a covariance that is the same in all directions.
    """

    centre: Tensor
    n_centre: int
    means: Tensor
    counts: Tensor
    scatter: Tensor
    total: int
    shrinkage: float
    novel_shrinkage: float
    unit: float = 1.0
    novel_unit: float = 1.0
    round_unit: float = 1.0

    @classmethod
    def of(
        cls,
        embeddings: Tensor,
        labels: Tensor,
        shrinkage: float,
        novel_shrinkage: float | None = None,
    ) -> Statistics:
        """Those of embeddings `(N, D)` with labels `(N,)` int64, in units of 1.

        A class without images has a mean of zeros, which does not count in the centre. Without
        `novel_shrinkage`, novel classes are shrunk like base classes.
        """
        counts = torch.bincount(labels)  # (C,)
        sums = embeddings.new_zeros(len(counts), embeddings.shape[1])
        sums = sums.index_add_(0, labels, embeddings)  # (C, D)
        means = sums / counts.clamp(min=1)[:, None]  # (C, D)
        scatter = embeddings.new_zeros(embeddings.shape[1], embeddings.shape[1])
        for part, own in zip(embeddings.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True):
            around = part - means[own]  # (n, D)
            scatter.addmm_(around.T, around)
        known = means[counts > 0]
        return cls(
            centre=known.mean(0),
            n_centre=len(known),
            means=means,
            counts=counts,
            scatter=scatter,
            total=len(labels),
            shrinkage=shrinkage,
            novel_shrinkage=shrinkage if novel_shrinkage is None else novel_shrinkage,
        )

    def without(self, embeddings: Tensor, labels: Tensor) -> Statistics:
        """The statistics of the other images, as if these `(n, D)` had never been among them.

        Args:
            embeddings: of images that are among those of these statistics.
            labels: `(n,)` int64; every class must keep an image.
        """
        counts = self.counts - torch.bincount(labels, minlength=len(self.counts))  # (C,)
        around = embeddings - self.means[labels]  # (n, D)
        sums = torch.zeros_like(self.means).index_add_(0, labels, around)  # (C, D)
        # Each mean moves away from the images that go, and the others scatter less around it.
        moved = sums / counts[:, None]  # (C, D)
        less = torch.cat([around, counts.sqrt()[:, None] * moved])  # (n + C, D)
        return replace(
            self,
            centre=self.centre - moved.sum(0) / self.n_centre,
            means=self.means - moved,
            counts=counts,
            scatter=torch.addmm(self.scatter, less.T, less, alpha=-1),
            total=self.total - len(labels),
        )

    def without_class(self, position: int) -> Statistics:
        """The same without the mean of a class; its images still count in the covariance."""
        kept = [number for number in range(len(self.means)) if number != position]
        return replace(self, means=self.means[kept], counts=self.counts[kept])

    @property
    def variance(self) -> float:
        """Mean variance of a direction within a class."""
        return self.scatter.trace().item() / (self.total * len(self.centre))

    @cached_property
    def precision(self) -> Tensor:
        """P `(D, D)` of novel classes, divided by their unit; it pays for thousands of means."""
        return torch.cholesky_inverse(self.novel_factor) / self.novel_unit

    @cached_property
    def novel_factor(self) -> Tensor:
        """The Cholesky factor `(D, D)` of the covariance of novel classes, which takes long."""
        return self._factor(self.novel_shrinkage)

    def whiten(self, away: Tensor) -> Tensor:
        """`away @ precision`, for distances `(..., D)` of novel means from the centre.

        Without the inverse, which takes longer than all else, unless it is known already.
        """
        if "precision" in vars(self):
            return away @ self.precision
        rows = away.reshape(-1, away.shape[-1])
        solved = torch.cholesky_solve(rows.T, self.novel_factor).T / self.novel_unit
        return solved.reshape(away.shape)

    def novel_proxies(self, means: Tensor) -> Tensor:
        """Linear proxies `(..., D + 1)` of novel classes with means `(..., D)`."""
        away = means - self.centre
        return _with_offsets(self.whiten(away), away, self.centre)

    def round_proxies(self, means: Tensor) -> Tensor:
        """The same, if all directions had the same variance."""
        away = means - self.centre
        variance = max(self.variance, _LEAST_RIDGE)
        return _with_offsets(away / (variance * self.round_unit), away, self.centre)

    @cached_property
    def base_proxies(self) -> Tensor:
        """Linear proxies `(C, D + 1)` of the base classes."""
        away = self.means - self.centre  # (C, D)
        # By solving, because the inverse would take longer than all else.
        weights = torch.cholesky_solve(away.T, self._factor(self.shrinkage)).T / self.unit
        return _with_offsets(weights, away, self.centre)

    def _factor(self, shrinkage: float) -> Tensor:
        """The Cholesky factor `(D, D)` of the shrunk covariance."""
        covariance = self.scatter / self.total
        covariance.diagonal().add_(max(shrinkage * self.variance, _LEAST_RIDGE))
        factor: Tensor = torch.linalg.cholesky(covariance)
        return factor

    def to(self, device: torch.device) -> Statistics:
        """The same on a device."""
        names = ("centre", "means", "counts", "scatter")
        moved = replace(self, **{name: getattr(self, name).to(device) for name in names})
        # Made on the CPU, as a GPU may add up in another order each time.
        vars(moved)["precision"] = self.precision.to(device)
        return moved


def _with_offsets(weights: Tensor, away: Tensor, centre: Tensor) -> Tensor:
    """Weights `(..., D)` and the offsets that make w'(x - mu) - 1/2 w'(m - mu) of w'x."""
    offsets = -(weights * (centre + away / 2)).sum(-1, keepdim=True)  # (..., 1)
    return torch.cat([weights, offsets], -1)


def shrunk_mean(support: Tensor, centre: Tensor) -> Tensor:
    """The mean of a novel class as expected from a few images, `(..., D)`.

    The mean of k images is noisy evidence. Under a prior around the mean over base classes that is
    worth one image, the expected mean lies k / (k + 1) of the way.

    Args:
        support: `(..., k, D)` unit embeddings.
        centre: `(D,)` mean over base classes.
    """
    shots = support.shape[-2]
    return torch.lerp(centre.expand_as(support[..., 0, :]), support.mean(-2), shots / (shots + 1))
