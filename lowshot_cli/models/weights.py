"""Weights that a backbone starts from: published ones, or those in a file."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import DEFAULT_WEIGHTS, user_path
from lowshot_cli.errors import CheckpointError, UsageError, first_few, one_line
from lowshot_cli.models.backbones import Resized
from lowshot_cli.models.efficientnet_lite import (
    LITES,
    NORMALISATION,
    EfficientNetLite,
    read_published,
)
from lowshot_cli.models.embedding import Normalisation
from lowshot_cli.models.pretrained import PretrainedBackbone, ensure_known, import_timm
from lowshot_cli.models.weights_file import SEPARATOR, read_weights_file
from lowshot_cli.progress import silenced

# ImageNet's: mean and standard deviation of values 0..1, and the usual side in pixels.
_MEAN, _STD, _SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
# What wrappers put before the names of the modules that they wrap, anywhere in a model.
_WRAPPERS = re.compile(
    r"(?:(?<=^)|(?<=[./]))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# The end of a part of a name, after which a model's own names may begin.
_PART = re.compile(r"[./]")
# Names of torchvision's DenseNet before its modules were renamed, as in its published files.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
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
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    names: frozenset[str] = field(default=frozenset(), compare=False)

    def notes(self) -> list[str]:
        """A line for the user about each of the two that is not empty."""
        found = {"missing": self.missing, "not used": self.unexpected}
        return [
            f"weights: {len(n)} {what}: {first_few(n, _SHOWN)}" for what, n in found.items() if n
        ]

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
    """What a published model was trained on: the normalisation and side of its images."""

    normalisation: Normalisation
    side: int


def preprocessing(options: TrainBaseConfig) -> Preprocessing | None:
    """What a pretrained model expects, of this package or a library; None for any other."""
    library, _, name = options.backbone.partition(":")
    if options.backbone in LITES:
        return Preprocessing(NORMALISATION, LITES[options.backbone].side)
    if not options.start or not name:
        return None
    ensure_known(options.backbone)
    mean, std, side = _MEAN, _STD, _SIDE
    if library == "torchvision":
        preset = _published_weights(name).transforms()
        mean, std, side = preset.mean, preset.std, preset.crop_size[0]
    elif (config := import_timm().get_pretrained_cfg(name)) is not None:
        mean, std, side = config.mean, config.std, config.input_size[-1]
    normalisation = Normalisation(_scaled(mean), _scaled(std))
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


def _scaled(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = (round(255 * value, 4) for value in values)
    return red, green, blue


def _published_weights(name: str) -> Any:
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
    published = None if library == "timm" else _published_weights(name)
    # The libraries announce a download on stdout, which is for results.
    quiet: AbstractContextManager[object] = (
        redirect_stdout(sys.stderr) if show_progress else silenced()
    )
    try:
        with quiet:
            if published is None:
                model = import_timm().create_model(name, pretrained=True, num_classes=0)
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
def load_weights(
    backbone: Resized | nn.Module, tensors: Mapping[str, Tensor], source: str
) -> LoadedWeights:
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
    inner = backbone.backbone if isinstance(backbone, Resized) else backbone
    model, left_out = inner, tuple[str, ...]()
    if isinstance(inner, PretrainedBackbone | EfficientNetLite):
        model, left_out = inner.model, inner.classifier
    assert isinstance(model, nn.Module)
    own = model.state_dict()
    given, others = _fitting(tensors, own)
    shared = {name: given[name] for name in own if name in given}
    if 2 * len(shared) < len(own):
        count = f"only {len(shared)} of the {len(own)} weights" if shared else "no weight"
        raise CheckpointError(
            f"{source} holds {count} of this backbone: it has {first_few(list(tensors), _SHOWN)}, "
            f"not {first_few(list(own), _SHOWN)}",
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
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite")
        own[name].copy_(numbers)
    unused = (n for n in given if n not in own and not _belongs(n, left_out))
    within = next(name for name, module in backbone.named_modules() if module is model)
    return LoadedWeights(
        missing=tuple(n for n in own if n not in given and not n.endswith("num_batches_tracked")),
        unexpected=(*unused, *others),
        names=frozenset(f"{within}.{name}".removeprefix(".") for name in shared),
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


def classifier_proxies(backbone: Resized | nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Weights `(C, E)` of the classifier in a state dict, which a backbone leaves out.

    It may be a layer within the library's classifier, such as `fc.1` after dropout.

    Raises:
        UsageError: embeddings of the backbone are not the features that its classifier reads.
        CheckpointError: the state dict has no such layer, or one for other features.
    """
    inner = backbone.backbone if isinstance(backbone, Resized) else backbone
    if not isinstance(inner, PretrainedBackbone):
        raise UsageError(
            "the classifier of this `backbone` cannot be adopted without images",
            "give the images of its classes, or `backbone=timm:NAME`",
        )
    given, _ = _fitting(tensors, inner.model.state_dict())
    layers = [
        tensor.flatten(1)  # some are 1x1 convolutions, (C, E, 1, 1)
        for name, tensor in given.items()
        if _belongs(name, inner.classifier[:1]) and name.endswith("weight") and tensor.ndim > 1
    ]
    if len(layers) != 1 or layers[0].shape[1] != inner.embedding_size:
        raise CheckpointError(
            "the weights hold no classifier for this backbone's features",
            "adopt it with its images: `dataset=folder`, and their folder as `data_dir`",
        )
    return layers[0].float()


def _fitting(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The part of the tensors that fits a model best, under its names, and what else there is.

    What else there is are names beside that part in its mapping, and keys of other mappings that
    fit the model as well.
    """
    plain = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", n)): t for n, t in tensors.items()}
    names: Counter[str] = Counter()  # by what stands before them: how many names are the model's
    shapes: Counter[str] = Counter()  # and of these how many have its shape
    for name, tensor in plain.items():
        for start in (0, *(part.end() for part in _PART.finditer(name))):
            if (counterpart := own.get(name[start:])) is not None:
                names[name[:start]] += 1
                shapes[name[:start]] += tensor.shape == counterpart.shape
    # Of equals the first one, but no average over the training.
    best = max(names, key=lambda p: (shapes[p], names[p], "ema" not in p), default="")
    mapping = _mapping(best)
    same = {n: tensor for n, tensor in plain.items() if _mapping(n) == mapping}
    inside = {n.removeprefix(best): t for n, t in same.items() if n.startswith(best)}
    beside = [n.removeprefix(mapping) for n in same if not n.startswith(best)]
    copies = {_mapping(p) for p in names if 2 * shapes[p] >= len(own)} - {mapping}
    return inside, [*beside, *sorted(copy.strip(SEPARATOR) for copy in copies)]


def _mapping(name: str) -> str:
    """The keys of the mapping that holds a name, with the last separator."""
    return name[: name.rfind(SEPARATOR) + 1]


def _belongs(name: str, layers: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)
