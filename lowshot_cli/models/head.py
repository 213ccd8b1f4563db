"""The cosine classifier: proxies, scale and bias (Qi et al. 2018, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_cli.models.embedding import JOINT_LENGTH, EmbeddingNetwork

# Cosines lie between -1 and 1, so without a scale a softmax over many classes is nearly flat.
INITIAL_SCALE = 10.0
# Cosines computed at once: 128 MiB of fp32.
_MOST_COSINES = 2**25


class CosineClassifier(nn.Module):
    """Embedding network, proxies and scale, trained together."""

    def __init__(self, network: EmbeddingNetwork, n_proxies: int, embedding_size: int) -> None:
        super().__init__()
        self.network = network
        self.proxies = nn.Parameter(F.normalize(torch.randn(n_proxies, embedding_size), dim=1))
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C)` of normalised images `(B, 3, H, W)` (Qi et al. 2018, eq. 2)."""
        proxies = F.normalize(self.proxies.float(), dim=1)  # (C, E)
        result: Tensor = self.scale * self.network.trained(images) @ proxies.T
        return result

    def unit_proxies(self, count: int) -> Tensor:
        """The first `count` proxies, `(count, E)` unit; any after them serve training only."""
        return F.normalize(self.proxies.detach().cpu()[:count], dim=1)


@dataclass(frozen=True)
class Head:
    """The cosine classifier (Qi et al. 2018, eq. 2 and 3) with an offset for novel classes.

    Attributes:
        proxies: `(C, D)` fp32, one of length 1 for each class, base classes first. Those of base
            classes are zero beyond the trained part of embeddings.
        scale: the learned factor on the cosines.
        n_base: how many of the classes are base classes.
        bias: added to the cosine of every novel class.
    """

    proxies: Tensor
    scale: float
    n_base: int
    bias: float = 0.0

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines plus bias `(B, C)` of unit embeddings `(B, D)`; the largest one decides."""
        cosines = embeddings @ self.proxies.T  # (B, C)
        cosines[:, self.n_base :] += self.bias
        return cosines

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Softmax `(B, C)` of the scaled cosines of unit embeddings `(B, D)`."""
        return (self.scale * self.cosines(embeddings)).softmax(1)

    def best(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Largest cosine plus bias `(B,)` of each embedding, and the class `(B,)` that has it."""
        # In chunks, as all cosines (B, C) may not fit into memory.
        parts = embeddings.split(chunk_size(len(self.proxies)))
        values, classes = zip(*(self.cosines(part).max(1) for part in parts), strict=True)
        return torch.cat(values), torch.cat(classes)

    def predict(self, embeddings: Tensor) -> Tensor:
        """Class of each embedding, `(B,)` int64."""
        return self.best(embeddings)[1]

    def with_novel(self, proxies: Tensor) -> Head:
        """The same head with the proxies `(k, D)` of more novel classes."""
        return replace(self, proxies=torch.cat([self.proxies, proxies]))

    @classmethod
    def of_base(cls, proxies: Tensor, scale: float, size: int) -> Head:
        """The head of a base model for embeddings `(B, D)`, with the logits of training.

        Args:
            proxies: `(C, E)` unit proxies, as trained.
            scale: the learned factor on the cosines of trained parts.
            size: D, which is E where the backbone returns no stages.
        """
        # With stages, the trained part of a unit embedding has length 1 / JOINT_LENGTH.
        length = JOINT_LENGTH if size > proxies.shape[1] else 1.0
        return cls(pad_to(proxies, size), scale * length, len(proxies))

    @property
    def size(self) -> int:
        """D, the size of the embeddings that the head reads."""
        return self.proxies.shape[1]

    @property
    def base(self) -> Head:
        """The base classes alone."""
        return replace(self, proxies=self.proxies[: self.n_base], bias=0.0)


def chunk_size(n_proxies: int) -> int:
    """How many queries to compare with `n_proxies` proxies at once, in 128 MiB of cosines."""
    return max(1, _MOST_COSINES // max(1, n_proxies))


def nearest_proxies(embeddings: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine `(B,)` of embeddings `(B, D)` with proxies `(C, D)`, and its index `(B,)`."""
    return Head(proxies, 1.0, len(proxies)).best(embeddings)


def pad_to(proxies: Tensor, size: int) -> Tensor:
    """Pad proxies `(..., E)` with zeros to size D, so that they read only the trained part."""
    return F.pad(proxies, (0, size - proxies.shape[-1]))
