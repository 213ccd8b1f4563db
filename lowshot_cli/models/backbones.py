"""Backbones by name.

Each maps images `(B, 3, H, W)` to features `(B, E)`, on which training classifies, and to the
stages `(B, M1)`, `(B, M2)`... that stand beside them in an embedding; none of them is normalised.
`embedding_size` is E, `stage_sizes` are M1, M2... `part_weights` are the weights of the features
and of each stage in an embedding.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_cli.config.values import BACKBONES, EMBEDDING_SIZE, PRETRAINED
from lowshot_cli.errors import UsageError, did_you_mean
from lowshot_cli.models.efficientnet_lite import LITES, EfficientNetLite
from lowshot_cli.models.pooling import root
from lowshot_cli.models.pretrained import PretrainedBackbone

# Up to this side in pixels the stem of `resnet18` keeps the size of an image, unlike ImageNet's.
SMALL_IMAGE = 64
# Weights of the trained features, of the last stage and of the one before it.
_PART_WEIGHTS = (1.0, 2.0, 1.0)
# Added to the variances by which patches are whitened, of which the smallest are mostly noise.
_LEAST_VARIANCE = 0.01


def build_backbone(
    name: str,
    width: int,
    embedding_size: int | None,
    image_size: int,
    input_size: int | None = None,
) -> Backbone:
    """Build an untrained backbone.

    Args:
        name: `resnet9`, `resnet18`, `efficientnet-lite0` or the like, `torchvision:NAME` or
            `timm:NAME`.
        width: channels of the first stage of `resnet9`; other backbones ignore it.
        embedding_size: E; None takes 64, or what a pretrained model returns.
        image_size: side of the images in pixels.
        input_size: side in pixels that images are resized to; None leaves them as they are.

    Raises:
        UsageError: an unknown name, a library that is not installed, or a size that the model does
            not accept.
    """
    side, size = input_size or image_size, embedding_size or EMBEDDING_SIZE
    backbone: Backbone
    if ":" in name:
        backbone = PretrainedBackbone(name, embedding_size, side)
    elif name in LITES:
        backbone = EfficientNetLite(name, embedding_size, side)
    elif name in _OWN:
        backbone = _OWN[name](width, size, side)
    else:
        raise UsageError(
            f"unknown backbone {name!r}", did_you_mean(name, [*BACKBONES, *PRETRAINED])
        )
    if not input_size:
        return backbone
    mode = "bicubic" if name in LITES else "bilinear"
    return Resized(backbone, side, mode=mode, shrinks=side < image_size)


def load_state(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict of a module of the same structure.

    Raises:
        RuntimeError: a name is missing or unexpected, or a shape differs.
    """
    state = OrderedDict(tensors)
    # Modules whose layout has changed, as MNASNet's has, look up here which one a state dict has.
    state._metadata = backbone.state_dict()._metadata  # type: ignore[attr-defined]
    backbone.load_state_dict(state)


def detached_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict on the CPU, detached; a module on the CPU shares its memory."""
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


class Resized(nn.Module):
    """A backbone that resizes images `(B, 3, H, W)` before it uses them."""

    def __init__(
        self, backbone: Backbone, side: int, mode: str = "bilinear", shrinks: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.side, self.mode, self.shrinks = backbone, side, mode, shrinks
        self.embedding_size: int = backbone.embedding_size
        self.stage_sizes: tuple[int, ...] = backbone.stage_sizes
        self.part_weights: tuple[float, ...] = backbone.part_weights

    @property
    def project(self) -> nn.Module:
        """The projection of the backbone."""
        return self.backbone.project

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the backbone returns for the resized images."""
        result: tuple[Tensor, ...] = self.backbone(self.resize(images))
        return result

    def resize(self, images: Tensor) -> Tensor:
        """Images `(B, 3, side, side)` from those of any size."""
        return F.interpolate(images, (self.side, self.side), mode=self.mode, antialias=self.shrinks)

    def extra_repr(self) -> str:
        """The side and how, so that a fingerprint of the network covers them like the weights."""
        return f"side={self.side}, mode={self.mode}"


def unresized(backbone: nn.Module) -> nn.Module:
    """The backbone itself, whether or not images are resized before it."""
    return backbone.backbone if isinstance(backbone, Resized) else backbone


