"""Weight imprinting (Qi, Brown, Lowe: "Low-Shot Learning with Imprinted Weights", CVPR 2018).

Embeddings x and proxies w, the classifier's weight vectors, both lie on the unit sphere, so the
logit of a class is the cosine of x and w times a scale (eq. 2). A proxy is therefore a template for
the embeddings of its class, and the mean of a few of them is already a good one, without training.

Each method maps support embeddings `(..., k, D)` of a class to its proxy `(..., D)`. The leading
dimensions `...` run over trials and classes, so one call makes the proxies of thousands of trials.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# What is added to the variance of each direction before `whitened` inverts the covariance, as a
# share of the variance of all directions together; the larger, the closer it is to `imprint`.
_RIDGE = 1 / 896
# Weight of the whitened proxy of a base class beside its trained one.
_WHITENED_SHARE = 0.3


def imprint(support: Tensor) -> Tensor:
    """The proxy of a class is the normalised mean of its support embeddings (section 3.2, eq. 4-5).

    Args:
        support: `(..., k, D)` unit embeddings, or for each image the mean over its augmented views.

    Returns:
        `(..., D)` unit proxies.
    """
    # The mean of unit vectors is shorter than 1, but only its direction matters to a cosine.
    return F.normalize(support.mean(-2), dim=-1)


def whitened(support: Tensor, mean: Tensor, whiten: Callable[[Tensor], Tensor]) -> Tensor:
    """The direction that best separates a class from all others if all share one covariance.

    w = normalise((m - mu) P), the linear discriminant of Fisher (1936) with shared statistics as in
    Hariharan, Malik, Ramanan: "Discriminative decorrelation", ECCV 2012, eq. 5. Directions in which
    images of the same base class differ count less than in the plain mean.

    Args:
        support: `(..., k, D)` unit embeddings.
        mean: `(D,)` mean over base classes, mu.
        whiten: multiplies `(..., D)` by P, the inverse of the shrunk covariance within base
            classes.

    Returns:
        `(..., D)` unit proxies.
    """
    return F.normalize(whiten(support.mean(-2) - mean), dim=-1)


def shrinkage(size: int) -> float:
    """The shrinkage of the statistics that `whitened` reads, for embeddings of `size` dimensions.

    In multiples of the mean variance, as `Statistics` takes it. Embeddings have a fixed length, so
    the more dimensions they have, the less of their variance each has.
    """
    return _RIDGE * size


def reading_stages(trained: Tensor, by_mean: Tensor) -> Tensor:
    """Base proxies that also read the stages of an embedding, which training does not.

    w = normalise(trained + 0.3 whitened). An image of a novel class often resembles a base class in
    the features on which training classified, but less so in the stages before them.

    Args:
        trained: `(C, D)` unit proxies, zero beyond the trained part of embeddings.
        by_mean: `(C, D)` whitened proxies of the same classes.

    Returns:
        `(C, D)` unit proxies.
    """
    return F.normalize(trained + _WHITENED_SHARE * by_mean, dim=1)


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
