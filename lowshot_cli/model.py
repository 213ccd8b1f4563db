"""The network: a backbone whose embeddings, and a head whose proxies, live on the unit sphere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_SCALE = 10.0
# Weights of the last stage and of the one before in an embedding whose trained part weighs 1.
STAGE_WEIGHTS = (2.0, 1.0)
# Length of an embedding before it is scaled to 1, with its stages.
_LENGTH = math.hypot(1.0, *STAGE_WEIGHTS)
_MOST_COSINES = 2**25
# The root of a mean activation has no slope at 0 without it.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per colour channel, in pixel values 0..255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Normalisation:
        """Measure it on batches of images `(B, 3, H, W)` uint8, of which it counts the values."""
        counts = torch.zeros(3, 256, dtype=torch.int64)
        for pixels in batches:
            for channel in range(3):
                values = pixels[:, channel].flatten()
                counts[channel] += torch.bincount(values, minlength=256)
        value, n = torch.arange(256).double(), counts.sum(1)
        mean = (counts @ value.long()).double() / n
        variance = (counts * (value - mean[:, None]).square()).sum(1) / (n - 1)
        means = [round(channel, 4) for channel in mean.tolist()]
        stds = [max(round(channel, 4), 1.0) for channel in variance.sqrt().tolist()]
        return cls((means[0], means[1], means[2]), (stds[0], stds[1], stds[2]))

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
            self.scale * self.network.trained(images) @ F.normalize(self.proxies.float(), dim=1).T
        )
        return result

    def rows(self, count: int) -> Tensor:
        """The first `count` proxies, `(count, D)` unit; rows after them only served training."""
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
        parts = embeddings.split(at_once(len(self.proxies)))
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
        return cls(widened(rows, size), scale * length, len(rows))

    @property
    def size(self) -> int:
        """D, the size of the embeddings that the head reads."""
        return self.proxies.shape[1]

    @property
    def base(self) -> Head:
        """The base classes alone."""
        return replace(self, proxies=self.proxies[: self.n_base], bias=0.0)


class EmbeddingNetwork(nn.Module):
    """A backbone, and what is made of its features: embeddings on the unit sphere.

    The trained part of an embedding is the L2-normalised output of the backbone (Qi et al. 2018,
    section 3.1), and base classes are told apart by it alone. The longer a backbone is trained, the
    less is left in it of what base classes do not need. Earlier stages keep that (hypercolumns,
    Hariharan et al., CVPR 2015), so beside the trained part an embedding holds the roots of their
    mean activations, centred, normalised and weighted, for the rows of novel classes to use.

    Attributes:
        backbone: images `(B, 3, H, W)` to features `(B, E)` and stages `(B, M1)`, `(B, M2)`, or
            to features alone.
        normalisation: applied to uint8 pixels before the backbone.
        centre: `(M,)` mean over images of what `stages` returns; None, as in
            training, leaves the stages out.
        mirror: whether an image and its mirror image are embedded together.
    """

    def __init__(
        self,
        backbone: nn.Module,
        normalisation: Normalisation,
        centre: Tensor | None = None,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.normalisation, self.mirror = normalisation, mirror
        # A tensor of no numbers cannot be exported.
        self.register_buffer("centre", centre if centre is not None and len(centre) else None)
        self.centre: Tensor | None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def trained(self, images: Tensor) -> Tensor:
        """The trained part alone, `(B, E)` unit, of normalised images as they are."""
        return F.normalize(self.backbone(images)[0].float(), dim=1)

    def stages(self, images: Tensor) -> Tensor:
        """What the stages hold of images and their mirror images, `(B, M)`, not yet centred."""
        trained, *stages = self._parts(images)
        return torch.cat([trained[:, :0], *stages], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Unit embeddings `(B, D)` fp32 of normalised images `(B, 3, H, W)`; D = E + M."""
        return self._join(self._parts(images))

    def one_view(self, images: Tensor) -> Tensor:
        """Unit embeddings `(B, D)` of images as they are, never of their mirror images."""
        return self._join(self._view(images))

    def _join(self, parts: list[Tensor]) -> Tensor:
        trained, *stages = parts
        if self.centre is None:
            return trained
        centres = self.centre.split([stage.shape[1] for stage in stages])
        parts = [trained] + [
            weight * F.normalize(stage - centre, dim=1)
            for weight, stage, centre in zip(STAGE_WEIGHTS, stages, centres, strict=True)
        ]
        return torch.cat(parts, 1) / _LENGTH

    def _parts(self, images: Tensor) -> list[Tensor]:
        """Trained part and stages, unit, over an image and its mirror image."""
        parts = self._view(images)
        if self.mirror:
            both = zip(parts, self._view(images.flip(3)), strict=True)
            parts = [F.normalize(one + other, dim=1) for one, other in both]
        return parts

    def _view(self, images: Tensor) -> list[Tensor]:
        trained, *stages = self.backbone(images)
        roots = [(stage.float() + _FLOOR).sqrt() for stage in stages]
        return [F.normalize(part, dim=1) for part in (trained.float(), *roots)]


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number in them is infinite or none."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def at_once(n_rows: int) -> int:
    """How many queries are compared with `n_rows` rows at once, for 128 MiB of fp32 cosines."""
    return max(1, _MOST_COSINES // max(1, n_rows))


def nearest_rows(embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine `(B,)` of embeddings `(B, D)` with rows `(C, D)`, and the row that has it."""
    return Head(rows, 1.0, len(rows)).best(embeddings)


def widened(rows: Tensor, size: int) -> Tensor:
    """Rows `(..., E)` for embeddings of a larger size D, of which they read the trained part."""
    return F.pad(rows, (0, size - rows.shape[-1]))


def relabel(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Map dataset labels to positions in `classes`, -1 where a label is not among them."""
    size = int(max(labels.max().item() if len(labels) else 0, *classes)) + 1
    table = torch.full((size,), -1, dtype=torch.int64)
    table[torch.tensor(classes)] = torch.arange(len(classes))
    return table[labels]