def _conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class WhiteningConv(nn.Sequential):
    """A convolution that is set before training and then stays, and its activation.

    It turns the 27 values around a pixel, which are much alike, into uncorrelated ones of variance
    1, with both signs. Training starts from better features and needs no gradients of the largest
    activations (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).

    The BatchNorm changes nothing here. In models that trained the first convolution it does.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.requires_grad_(False)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the filters from batches of normalised images `(B, 3, H, W)`."""
        count, total, products = 0, torch.zeros(27).double(), torch.zeros(27, 27).double()
        for images in batches:
            patches = F.unfold(images, 3).transpose(1, 2).flatten(0, 1).double()  # (N, 27)
            count, total = count + len(patches), total + patches.sum(0)
            products += patches.T @ patches
        covariance = (products - total.outer(total) / count) / (count - 1)
        values, vectors = torch.linalg.eigh(covariance)
        scaled = vectors / (values + _LEAST_VARIANCE).sqrt()
        whitening = scaled.T.flip(0)  # (27, 27), a filter a row, the widest variance first
        weight, filters = self.state_dict()["0.weight"], whitening
        while 2 * len(filters) < len(weight):
            # Values that are white remain so when they are turned.
            turned = torch.linalg.qr(torch.randn_like(whitening)).Q @ whitening
            filters = torch.cat([filters, turned])
        half = math.ceil(len(weight) / 2)
        both = torch.cat([filters[:half], -filters[:half]])[: len(weight)]
        weight.copy_(both.view_as(weight))

    def train(self, mode: bool = True) -> WhiteningConv:
        """Train or not; the BatchNorm never does."""
        super().train(mode)
        self[1].eval()
        return self


class PooledConv(nn.Sequential):
    """A convolution, BatchNorm and pooling: `(B, C, H, W)` to `(B, C', H/2, W/2)`.

    Training pools before it normalises, on a quarter of the data, so the statistics are those of
    the largest of each four values. Both orders give the same result for positive weights of the
    BatchNorm, so these are not trained. In evaluation mode the BatchNorm stands where it can be
    folded into the convolution.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self[1].weight.requires_grad_(False)

    @torch.no_grad()
    def train(self, mode: bool = True) -> PooledConv:
        """Train or not; weights of the BatchNorm that older models have trained become positive.

        Turning the signs of a filter and of its mean makes up for that exactly.
        """
        super().train(mode)
        if mode:
            state = self.state_dict()
            signs = torch.where(state["1.weight"] < 0, -1.0, 1.0)  # (C',)
            state["1.weight"] *= signs
            state["1.running_mean"] *= signs
            state["0.weight"] *= signs[:, None, None, None]
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Halve the sides of images `(B, C, H, W)`."""
        conv, norm = self
        if self.training:
            result: Tensor = norm(F.max_pool2d(conv(images), 2))
        else:
            result = F.max_pool2d(norm(conv(images)), 2)
        return result


class Residual(nn.Module):
    """Two convolutions whose result is added to their input, `(B, C, H, W)` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        """Add the two convolutions' result to `features`."""
        result: Tensor = features + self.body(features)
        return result


class ResNet9(nn.Module):
    """Eight convolutions and one projection, after Page, "How to train your ResNet" (2018)."""

    def __init__(self, width: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.stage_sizes = (8 * width, 4 * width)
        self.part_weights = _PART_WEIGHTS
        self.early = nn.Sequential(
            WhiteningConv(width),
            PooledConv(width, 2 * width),
            nn.ReLU(inplace=True),
            Residual(2 * width),
            PooledConv(2 * width, 4 * width),
            nn.ReLU(inplace=True),
        )
        self.late = nn.Sequential(
            PooledConv(4 * width, 8 * width), nn.ReLU(inplace=True), Residual(8 * width)
        )
        self.project = nn.Linear(8 * width, embedding_size, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features `(B, E)`; roots of mean activations of the last stage and the one before."""
        early = self.early(images)
        late = self.late(early)
        stages = root(late.mean((2, 3))), root(early.mean((2, 3)))
        return self.project(late.amax((2, 3))), *stages


class ResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016); up to 64 pixels its stem is one 3x3 convolution."""

    def __init__(self, embedding_size: int, image_size: int) -> None:
        from torchvision.models import resnet18

        super().__init__()
        self.embedding_size = embedding_size
        self.stage_sizes = (512, 256)
        self.part_weights = _PART_WEIGHTS
        network = resnet18(weights=None)
        stem = [network.conv1, network.bn1, network.relu, network.maxpool]
        if image_size <= SMALL_IMAGE:
            stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), network.bn1, network.relu]
            nn.init.kaiming_normal_(stem[0].weight, mode="fan_out", nonlinearity="relu")
        self.early = nn.Sequential(*stem, network.layer1, network.layer2, network.layer3)
        self.late = network.layer4
        self.project = nn.Linear(512, embedding_size, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features `(B, E)`; roots of mean activations of the last stage and the one before."""
        early = self.early(images)
        late = self.late(early).mean((2, 3))
        return self.project(late), root(late), root(early.mean((2, 3)))


Backbone = ResNet9 | ResNet18 | EfficientNetLite | PretrainedBackbone | Resized
# Each is built from the width, the embedding size and the side of the images in pixels.
_OWN: dict[str, Callable[[int, int, int], Backbone]] = {
    "resnet9": lambda width, size, _: ResNet9(width, size),
    "resnet18": lambda _, size, side: ResNet18(size, side),
}
