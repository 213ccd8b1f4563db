"""Weight imprinting (Qi, Brown, Lowe: "Low-Shot Learning with Imprinted Weights", CVPR 2018).

Embeddings x and proxies w, the classifier's weight vectors, both lie on the unit sphere, so the
logit of a class is the cosine of x and w times a scale (eq. 2). A proxy is therefore a template for
the embeddings of its class, and the mean of a few of them is already a good one, without training.

Each method maps support embeddings `(..., k, D)` of a class to its proxy `(..., D)`. The leading
dimensions `...` run over trials and classes, so one call makes the proxies of thousands of trials.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Default of `shrunk_precision`.
SHRINKAGE = 0.5
# At least this is added to a diagonal, so that even a zero covariance (one image a class) has an
# inverse.
_LEAST_RIDGE = 1e-6


def imprint(support: Tensor) -> Tensor:
    """The proxy of a class is the normalised mean of its support embeddings (section 3.2, eq. 4-5).

    Args:
        support: `(..., k, D)` unit embeddings, or for each image the mean over its augmented views.

    Returns:
        `(..., D)` unit proxies.
    """
    # The mean of unit vectors is shorter than 1, but only its direction matters to a cosine.
    return F.normalize(support.mean(-2), dim=-1)


def shrunk_precision(within: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """Inverse `(D, D)` of a covariance `(D, D)` with a multiple of its mean variance added.

    Without this shrinkage towards the identity (Ledoit and Wolf 2004), directions in which base
    classes hardly vary would dominate the inverse, although their small variance is mostly chance.

    Args:
        within: within-class covariance of base embeddings.
        shrinkage: the multiple; the larger it is, the closer `whitened` is to `imprint`.
    """
    size = len(within)
    # The trace over D is the mean variance of a direction.
    ridge = (shrinkage * within.trace() / size).clamp(min=_LEAST_RIDGE) * torch.eye(size)
    precision: Tensor = torch.linalg.inv(within + ridge)
    return precision


def whitened(support: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """The direction that best separates a class from all others if all share one covariance.

    w = normalise((m - mu) P), the linear discriminant of Fisher (1936) with shared statistics as in
    Hariharan, Malik, Ramanan: "Discriminative decorrelation", ECCV 2012, eq. 5. Directions in which
    images of the same base class differ count less than in the plain mean.

    Args:
        support: `(..., k, D)` unit embeddings.
        mean: `(D,)` mean over base classes, mu.
        precision: `(D, D)` from `shrunk_precision`, P.

    Returns:
        `(..., D)` unit proxies.
    """
    # For row vectors; P is symmetric. (..., D)
    return F.normalize((support.mean(-2) - mean) @ precision, dim=-1)


def teen(support: Tensor, proxies: Tensor, sharpness: float = 16.0, share: float = 0.5) -> Tensor:
    """A prototype drawn towards the base classes it resembles (TEEN).

    The mean of a few shots is a biased prototype, but the backbone already tells which base classes
    it resembles, and their well-estimated prototypes calibrate it (Wang et al.: "Few-Shot
    Class-Incremental Learning via Training-Free Prototype Calibration", NeurIPS 2023, eq. 5-7).
    Base proxies stand in for the paper's base prototypes.

    Args:
        support: `(..., k, D)` unit embeddings.
        proxies: `(C, D)` unit proxies of the base classes.
        sharpness: factor on the cosines whose softmax weighs the base proxies; tau in the paper.
        share: weight of the base proxies in the result, 0..1; 0 is `imprint`.

    Returns:
        `(..., D)` unit proxies.
    """
    prototype = imprint(support)  # (..., D)
    similarity = (sharpness * prototype @ proxies.T).softmax(-1)  # (..., C)
    resembled = similarity @ proxies  # (..., D), weighted mean of base proxies
    return F.normalize(torch.lerp(prototype, resembled, share), dim=-1)


def cluster_means(support: Tensor, count: int, rounds: int = 10) -> Tensor:
    """Means of a class's clusters, for several proxies a class (section 3.3.1 of the paper).

    K-means (Lloyd 1982). The first start is the first support, each next one the support farthest
    from all starts so far: this needs no random numbers and spreads the starts.

    Args:
        support: `(..., k, D)` unit embeddings.
        count: clusters wanted; there are at most as many as supports.
        rounds: how often supports are assigned to the nearest mean and means taken again.

    Returns:
        `(..., K, D)` with K = min(count, k), not normalised.
    """
    starts = [support[..., 0, :]]  # each (..., D)
    distance = support.new_full(support.shape[:-1], torch.inf)  # (..., k), to the nearest start
    for _ in range(min(count, support.shape[-2]) - 1):
        to_latest = (support - starts[-1].unsqueeze(-2)).square().sum(-1)  # (..., k)
        distance = torch.minimum(distance, to_latest)
        farthest = distance.argmax(-1)[..., None, None]  # (..., 1, 1)
        starts.append(support.take_along_dim(farthest, -2).squeeze(-2))
    means = torch.stack(starts, -2)  # (..., K, D)
    for _ in range(rounds):
        owner = torch.cdist(support, means).argmin(-1)  # (..., k), nearest mean
        member = F.one_hot(owner, means.shape[-2]).to(support.dtype)  # (..., k, K)
        counts = member.sum(-2).unsqueeze(-1)  # (..., K, 1)
        sums = member.mT @ support  # (..., K, D)
        # A cluster that has lost all its supports keeps its mean.
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    return means


def class_statistics(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and covariance of the base classes, which `whitened` needs.

    Args:
        embeddings: `(N, D)` unit embeddings of base images.
        labels: `(N,)` int64 base classes.

    Returns:
        Mean `(D,)` of the class means, and covariance `(D, D)` of embeddings around them.
    """
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), embeddings.shape[1]).index_add_(0, labels, embeddings)  # (C, D)
    means = sums / counts[:, None]  # (C, D)
    centred = embeddings - means[labels]  # (N, D)
    return means.mean(0), centred.T @ centred / len(embeddings)
