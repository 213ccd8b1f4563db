"""Weight imprinting (Qi, Brown, Lowe: "Low-Shot Learning with Imprinted Weights", CVPR 2018).

Embeddings x and class weights w both lie on the unit sphere, so a class's weight is a template and
an embedding of the class is its best guess. Leading dimensions `...` run over trials and classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHRINKAGE = 0.5


# Covariances of next to nothing, such as of one image a class, still have an inverse.
_LEAST_RIDGE = 1e-6


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


def teen(support: Tensor, proxies: Tensor, sharpness: float = 16.0, share: float = 0.5) -> Tensor:
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


def class_statistics(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over class means `(D,)` and covariance within classes `(D, D)` of `(N, D)`."""
    _, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), embeddings.shape[1]).index_add_(0, labels, embeddings)
    means = sums / counts[:, None]
    centred = embeddings - means[labels]
    return means.mean(0), centred.T @ centred / len(embeddings)
