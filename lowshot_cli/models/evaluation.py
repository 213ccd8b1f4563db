"""How a library evaluates a published model: what it does to images, and the classes' names."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import DEFAULT_WEIGHTS, IMAGENET, user_path
from lowshot_cli.data.class_names import read_class_names
from lowshot_cli.data.framing import Framing
from lowshot_cli.errors import UsageError
from lowshot_cli.models.efficientnet_lite import LITES, of_timm
from lowshot_cli.models.embedding import Normalisation
from lowshot_cli.models.pretrained import ensure_known, import_timm
from lowshot_cli.models.weights import (
    MEAN,
    SIDE,
    STD,
    Preprocessing,
    published_weights,
    scaled,
)

# torchvision's and timm's usual share of the resized image that is cropped.
_SHARE = 0.875


def evaluation(config: Config) -> Preprocessing:
    """How the images of an adopted classifier are cropped, sized and normalised.

    It is as the library evaluates the weights that it publishes under this name, whatever the
    weights are, unless settings say otherwise. At another `image_size` the resized image is as much
    larger than the crop as in the library.

    Raises:
        UsageError: a backbone that is no library's, a library that is not installed, or one of
            timm's that pads images.
    """
    options = config.train_base
    theirs = _of_library(options.backbone, padded=config.fit is None)
    framing, side = theirs.framing, config.image_size or theirs.side
    resize = options.resize or (framing.resize or theirs.side) * side // theirs.side
    mean, std = theirs.normalisation.mean, theirs.normalisation.std
    return Preprocessing(
        Normalisation(
            scaled(options.mean) if options.mean else mean,
            scaled(options.std) if options.std else std,
        ),
        side,
        Framing(framing.fit, resize, options.interpolation or framing.interpolation).with_fit(
            config.fit
        ),
    )


def _of_library(backbone: str, *, padded: bool) -> Preprocessing:
    library, _, name = backbone.partition(":")
    if backbone in LITES:
        library, name = "timm", of_timm(backbone)
    if not name:
        raise UsageError(
            f"the classifier of {backbone} cannot be adopted without images",
            "give `backbone=torchvision:NAME` or `backbone=timm:NAME`",
        )
    ensure_known(f"{library}:{name}")
    if library == "torchvision":
        preset = published_weights(name).transforms()
        side = preset.crop_size[0]
        framing = Framing("crop", preset.resize_size[0], preset.interpolation.value)
        return Preprocessing(Normalisation(scaled(preset.mean), scaled(preset.std)), side, framing)
    config = import_timm().get_pretrained_cfg(name)
    if config is None:
        framing = Framing("crop", math.floor(SIDE / _SHARE))
        return Preprocessing(Normalisation(scaled(MEAN), scaled(STD)), SIDE, framing)
    if config.crop_mode == "border" and padded:
        raise UsageError(
            f"timm evaluates {name} on images with borders, which cannot be done exactly",
            "`fit=pad` comes near it",
        )
    side = config.input_size[-1]
    resize = math.floor(side / config.crop_pct)
    framing = Framing(
        "squash" if config.crop_mode == "squash" else "crop", resize, config.interpolation
    )
    return Preprocessing(Normalisation(scaled(config.mean), scaled(config.std)), side, framing)


def class_names(options: TrainBaseConfig) -> tuple[str, ...]:
    """Names of the outputs of an adopted classifier, in order.

    They are those that settings give, or the library's of its published weights.

    Raises:
        UsageError: there are none, or they are given twice.
        DataError: their file cannot be used.
    """
    if options.class_names and options.classes is not None:
        raise UsageError("`classes` and `class_names` both name the classes", "leave one out")
    if options.class_names == IMAGENET:
        return _imagenet()
    if options.class_names:
        return read_class_names(user_path(options.class_names))
    if isinstance(options.classes, tuple):
        return options.classes
    if options.classes is not None:
        raise UsageError(
            "`classes` is a number, but a classifier's outputs need names",
            f"name them all in order, as in `classes=cup,plate`, or {_GIVE}",
        )
    library = _of_published(options.backbone) if options.start == DEFAULT_WEIGHTS else None
    if library is None:
        raise UsageError(f"the outputs of {options.start or 'a classifier'} have no names", _GIVE)
    return library


_GIVE = f"give `class_names=FILE` with one a line, or `class_names={IMAGENET}` for ImageNet's 1,000"


def _imagenet() -> tuple[str, ...]:
    """Torchvision's names, which are short and distinct."""
    return tuple(published_weights("resnet18").meta["categories"])


def _of_published(backbone: str) -> tuple[str, ...] | None:
    """Names of the classes of a library's published weights; None if it has none."""
    library, _, name = backbone.partition(":")
    if library == "torchvision":
        return tuple(published_weights(name).meta["categories"])
    timm = import_timm()
    config: Any = timm.get_pretrained_cfg(name or of_timm(backbone))
    if config is None or config.label_names:
        return tuple(config.label_names) if config else None
    subset = timm.data.infer_imagenet_subset(config)
    if subset == "imagenet-1k" or subset is None:
        return _imagenet() if subset else None
    found = timm.data.ImageNetInfo(subset)
    texts = found.label_descriptions()
    counts = Counter(texts)
    return tuple(
        f"{text} ({key})" if counts[text] > 1 else text
        for text, key in zip(texts, found.label_names(), strict=True)
    )
