"""Weights that a backbone starts from: published ones, or those in a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import DEFAULT_WEIGHTS, user_path
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.errors import CheckpointError, UsageError, first_few, one_line
from lowshot_cli.models.backbones import unresized
from lowshot_cli.models.efficientnet_lite import (
    LITES,
    NORMALISATION,
    EfficientNetLite,
    read_published,
)
from lowshot_cli.models.embedding import Normalisation
from lowshot_cli.models.pretrained import PretrainedBackbone, ensure_known, import_timm
from lowshot_cli.models.state_names import belongs, fitting
from lowshot_cli.models.weights_file import read_weights_file
from lowshot_cli.progress import silenced

# ImageNet's: mean and standard deviation of values 0..1, and the usual side in pixels.
MEAN, STD, SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
# Names that a message shows.
_SHOWN = 3


@dataclass(frozen=True)
class LoadedWeights:
    """How a state dict fitted a model.

    Attributes:
        missing: names of the model that the state dict lacks; their weights stay random.
        unexpected: what the model does not use: names of the state dict, except the classifier's,
            and keys of further copies, such as averaged weights.
        names: of the weights that were loaded, in the state dict of the backbone.
        foreign: those of `unexpected` that lie in the same network.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    names: frozenset[str] = field(default=frozenset(), compare=False)
    foreign: tuple[str, ...] = field(default=(), compare=False)

    def notes(self) -> list[str]:
        """A line for the user about each of the two that is not empty."""
        found = {"missing": self.missing, "not used": self.unexpected}
        return [
            f"weights: {len(n)} {what}: {first_few(n, _SHOWN)}" for what, n in found.items() if n
        ]

    def refuse_other(self) -> None:
        """Refuse weights that are not exactly those of the network.

        Raises:
            CheckpointError: the network has others.
        """
        differ = [f"{name} is missing" for name in self.missing]
        differ += [f"{name} is not in the network" for name in self.foreign]
        if differ:
            raise CheckpointError(
                f"weights of another network: {first_few(differ, _SHOWN)}",
                "name the `backbone` that they belong to",
            )

    def refuse_unused(self) -> None:
        """Refuse weights of which some are not used.

        Raises:
            UsageError: there are some.
        """
        if self.unexpected:
            raise UsageError(
                f"weights: {len(self.unexpected)} not used: {first_few(self.unexpected, _SHOWN)}",
                "take them out of the file, or omit `strict=True`",
            )


@dataclass(frozen=True)
class Preprocessing:
    """What a published model was trained on, or is evaluated on.

    Attributes:
        normalisation: of pixel values.
        side: of the square images, in pixels.
        framing: how photos become such squares.
    """

    normalisation: Normalisation
    side: int
    framing: Framing = CROP


def preprocessing(options: TrainBaseConfig) -> Preprocessing | None:
    """What a pretrained model expects, of this package or a library; None for any other."""
    library, _, name = options.backbone.partition(":")
    if options.backbone in LITES:
        return Preprocessing(NORMALISATION, LITES[options.backbone].side)
    if not options.start or not name:
        return None
    ensure_known(options.backbone)
    mean, std, side = MEAN, STD, SIDE
    if library == "torchvision":
        preset = published_weights(name).transforms()
        mean, std, side = preset.mean, preset.std, preset.crop_size[0]
    elif (config := import_timm().get_pretrained_cfg(name)) is not None:
        mean, std, side = config.mean, config.std, config.input_size[-1]
    normalisation = Normalisation(scaled(mean), scaled(std))
    return Preprocessing(normalisation, side)


def photo_side(config: Config) -> int | None:
    """Side in pixels at which the network wants the images of a folder, mostly above the default.

    None if the config sets the side, or the network asks for none.
    """
    if config.dataset != "folder" or config.image_size is not None:
        return None
    options = config.train_base
    expected = preprocessing(options)
    return options.input_size or (expected.side if expected else None)


def scaled(values: Sequence[float]) -> tuple[float, float, float]:
    """Numbers of the three channels in units of pixel values 0..255, from those of 0..1."""
    red, green, blue = (round(255 * value, 4) for value in values)
    return red, green, blue


