"""What a base model is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowshot_cli.checkpoint.holdout import first_of_classes
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.data.dataset import BATCH, Dataset, ImageSubset
from lowshot_cli.data.splits import base_classes, relabel, split_holdout
from lowshot_cli.models.backbones import WhiteningConv, build_backbone, unresized
from lowshot_cli.models.efficientnet_lite import (
    ENLARGED,
    ENLARGED_TO_TRAIN,
    LITES,
    SMALL,
    EfficientNetLite,
)
from lowshot_cli.models.embedder import embed
from lowshot_cli.models.embedding import EmbeddingNetwork, Normalisation
from lowshot_cli.models.weights import LoadedWeights, load_weights, preprocessing, read_weights

# Pixels of fit images, at most, from which the first layer of `resnet9` is set.
_FOR_FIRST_LAYER = 2**20
# Images whose patches are in memory at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class BaseTask:
    """The images of one base model, and how they are normalised and sized.

    Attributes:
        names: the base classes, in head order.
        labels_in_dataset: labels of these classes in the dataset, in the same order.
        fit: training images that the weights see.
        fit_labels: `(N,)` int64, in head order.
        holdout: training images that are held out.
        holdout_labels: `(M,)` int64, in head order.
        normalisation: how pixels are normalised.
        flip: whether an image keeps its class when it is mirrored.
        input_size: side in pixels to which the backbone resizes them; None leaves them as they are.
    """

    names: tuple[str, ...]
    labels_in_dataset: list[int]
    fit: ImageSubset
    fit_labels: Tensor
    holdout: ImageSubset
    holdout_labels: Tensor
    normalisation: Normalisation
    flip: bool
    input_size: int | None


def make_task(options: TrainBaseConfig, dataset: Dataset) -> BaseTask:
    """Split the images of the base classes, and find how they are normalised and sized."""
    options.refuse_adoption()
    names = base_classes(dataset, options.classes, options.split, options.class_order_seed)
    labels = [dataset.label(name) for name in names]
    fit, holdout = split_holdout(dataset.train, labels, 0 if options.is_frozen else options.holdout)
    images = dataset.train.picked(fit)
    expected = preprocessing(options)
    return BaseTask(
        names=names,
        labels_in_dataset=labels,
        fit=images,
        fit_labels=relabel(dataset.train.labels[fit], labels),
        holdout=dataset.train.picked(holdout),
        holdout_labels=relabel(dataset.train.labels[holdout], labels),
        normalisation=expected.normalisation if expected else Normalisation.of(images.split(BATCH)),
        flip=dataset.mirror if options.flip is None else options.flip,
        input_size=input_side(options, images.side),
    )


def input_side(options: TrainBaseConfig, side: int) -> int | None:
    """Side in pixels to which the network resizes images of `side`; None leaves them as they are.

    A library's network gets images at least as large as those that its weights were trained on; an
    efficientnet gets small images enlarged to what pays on a processor.
    """
    if options.input_size is not None:
        return options.input_size
    if options.backbone in LITES:
        enlarged = ENLARGED if options.is_frozen else ENLARGED_TO_TRAIN
        return enlarged if side < SMALL else None
    expected = preprocessing(options)
    return expected.side if expected is not None and side < expected.side else None


def largest_shift(options: TrainBaseConfig, side: int) -> int:
    """Largest random shift in pixels of training images of `side`."""
    return side // 8 if options.crop is None else options.crop


def embed_first(network: EmbeddingNetwork, task: BaseTask, count: int) -> tuple[Tensor, Tensor]:
    """Embeddings `(n, D)` of the first `count` fit images of each class, and labels `(n,)`."""
    chosen = first_of_classes(task.fit_labels, count)  # (n,)
    return embed(network, task.fit.part(chosen)), task.fit_labels[chosen]


def build_network(
    options: TrainBaseConfig, task: BaseTask, *, with_weights: bool, strict: bool = False
) -> tuple[EmbeddingNetwork, int, LoadedWeights | None]:
    """The network to train, the size E of its features, and how given weights fitted it.

    Args:
        options: settings of the base model.
        task: the images of the base classes.
        with_weights: load the weights to start from; a resumed run has its own.
        strict: refuse weights of which some are not used.

    Raises:
        UsageError: there are some.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    backbone = build_backbone(
        options.backbone,
        options.width,
        options.embedding_size,
        task.fit.side,
        task.input_size,
    )
    inner = unresized(backbone)
    if isinstance(inner, EfficientNetLite):
        inner.freeze(options.freeze_blocks)
    for first in (m for m in inner.modules() if isinstance(m, WhiteningConv)):
        every = math.ceil(len(task.fit) * task.fit.side**2 / _FOR_FIRST_LAYER)
        parts = task.fit[::every].split(_AT_ONCE)
        first.fit(task.normalisation.apply(part, torch.device("cpu")) for part in parts)
    loaded = None
    if options.start and with_weights:
        loaded = load_weights(backbone, read_weights(options), options.start)
        if strict:
            loaded.refuse_unused()
    return EmbeddingNetwork(backbone, task.normalisation), backbone.embedding_size, loaded
