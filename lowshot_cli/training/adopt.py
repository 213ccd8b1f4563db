"""A base model without training: its head is made from embeddings, or is the classifier's."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset, Images, ImageSubset
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.models.backbones import detached_state
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import INITIAL_SCALE, Head
from lowshot_cli.models.weights import classifier_proxies, preprocessing, read_weights
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.linear_head import cross_fitted, draw_folds, embed_training_images
from lowshot_cli.training.result import (
    TrainResult,
    describe_base,
    make_checkpoint,
)
from lowshot_cli.training.task import BaseTask, build_network, input_side

# A row of a classifier that is shorter than this, or than this share of the longest, is what weight
# decay or rounding has left of it: it says nothing about its class.
_LEAST_LENGTH, _LEAST_SHARE = 1e-12, 1e-6


def adopt(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    network: EmbeddingNetwork,
    *,
    context: RunContext = DEFAULT_CONTEXT,
) -> TrainResult:
    """Make a linear head from the embeddings of all training images, by a network as it is.

    Args:
        config: the common settings and `train_base`.
        dataset: where images come from.
        task: the images of the base classes, none of them held out.
        network: its backbone is used as it is.
        context: gets reports while images are embedded, and is asked whether to stop; its cache is
            used.

    Raises:
        Interrupted: `should_stop` returned true.
        TrainingError: the features of a class are zero or not finite.
    """
    started = time.perf_counter()
    embedded = embed_training_images(dataset, task, network, context=context)
    counts = torch.bincount(task.fit_labels).tolist()
    folds = torch.cat(draw_folds(counts))
    head, holdout = cross_fitted(embedded.fit, task.fit_labels, folds)
    seconds = time.perf_counter() - started
    checkpoint = make_checkpoint(
        config, dataset, task, embedded.network, head=head, holdout=holdout, context=context
    )
    return TrainResult(
        checkpoint=checkpoint,
        base_accuracy=checkpoint.base_accuracy,
        holdout_accuracy=holdout.accuracy,
        epochs=0,
        train_seconds=seconds,
        images_per_second=len(task.fit) / max(seconds, 1e-9),
    )


def _as_proxies(weights: Tensor, names: Sequence[str]) -> Tensor:
    """Unit proxies `(C, E)` from the rows of a classifier.

    Raises:
        CheckpointError: a row has no direction, such as one of zeros.
    """
    lengths = weights.norm(dim=1)  # (C,)
    longest = lengths.nan_to_num(0, 0).max().item()
    usable = lengths.isfinite() & (lengths > max(_LEAST_LENGTH, _LEAST_SHARE * longest))
    unusable = [name for name, fine in zip(names, usable.tolist(), strict=True) if not fine]
    if unusable:
        others = f" and {len(unusable) - 1} more" if len(unusable) > 1 else ""
        raise CheckpointError(
            f"the classifier's weights of {unusable[0]!r}{others} are zero, nearly zero or not "
            "finite",
            "take such classes out of the weights and of `classes`, or adopt the model with images "
            "of its classes, as `dataset=folder`",
        )
    return F.normalize(weights, dim=1)


def adopt_without_data(config: Config) -> TrainResult:
    """A base model from a weights file alone: its proxies are the classifier's weights, normalised.

    It has no hold-out, so nothing can be calibrated on it.

    Args:
        config: `train_base` with weights, 0 epochs and the names of all classes in the order of
            the classifier's outputs.

    Raises:
        UsageError: one of these is missing.
        CheckpointError: the weights cannot be used, or have no usable classifier.
    """
    options, names = config.train_base, config.train_base.classes
    expected = preprocessing(options) if ":" in options.backbone else None
    if expected is None or options.epochs or not isinstance(names, tuple):
        raise UsageError(
            "`dataset=none` adopts a classifier from its weights",
            "give `backbone=torchvision:NAME`, `weights=FILE`, `epochs=0` and the names of all "
            "`classes`",
        )
    side = config.image_size or expected.side
    pixels, labels = torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0).long()
    nothing, none = Images(pixels, labels), ImageSubset(pixels, labels)
    flip = options.flip is not False
    task = BaseTask(
        names=names,
        labels_in_dataset=[],
        fit=none,
        fit_labels=labels,
        holdout=none,
        holdout_labels=labels,
        normalisation=expected.normalisation,
        flip=flip,
        input_size=input_side(options, side),
    )
    network, size, loaded = build_network(options, task, with_weights=True, strict=config.strict)
    weights = classifier_proxies(network.backbone, read_weights(options))  # (C, E)
    if len(weights) != len(names):
        raise UsageError(
            f"`classes` names {len(names)} classes, the classifier has {len(weights)}",
            "name them all, in the order of its outputs",
        )
    dataset = Dataset("none", names, nothing, nothing, mirror=flip, default_classes=None)
    head = Head.of_base(_as_proxies(weights, names), INITIAL_SCALE, size)
    checkpoint = Checkpoint(
        meta=describe_base(
            config, dataset, task, network, head=head, counts=((0, 0),) * len(names)
        ),
        head=head,
        backbone=detached_state(network.backbone),
        holdout=Holdout(torch.empty(0, size).half(), labels, labels.bool()),
        centre=torch.empty(0),
    )
    return TrainResult(
        checkpoint=checkpoint,
        base_accuracy=None,
        holdout_accuracy=None,
        weights=loaded,
    )
