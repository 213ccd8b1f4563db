"""The cosine classifier: proxies, scale and bias."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_cli.models.embedding import _LENGTH, EmbeddingNetwork

INITIAL_SCALE = 10.0


_MOST_COSINES = 2**25


class CosineClassifier(nn.Module):
    """Embedding network, proxies and scale, trained together."""

    def __init__(self, network: EmbeddingNetwork, n_rows: int, embedding_size: int) -> None:
        super().__init__()
        self.network = network
        self.proxies = nn.Parameter(F.normalize(torch.randn(n_rows, embedding_size), dim=1))
        self.scale = nn.Parameter(torch.tensor(INITIAL_SCALE))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C)` of normalised images `(B, 3, H, W)` (Qi et al. 2018, eq. 2)."""
        result: Tensor = (
            self.scale * self.network.trained(images) @ F.normalize(self.proxies.float(), dim=1).T
        )
        return result

    def unit_proxies(self, count: int) -> Tensor:
        """The first `count` proxies, `(count, E)` unit; any after them only served training."""
        return F.normalize(self.proxies.detach().cpu()[:count], dim=1)


@dataclass(frozen=True)
class Head:
    """The cosine classifier (Qi et al. 2018, eq. 2 and 3) with an offset for novel classes.

    Attributes:
        proxies: `(C, D)` fp32, one unit row a class, base classes first. Base rows are zero
            wherever embeddings hold more than their trained part.
        scale: the learned factor on the cosines.
        n_base: how many of the rows are base classes.
        bias: added to the cosine of every novel class.
    """

    proxies: Tensor
    scale: float
    n_base: int
    bias: float = 0.0

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines plus bias `(B, C)` of unit embeddings `(B, D)`; the largest one decides."""
        cosines = embeddings @ self.proxies.T
        cosines[:, self.n_base :] += self.bias
        return cosines

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Softmax `(B, C)` of the scaled cosines of unit embeddings `(B, D)`."""
        return (self.scale * self.cosines(embeddings)).softmax(1)

    def best(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Largest cosine plus bias `(B,)` of each embedding, and the class `(B,)` that has it."""
        parts = embeddings.split(chunk_size(len(self.proxies)))
        values, classes = zip(*(self.cosines(part).max(1) for part in parts), strict=True)
        return torch.cat(values), torch.cat(classes)

    def predict(self, embeddings: Tensor) -> Tensor:
        """Class of each embedding, `(B,)` int64."""
        return self.best(embeddings)[1]

    def with_rows(self, rows: Tensor) -> Head:
        """Append novel rows `(k, D)`."""
        return replace(self, proxies=torch.cat([self.proxies, rows]))

    @classmethod
    def of_base(cls, rows: Tensor, scale: float, size: int) -> Head:
        """The head of a base model for embeddings `(B, D)`; its logits are those of training.

        Args:
            rows: `(C, E)` unit rows, as trained.
            scale: the learned factor on the cosines of trained parts.
            size: D, which is E where the backbone shows no stages.
        """
        length = _LENGTH if size > rows.shape[1] else 1.0
        return cls(pad_to(rows, size), scale * length, len(rows))

    @property
    def size(self) -> int:
        """D, the size of the embeddings that the head reads."""
        return self.proxies.shape[1]

    @property
    def base(self) -> Head:
        """The base classes alone."""
        return replace(self, proxies=self.proxies[: self.n_base], bias=0.0)


def chunk_size(n_rows: int) -> int:
    """How many queries are compared with `n_rows` rows at once, for 128 MiB of fp32 cosines."""
    return max(1, _MOST_COSINES // max(1, n_rows))


def nearest_rows(embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine `(B,)` of embeddings `(B, D)` with rows `(C, D)`, and the row that has it."""
    return Head(rows, 1.0, len(rows)).best(embeddings)


def pad_to(rows: Tensor, size: int) -> Tensor:
    """Rows `(..., E)` for embeddings of a larger size D, of which they read the trained part."""
    return F.pad(rows, (0, size - rows.shape[-1]))