def published_weights(name: str) -> Any:
    """The weights that torchvision recommends for a model, not yet downloaded."""
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def read_weights(options: TrainBaseConfig, *, show_progress: bool = False) -> dict[str, Tensor]:
    """The state dict that training starts from, downloaded if necessary.

    Args:
        options: `backbone` and `weights`; one of them must name some.
        show_progress: show the progress of a download on stderr.

    Raises:
        UsageError: a backbone without published weights, or weights that are not installed.
        CheckpointError: a failed download, or a file that is absent, unsafe or damaged.
    """
    source = options.start or DEFAULT_WEIGHTS
    if source != DEFAULT_WEIGHTS:
        return read_weights_file(user_path(source))
    if options.backbone in LITES:
        return read_published(options.backbone)
    return _download(options.backbone, show_progress=show_progress)


def _download(backbone: str, *, show_progress: bool) -> dict[str, Tensor]:
    library, _, name = backbone.partition(":")
    if not name:
        raise UsageError(
            f"{backbone} has no published weights", "try `backbone=torchvision:resnet18`"
        )
    ensure_known(backbone)
    published = None if library == "timm" else published_weights(name)
    # The libraries announce a download on stdout, which is for results.
    quiet: AbstractContextManager[object] = (
        redirect_stdout(sys.stderr) if show_progress else silenced()
    )
    try:
        with quiet:
            if published is None:
                model = import_timm().create_model(name, pretrained=True)
                return dict(model.state_dict())
            return dict(
                published.get_state_dict(progress=show_progress, check_hash=True, weights_only=True)
            )
    except Exception as error:  # the network and these libraries raise errors of many kinds
        what = published.url if published else "them"
        raise CheckpointError(
            f"cannot download the weights of {backbone}: {one_line(error, 200)}",
            f"download {what} elsewhere and give the file to `weights`",
        ) from None


@torch.no_grad()
def load_weights(backbone: nn.Module, tensors: Mapping[str, Tensor], source: str) -> LoadedWeights:
    """Copy weights into a backbone, in place.

    Args:
        backbone: from `build_backbone`.
        tensors: from `read_weights`: of the model, of a larger one around it, or in nested
            mappings; what fits best is taken.
        source: what messages call the weights.

    Raises:
        CheckpointError: less than half of the weights are there, a shape differs, or a number is
            not finite.
    """
    inner = unresized(backbone)
    model, left_out = inner, tuple[str, ...]()
    if isinstance(inner, PretrainedBackbone | EfficientNetLite):
        model, left_out = inner.model, inner.classifier
    assert isinstance(model, nn.Module)
    own = model.state_dict()
    given, others = fitting(tensors, own)
    shared = {name: given[name] for name in own if name in given}
    if 2 * len(shared) < len(own):
        count = f"only {len(shared)} of the {len(own)} weights" if shared else "no weight"
        lacks = [name for name in own if name not in shared]
        raise CheckpointError(
            f"{source} holds {count} of this backbone: it has {first_few(list(tensors), _SHOWN)}, "
            f"but lacks {first_few(lacks, _SHOWN)}",
            "name the `backbone` that they belong to",
        )
    misfits = [f"{name} is {text}" for name in shared if (text := _misfit(given[name], own[name]))]
    if misfits:
        raise CheckpointError(
            f"{source} does not fit the backbone: {first_few(misfits, _SHOWN)}",
            "name the `backbone` that they belong to",
        )
    for name, tensor in shared.items():
        numbers = tensor.to(own[name].dtype)
        if not bool(numbers.isfinite().all()):
            raise CheckpointError(
                f"{source}: {name} holds numbers that are not finite", "take another file"
            )
        own[name].copy_(numbers)
    unused = tuple(n for n in given if n not in own and not belongs(n, left_out))
    within = next(name for name, module in backbone.named_modules() if module is model)
    return LoadedWeights(
        missing=tuple(n for n in own if n not in given and not n.endswith("num_batches_tracked")),
        unexpected=(*unused, *others),
        names=frozenset(f"{within}.{name}".removeprefix(".") for name in shared),
        foreign=unused,
    )


def _misfit(given: Tensor, own: Tensor) -> str:
    """Why a tensor cannot be copied into another one; empty if it can."""
    if given.shape != own.shape:
        return f"{list(given.shape)}, not {list(own.shape)}"
    if given.layout != torch.strided or given.is_quantized or given.is_meta:
        return "quantised, sparse or empty"
    # The integers of quantised weights need a scale.
    if given.is_floating_point() != own.is_floating_point():
        return f"{given.dtype}, not {own.dtype}".replace("torch.", "")
    return ""
