"""The layers of EfficientNet-Lite, under the names that timm gives them.

timm has the same network, but importing it takes longer than teaching a class.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lowshot_cli.models.fast_layers import FastConv2d, with_padding

# Channels and number of blocks of each group; the stem and the last layer are those of all sizes.
_GROUPS = {
    "efficientnet-lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet-lite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}
# Kernel and stride of each group.
_KERNELS, _STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
_STEM, _LAST = 32, 1280
# Channels within a block, as a multiple of those that come in.
_EXPANSION = 6


class LiteNetwork(nn.Module):
    """The layers; `EfficientNetLite` runs them.

    Layers of stride 2 pad nothing, because what they need depends on the size of images.
    """

    def __init__(self, name: str, n_classes: int) -> None:
        """Build it untrained; without classes it has no classifier."""
        super().__init__()
        self.conv_stem, self.bn1 = _conv(3, _STEM, 3, stride=2), _norm(_STEM)
        groups: list[nn.Module] = []
        channels = _STEM
        for sizes in zip(*_GROUPS[name], _KERNELS, _STRIDES, strict=True):
            wanted, count, kernel, stride = sizes
            kind = InvertedResidual if groups else SeparableConv
            first = kind(channels, wanted, kernel, stride)
            others = (InvertedResidual(wanted, wanted, kernel, 1) for _ in range(count - 1))
            groups.append(nn.Sequential(first, *others))
            channels = wanted
        self.blocks = nn.Sequential(*groups)
        self.conv_head, self.bn2 = _conv(channels, _LAST, 1), _norm(_LAST)
        if n_classes:
            self.classifier = nn.Linear(_LAST, n_classes)

    def fold_norms(self) -> None:
        """Fold each BatchNorm into the convolution before it, in place, in evaluation mode."""
        for module in self.modules():
            for (name, conv), (after, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    setattr(module, name, fuse_conv_bn_eval(conv, norm))
                    setattr(module, after, nn.Identity())

    def use_fast_layers(self) -> None:
        """Let convolutions pad, add and apply activations, on a CPU, once norms are folded."""
        for module in list(self.modules()):
            for name, conv in list(module.named_children()):
                if isinstance(conv, nn.Conv2d):
                    activation = nn.ReLU6() if _is_activated(module, name) else None
                    setattr(module, name, FastConv2d(_padding_itself(conv), activation))


class SeparableConv(nn.Module):
    """A convolution of each channel, then one across channels: `(B, C, H, W)` to `(B, K, h, w)`."""

    def __init__(self, channels: int, wanted: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _conv(channels, channels, kernel, stride=stride, groups=channels)
        self.bn1 = _norm(channels)
        self.conv_pw, self.bn2 = _conv(channels, wanted, 1), _norm(wanted)

    def forward(self, images: Tensor) -> Tensor:
        """Run both."""
        separate = activated(self.conv_dw, self.bn1, images)
        result: Tensor = self.bn2(self.conv_pw(separate))
        return result


class InvertedResidual(nn.Module):
    """More channels, a convolution of each, and fewer again: `(B, C, H, W)` to `(B, K, h, w)`.

    The input is added if it has the size of the result (Sandler et al., CVPR 2018).
    """

    def __init__(self, channels: int, wanted: int, kernel: int, stride: int) -> None:
        super().__init__()
        many = _EXPANSION * channels
        self.conv_pw, self.bn1 = _conv(channels, many, 1), _norm(many)
        self.conv_dw = _conv(many, many, kernel, stride=stride, groups=many)
        self.bn2 = _norm(many)
        self.conv_pwl, self.bn3 = _conv(many, wanted, 1), _norm(wanted)
        self.adds = stride == 1 and channels == wanted

    def forward(self, images: Tensor) -> Tensor:
        """Run all three."""
        wide = activated(self.conv_pw, self.bn1, images)
        separate = activated(self.conv_dw, self.bn2, wide)
        if self.adds and isinstance(self.conv_pwl, FastConv2d):
            added: Tensor = self.conv_pwl(separate, images)
            return added
        result: Tensor = self.bn3(self.conv_pwl(separate))
        return result + images if self.adds else result


class PaddedConv2d(nn.Conv2d):
    """A convolution with other padding on the left and top than on the right and bottom.

    Attributes:
        pads: left, right, top and bottom, in pixels.
    """

    def __init__(self, like: nn.Conv2d, pads: tuple[int, int, int, int]) -> None:
        """Make one with the weights of another."""
        sizes = (like.in_channels, like.out_channels, like.kernel_size[0], like.stride[0])
        bias = like.bias is not None
        super().__init__(*sizes, groups=like.groups, bias=bias, device=like.weight.device)
        self.weight, self.bias, self.pads = like.weight, like.bias, pads

    def forward(self, images: Tensor) -> Tensor:
        """Convolve the padded images."""
        return super().forward(F.pad(images, self.pads))


def activated(conv: nn.Module, norm: nn.Module, images: Tensor) -> Tensor:
    """A convolution, its norm and the activation after it: `(B, C, H, W)` to `(B, K, h, w)`."""
    result: Tensor = norm(conv(images))
    return result if isinstance(conv, FastConv2d) else F.relu6(result, inplace=True)


def _is_activated(module: nn.Module, name: str) -> bool:
    """Whether an activation follows a convolution: after all but the last one of a block."""
    last = {SeparableConv: "conv_pw", InvertedResidual: "conv_pwl"}
    return last.get(type(module)) != name


def _padding_itself(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution without other padding than its own."""
    if not isinstance(conv, PaddedConv2d):
        return conv
    left, right, top, bottom = conv.pads
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        conv.stride[0],
        (top, left),
        groups=conv.groups,
        device="meta",
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    if (left, top) == (right, bottom):
        return plain
    plain.padding = (0, 0)
    wider = with_padding(plain, conv.pads)
    assert wider is not None  # the right is padded by one pixel more
    return wider


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _conv(
    channels: int, wanted: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0
    layer = nn.Conv2d(channels, wanted, kernel, stride, padding, groups=groups, bias=False)
    if not layer.weight.is_meta:  # for one, PyTorch would import its compiler, which takes seconds
        # As TensorFlow's, which the network was trained with.
        nn.init.normal_(layer.weight, 0, math.sqrt(2 * groups / (kernel * kernel * wanted)))
    return layer
