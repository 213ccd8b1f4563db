"""The network: a backbone whose embeddings, and a head whose proxies, live on the unit sphere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_SCALE = 10.0


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per colour channel, in pixel values 0..255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, pixels: Tensor) -> Normalisation:
        """Measure it on images `(N, 3, H, W)` uint8, a channel at a time to save memory."""
        channels = [pixels[:, channel].to(torch.float32) for channel in range(3)]
        mean = [round(channel.mean(dtype=torch.float64).item(), 4) for channel in channels]
        std = [max(round(channel.double().std().item(), 4), 1.0) for channel in channels]
        return cls((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

    def apply(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Images `(B, 3, H, W)` uint8 to fp32 in channels_last on `device`."""
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        floats = pixels.to(device, torch.float32).sub_(mean).div_(std)
        return floats.contiguous(memory_format=torch.channels_last)


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
            self.scale * self.network(images) @ F.normalize(self.proxies.float(), dim=1).T
        )
        return result

    def rows(self, count: int) -> Tensor:
        """The first `count` proxies, `(count, D)` unit; rows after them only served training."""
        return F.normalize(self.proxies.detach().cpu()[:count], dim=1)


@dataclass(frozen=True)
class Head:
    """The cosine classifier (Qi et al. 2018, eq. 2 and 3) with an offset for novel classes.

    Attributes:
        proxies: `(C, D)` fp32, one unit row a class, base classes first.
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

    def predict(self, embeddings: Tensor) -> Tensor:
        """Class of each embedding, `(B,)` int64."""
        return self.cosines(embeddings).argmax(1)

    def with_rows(self, rows: Tensor) -> Head:
        """Append novel rows `(k, D)`."""
        return replace(self, proxies=torch.cat([self.proxies, rows]))

    @property
    def base(self) -> Head:
        """The base classes alone."""
        return replace(self, proxies=self.proxies[: self.n_base], bias=0.0)


class EmbeddingNetwork(nn.Module):
    """A backbone followed by L2 normalisation (Qi et al. 2018, section 3.1).

    Attributes:
        backbone: images `(B, 3, H, W)` to features `(B, D)`.
        normalisation: applied to uint8 pixels before the backbone.
    """

    def __init__(self, backbone: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.normalisation = normalisation

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings `(B, D)` fp32 of normalised images `(B, 3, H, W)`."""
        return F.normalize(self.backbone(images).float(), dim=1)


def relabel(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Map dataset labels to positions in `classes`, -1 where a label is not among them."""
    size = int(max(labels.max().item() if len(labels) else 0, *classes)) + 1
    table = torch.full((size,), -1, dtype=torch.int64)
    table[torch.tensor(classes)] = torch.arange(len(classes))
    return table[labels]
