"""Weights that a backbone starts from: published ones, or those in a file."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowshot_cli.config.schema import Config, TrainBaseConfig
from lowshot_cli.config.values import DEFAULT_WEIGHTS, user_path
from lowshot_cli.errors import CheckpointError, UsageError, one_line
from lowshot_cli.models.backbones import Resized
from lowshot_cli.models.embedding import Normalisation
from lowshot_cli.models.pretrained import PretrainedBackbone, ensure_known, import_timm
from lowshot_cli.storage.tensors import read_tensors

# ImageNet's: mean and standard deviation of values 0..1, and the usual side in pixels.
_MEAN, _STD, _SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
# Prefixes that DataParallel and `torch.compile` put before the names of a state dict.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
# Prefixes of a backbone within a larger model, as in lowshot's checkpoints.
_PREFIXES = tuple(
    f"{outer}{inner}"
    for outer in ("", "backbone.", "backbone.backbone.")
    for inner in ("", "model.")
)
# Names of torchvision's DenseNet before its modules were renamed, as in its published files.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
# Names that a message shows.
_SHOWN = 3


@dataclass(frozen=True)
class LoadedWeights:
    """How a state dict fitted a model.

    Attributes:
        missing: names of the model that the state dict lacks; their weights stay random.
        unexpected: names of the state dict that the model lacks, except the classifier's.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def notes(self) -> list[str]:
        """A line for the user about each of the two that is not empty."""
        found = {"missing": self.missing, "not used": self.unexpected}
        return [f"weights: {len(n)} {what}: {_few(n)}" for what, n in found.items() if n]


@dataclass(frozen=True)
class Preprocessing:
    """What a published model was trained on: the normalisation and side of its images."""

    normalisation: Normalisation
    side: int


def preprocessing(options: TrainBaseConfig) -> Preprocessing | None:
    """What a library's model with weights expects; None for any other backbone."""
    library, _, name = options.backbone.partition(":")
    if not options.weights or not name:
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
    """The state dict that `weights` names, downloaded if necessary.

    Args:
        options: `backbone` and `weights`, which must be given.
        show_progress: show the progress of a download on stderr.

    Raises:
        UsageError: a backbone without published weights.
        CheckpointError: a failed download, or a file that is absent, unsafe or damaged.
    """
    source = options.weights or DEFAULT_WEIGHTS
    return (
        _download(options.backbone, show_progress=show_progress)
        if source == DEFAULT_WEIGHTS
        else _read(source)
    )


def _download(backbone: str, *, show_progress: bool) -> dict[str, Tensor]:
    library, _, name = backbone.partition(":")
    if not name:
        raise UsageError(
            f"{backbone} has no published weights", "try `backbone=torchvision:resnet18`"
        )
    ensure_known(backbone)
    published = None if library == "timm" else _published_weights(name)
    # The libraries announce a download on stdout, which is for results.
    announced = sys.stderr if show_progress else io.StringIO()
    try:
        with redirect_stdout(announced), redirect_stderr(announced):
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


def _read(source: str) -> dict[str, Tensor]:
    path = user_path(source)
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        if path.suffix not in (".pth", ".pt"):
            raise ValueError("it must be called .safetensors, .pth or .pt")
        if not path.is_file():
            raise FileNotFoundError
        # Tensors and plain containers alone: a pickle could otherwise run any program.
        with warnings.catch_warnings(action="ignore"):  # what matters becomes the error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}", "check the path in `weights`") from None
    except Exception as error:  # a damaged file can make a reader fail in any way
        raise CheckpointError(
            f"cannot read the weights {path}: {one_line(error, 200)}",
            "save the model's state_dict() there with safetensors or torch.save",
        ) from None
    while isinstance(content, Mapping) and isinstance(inner := _nested(content), Mapping):
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict",
            "save the model's state_dict() there",
        )
    return {str(name): t for name, t in content.items() if isinstance(t, Tensor)}


def _nested(content: Mapping[Any, Any]) -> object:
    return next((content[key] for key in ("state_dict", "model") if key in content), None)


@torch.no_grad()
def load_weights(
    backbone: Resized | nn.Module, tensors: Mapping[str, Tensor], source: str
) -> LoadedWeights:
    """Copy weights into a backbone, in place.

    Args:
        backbone: from `build_backbone`.
        tensors: a state dict, of the whole model or of a wrapper around it.
        source: what messages call the weights.

    Raises:
        CheckpointError: nothing matches, a shape differs, or a number is not finite.
    """
    inner = backbone.backbone if isinstance(backbone, Resized) else backbone
    model = inner.model if isinstance(inner, PretrainedBackbone) else inner
    assert isinstance(model, nn.Module)
    left_out = inner.classifier if isinstance(inner, PretrainedBackbone) else ()
    own = model.state_dict()
    given = _renamed(tensors, own)
    shared = {name: given[name] for name in own if name in given}
    if not shared:
        raise CheckpointError(
            f"{source} holds no weight of this backbone: it has {_few(list(tensors))}, "
            f"not {_few(list(own))}",
            "name the `backbone` that they belong to",
        )
    misfits = [
        f"{name} is {list(tensor.shape)}, not {list(own[name].shape)}"
        for name, tensor in shared.items()
        if tensor.shape != own[name].shape
    ]
    if misfits:
        raise CheckpointError(
            f"{source} does not fit the backbone: {_few(misfits)}",
            "name the `backbone` that they belong to",
        )
    for name, tensor in shared.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite")
        own[name].copy_(tensor)
    return LoadedWeights(
        missing=tuple(n for n in own if n not in given and not n.endswith("num_batches_tracked")),
        unexpected=tuple(n for n in given if n not in own and not _belongs(n, left_out)),
    )


def classifier_proxies(backbone: Resized | nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Weights `(C, E)` of the classifier in a state dict, which a backbone leaves out.

    Raises:
        CheckpointError: the state dict has no such layer, or one for other features.
    """
    inner = backbone.backbone if isinstance(backbone, Resized) else backbone
    assert isinstance(inner, PretrainedBackbone)
    given = _renamed(tensors, inner.model.state_dict())
    weight = given.get(f"{inner.classifier[0]}.weight") if inner.classifier else None
    if weight is None or weight.flatten(1).shape[1] != inner.embedding_size:
        raise CheckpointError(
            "the weights hold no classifier for this backbone's features",
            "adopt it with its images: `dataset=folder`, and their folder as `data_dir`",
        )
    return weight.flatten(1).float()  # some are 1x1 convolutions, (C, E, 1, 1)


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the model uses."""
    plain = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", n)): t for n, t in tensors.items()}
    views = [
        {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
        for prefix in _PREFIXES
    ]
    return max(views, key=lambda view: len(view.keys() & own.keys()))


def _belongs(name: str, layers: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{layer}.") for layer in layers)


def _few(names: tuple[str, ...] | list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
