"""From a backbone to unit embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Embeddings whose stages are centred at once.
_AT_ONCE = 8192


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per colour channel, in pixel values 0..255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Normalisation:
        """Measure it on batches of images `(B, 3, H, W)` uint8.

        A histogram per channel makes the result exact, whatever the order and size of batches.
        """
        counts = torch.zeros(3, 256, dtype=torch.int64)
        for pixels in batches:
            for channel in range(3):
                values = pixels[:, channel].flatten()
                counts[channel] += torch.bincount(values, minlength=256)
        value, n = torch.arange(256).double(), counts.sum(1)  # (256,), (3,)
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


class EmbeddingNetwork(nn.Module):
    """A backbone whose features become embeddings on the unit sphere.

    The trained part of an embedding is the L2-normalised output of the backbone (Qi et al. 2018,
    section 3.1), by which alone training classifies. The longer a backbone is trained, the more its
    output drops what base classes do not need, but earlier stages keep it (hypercolumns, Hariharan
    et al., CVPR 2015). So after the trained part an embedding also holds the stages that the
    backbone returns, centred, normalised and weighted.

    Attributes:
        backbone: images `(B, 3, H, W)` to features `(B, E)` and stages `(B, M1)`, `(B, M2)`..., or
            to features alone.
        weights: of the features and of each stage in an embedding.
        input_size: side in pixels to which the backbone resizes images; None if it takes them as
            they are.
        normalisation: applied to uint8 pixels before the backbone.
        centre: `(M,)` mean over images of what `stages` returns; None, as in training, makes an
            embedding of the trained part alone.
        mirror: whether an image and its mirror image are embedded together.
        was_fused: whether `fused` of the embedder made it.
        unit: whether parts and embeddings have length 1; else an embedding is the features alone,
            as they are, which a classifier that was adopted reads.
    """

    def __init__(
        self,
        backbone: nn.Module,
        normalisation: Normalisation,
        centre: Tensor | None = None,
        mirror: bool = False,
        unit: bool = True,
    ) -> None:
        super().__init__()
        self.unit, self.was_fused = unit, False
        self.backbone = backbone._apply(channels_last)
        described: Any = backbone
        self.weights: tuple[float, ...] = described.part_weights
        self.trained_size: int = described.embedding_size
        self.stage_sizes: tuple[int, ...] = described.stage_sizes
        self.input_size: int | None = getattr(backbone, "side", None)
        self.normalisation, self.mirror = normalisation, mirror
        # An empty tensor cannot be exported.
        self.register_buffer("centre", centre if centre is not None and len(centre) else None)
        self.centre: Tensor | None

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.parameters()).device

    @property
    def size(self) -> int:
        """D, the size of an embedding."""
        if self.centre is None:
            return self.trained_size
        return self.trained_size + len(self.centre)

    def trained(self, images: Tensor) -> Tensor:
        """The trained part alone, unit `(B, E)`, of normalised images `(B, 3, H, W)`."""
        return F.normalize(self.backbone(images)[0].float(), dim=1)

    def stages(self, images: Tensor) -> Tensor:
        """The stages of images and their mirror images, `(B, M)`, not yet centred."""
        trained, *stages = self._parts(images)
        # The empty slice makes the result `(B, 0)` for a backbone without stages.
        return torch.cat([trained[:, :0], *stages], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings `(B, D)` fp32 of normalised images `(B, 3, H, W)`; D is `size`."""
        if not self.unit:
            features: Tensor = self.backbone(images)[0].float()
            return features
        return self._join(self._parts(images))

    def one_view(self, images: Tensor) -> Tensor:
        """Unit embeddings `(B, D)` of images alone, without their mirror images."""
        return self._join(self._view(images))

    @property
    def joint_length(self) -> float:
        """Length of the parts of an embedding together, before it is scaled to length 1."""
        return math.hypot(*self.weights)

    def _join(self, parts: list[Tensor]) -> Tensor:
        """Trained part `(B, E)` and stages `(B, M1)`, `(B, M2)`... to unit embeddings `(B, D)`."""
        trained, *stages = parts
        if self.centre is None:
            return trained
        weight, *weights = self.weights
        centres = self.centre.split(self.stage_sizes)
        joined = [weight * trained] + [
            weight * F.normalize(stage - centre, dim=1)
            for weight, stage, centre in zip(weights, stages, centres, strict=True)
        ]
        return torch.cat(joined, 1) / self.joint_length

    def recentre(self, embeddings: Tensor, among: Tensor) -> Tensor:
        """Centre the stages in embeddings `(N, D)` of a network whose centre is zero, in place.

        Args:
            embeddings: of this network.
            among: `(n,)` int64, positions of those whose mean is the centre.

        Returns:
            The centre `(M,)`.
        """
        _, *stages = embeddings.split([self.trained_size, *self.stage_sizes], 1)
        centres = [torch.empty(0)]
        for weight, stage in zip(self.weights[1:], stages, strict=True):
            share = weight / self.joint_length
            centre = stage[among].mean(0) / share  # (M1,)
            for some in stage.split(_AT_ONCE):
                some.copy_(share * F.normalize(some / share - centre, dim=1))
            centres.append(centre)
        return torch.cat(centres)

    def _parts(self, images: Tensor) -> list[Tensor]:
        """Trained part and stages, unit, of an image and its mirror image together."""
        parts = self._view(images)
        if self.mirror:
            both = zip(parts, self._view(images.flip(3)), strict=True)
            parts = [F.normalize(one + other, dim=1) for one, other in both]
        return parts

    def _view(self, images: Tensor) -> list[Tensor]:
        """Trained part `(B, E)` and stages `(B, M1)`, `(B, M2)`... of images alone, unit."""
        return [F.normalize(part.float(), dim=1) for part in self.backbone(images)]


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor in channels_last, if it has four dimensions."""
    # `Module.to` refuses tensors of five dimensions, such as constants of traced networks.
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors are free of infinities and NaNs."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
