"""The classifier of embeddings: proxies, scale and bias (Qi et al. 2018, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_cli.models.embedding import EmbeddingNetwork

# Cosines lie between -1 and 1, so without a scale a softmax over many classes is nearly flat.
INITIAL_SCALE = 10.0
# Scores computed at once: 128 MiB of fp32.
_MOST_SCORES = 2**25


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
    """A linear classifier of unit embeddings, with an offset that novel classes share.

    The cosine classifier (Qi et al. 2018, eq. 2 and 3), whose proxies have length 1, is one case.
    In the other, which `is_linear` marks, a proxy has any length and an offset of its own.

    Attributes:
        proxies: `(C, R)` fp32, one for each class, base classes first. R is D, the size of
            embeddings, or D + 1 with the offset as last number. Those of a cosine classifier have
            length 1.
        scale: factor on the scores in a softmax.
        n_base: how many of the classes are base classes.
        bias: added to the score of every novel class.
        is_linear: whether proxies end with an offset.
    """

    proxies: Tensor
    scale: float
    n_base: int
    bias: float = 0.0
    is_linear: bool = False

    def scores(self, embeddings: Tensor) -> Tensor:
        """Cosines or linear scores `(B, C)` of unit embeddings `(B, D)`, with the bias added.

        The largest one decides.
        """
        scores = as_read(embeddings, self.proxies) @ self.proxies.T  # (B, C)
        scores[:, self.n_base :] += self.bias
        return scores

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Softmax `(B, C)` of the scaled scores of unit embeddings `(B, D)`."""
        return (self.scale * self.scores(embeddings)).softmax(1)

    def layer(self) -> tuple[Tensor, Tensor]:
        """Weights `(C, D)` and biases `(C,)` of a linear layer that makes the scaled scores."""
        biases = torch.zeros(len(self.proxies))
        if self.is_linear:
            biases += self.proxies[:, self.size]
        biases[self.n_base :] += self.bias
        return self.scale * self.proxies[:, : self.size], self.scale * biases

    def best(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Largest score `(B,)` of each embedding, and the class `(B,)` that has it."""
        # In chunks, as all scores (B, C) may not fit into memory.
        parts = embeddings.split(chunk_size(len(self.proxies)))
        values, classes = zip(*(self.scores(part).max(1) for part in parts), strict=True)
        return torch.cat(values), torch.cat(classes)

    def predict(self, embeddings: Tensor) -> Tensor:
        """Class of each embedding, `(B,)` int64."""
        return self.best(embeddings)[1]

    def with_novel(self, proxies: Tensor) -> Head:
        """The same head with the proxies `(k, R)` of more novel classes."""
        return replace(self, proxies=torch.cat([self.proxies, proxies]))

    @classmethod
    def of_base(cls, proxies: Tensor, scale: float, size: int, length: float = 1.0) -> Head:
        """The cosine classifier that was trained, with the logits of training.

        Args:
            proxies: `(C, E)` unit proxies, as trained.
            scale: the learned factor on the cosines of trained parts.
            size: D, which is E where the backbone returns no stages.
            length: of an embedding before it is scaled to length 1, if its trained part has 1.
        """
        return cls(pad_to(proxies, size), scale * length, len(proxies))

    @property
    def size(self) -> int:
        """D, the size of the embeddings that the head reads."""
        return self.proxies.shape[1] - self.is_linear

    @property
    def base(self) -> Head:
        """The base classes alone."""
        return replace(self, proxies=self.proxies[: self.n_base], bias=0.0)

    @property
    def novel_proxies(self) -> Tensor:
        """`(W, R)` of the novel classes."""
        return self.proxies[self.n_base :]


def as_read(embeddings: Tensor, proxies: Tensor) -> Tensor:
    """Embeddings `(..., D)` as proxies `(..., R)` read them: with a 1 for their offsets, if any.

    So a score is one dot product, whether proxies have offsets or not.
    """
    return (
        F.pad(embeddings, (0, 1), value=1.0)
        if proxies.shape[-1] > embeddings.shape[-1]
        else (embeddings)
    )


def chunk_size(n_proxies: int) -> int:
    """How many queries to compare with `n_proxies` proxies at once, in 128 MiB of scores."""
    return max(1, _MOST_SCORES // max(1, n_proxies))


def nearest_proxies(embeddings: Tensor, proxies: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score `(B,)` of embeddings `(B, D)` with proxies `(C, R)`, and its index `(B,)`."""
    return Head(proxies, 1.0, len(proxies)).best(embeddings)


def without_proxy(proxies: Tensor, position: int) -> Tensor:
    """Proxies `(..., C, R)` without that of a class."""
    return torch.cat([proxies[..., :position, :], proxies[..., position + 1 :, :]], -2)


def pad_to(proxies: Tensor, size: int) -> Tensor:
    """Pad proxies `(..., E)` with zeros to size D, so that they read only the trained part."""
    return F.pad(proxies, (0, size - proxies.shape[-1]))
