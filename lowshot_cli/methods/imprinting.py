"""Weight imprinting (Qi, Brown, Lowe: "Low-Shot Learning with Imprinted Weights", CVPR 2018).

Embeddings x and class weights w both lie on the unit sphere, so the logit of a class is the cosine
of x and w times a scale (eq. 2). A weight is therefore a template for embeddings of its class, and
a few embeddings of a new class already make a good one, without any training.

Each function maps support embeddings `(..., k, D)` of a class to its proxy `(..., D)`. The leading
dimensions `...` run over trials and classes, so that thousands of trials are one call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHRINKAGE = 0.5


# A covariance that is nearly zero, as with one image a class, still gets an inverse.
_LEAST_RIDGE = 1e-6


def imprint(support: Tensor) -> Tensor:
    """The proxy of a class is the normalised mean of its support embeddings (section 3.2, eq. 4-5).

    Args:
        support: `(..., k, D)` unit embeddings, or means over augmented views of one image each.

    Returns:
        `(..., D)` unit proxies.
    """
    # The mean of unit vectors is shorter than 1; only its direction matters to a cosine.
    return F.normalize(support.mean(-2), dim=-1)


def shrunk_precision(within: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """Inverse `(D, D)` of a covariance `(D, D)` with a multiple of its mean variance added.

    Shrinking towards the identity (Ledoit and Wolf 2004) keeps the inverse from being dominated by
    directions in which base classes hardly vary, and whose small variance is little more than an
    accident of the sample.

    Args:
        within: within-class covariance of base embeddings.
        shrinkage: the multiple; the larger it is, the closer `whitened` is to `imprint`.
    """
    size = len(within)
    ridge = (shrinkage * within.trace() / size).clamp(min=_LEAST_RIDGE) * torch.eye(size)
    precision: Tensor = torch.linalg.inv(within + ridge)
    return precision


def whitened(support: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """The direction that best tells a class from all others if all have the same covariance.

    w = normalise((m - mu) P), the linear discriminant of Fisher (1936) with shared statistics as in
    Hariharan, Malik, Ramanan: "Discriminative decorrelation", ECCV 2012, eq. 5. Directions in which
    images of one base class differ from each other count less than in the plain mean.

    Args:
        support: `(..., k, D)` unit embeddings.
        mean: `(D,)` mean over base classes, mu.
        precision: `(D, D)` from `shrunk_precision`, P.

    Returns:
        `(..., D)` unit proxies.
    """
    return F.normalize((support.mean(-2) - mean) @ precision, dim=-1)


def teen(support: Tensor, proxies: Tensor, sharpness: float = 16.0, share: float = 0.5) -> Tensor:
    """A prototype drawn towards the base classes it resembles (TEEN).

    A prototype of a few shots is biased towards the base classes that look alike, and those base
    classes tell in which direction (Wang et al.: "Few-Shot Class-Incremental Learning via
    Training-Free Prototype Calibration", NeurIPS 2023, eq. 5-7). Base proxies stand in for the
    paper's base prototypes.

    Args:
        support: `(..., k, D)` unit embeddings.
        proxies: `(C, D)` unit proxies of the base classes.
        sharpness: factor on the cosines whose softmax weighs the base proxies; tau in the paper.
        share: of the base proxies in the result.

    Returns:
        `(..., D)` unit proxies.
    """
    prototype = imprint(support)  # (..., D)
    similarity = (sharpness * prototype @ proxies.T).softmax(-1)  # (..., C)
    resembled = similarity @ proxies  # (..., D)
    return F.normalize(torch.lerp(prototype, resembled, share), dim=-1)


def cluster_means(support: Tensor, count: int, rounds: int = 10) -> Tensor:
    """Means of a class's clusters, for several proxies a class (section 3.3.1 of the paper).

    K-means (Lloyd 1982), started at the first support and then, one after the other, at the support
    farthest from all starts so far: no random numbers, and no two starts in one clump.

    Args:
        support: `(..., k, D)` unit embeddings.
        count: clusters wanted; there are at most as many as supports.
        rounds: of assigning and averaging.

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
        owner = torch.cdist(support, means).argmin(-1)  # (..., k)
        member = F.one_hot(owner, means.shape[-2]).to(support.dtype)  # (..., k, K)
        counts = member.sum(-2).unsqueeze(-1)  # (..., K, 1)
        sums = member.mT @ support  # (..., K, D)
        # A cluster that has lost all its supports stays where it was.
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    return means


def class_statistics(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What `whitened` needs to know of the base classes.

    Args:
        embeddings: `(N, D)` unit embeddings of base images.
        labels: `(N,)` int64.

    Returns:
        Mean over the class means `(D,)`, and the covariance within classes `(D, D)`.
    """
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), embeddings.shape[1]).index_add_(0, labels, embeddings)  # (C, D)
    means = sums / counts[:, None]  # (C, D)
    centred = embeddings - means[labels]  # (N, D)
    return means.mean(0), centred.T @ centred / len(embeddings)
