"""A base model without training: its head is made from embeddings, or is the classifier's."""

from __future__ import annotations

import time

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.photos import no_photos
from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import DEFAULT_WEIGHTS
from lowshot_cli.data.dataset import Dataset, Images, ImageSubset
from lowshot_cli.errors import UsageError
from lowshot_cli.models.backbones import detached_state
from lowshot_cli.models.classifier import read_classifier
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.evaluation import class_names, evaluation
from lowshot_cli.models.head import Head
from lowshot_cli.models.weights import Preprocessing, load_weights, read_weights
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.linear_head import cross_fitted, draw_folds, embed_training_images
from lowshot_cli.training.result import (
    TrainResult,
    describe_base,
    make_checkpoint,
)
from lowshot_cli.training.task import BaseTask, build_network


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


def adopt_without_data(config: Config) -> TrainResult:
    """A base model from weights alone: the classifier as it is, on the network's features.

    It decides as the library's own model does, with the same probabilities. It has no hold-out, so
    nothing can be calibrated until it is given photos (`with_photos`).

    Args:
        config: `train_base` with weights and, unless they are a library's published ones, the names
            of all classes in the order of the classifier's outputs.

    Raises:
        UsageError: one of these is missing.
        DataError: the file of names cannot be used.
        CheckpointError: the weights cannot be used, or have no usable classifier.
    """
    options = config.train_base
    expected = evaluation(config)
    _ensure_adoptable(options)
    task = _task_without_images(options, expected, class_names(options))
    network, size, _ = build_network(options, task, with_weights=False)
    tensors = read_weights(options)
    loaded = load_weights(network.backbone, tensors, options.start or DEFAULT_WEIGHTS)
    if config.strict:
        loaded.refuse_unused()
    loaded.refuse_other()
    names, nothing = task.names, Images(task.fit.pixels, task.fit_labels)
    # (C, D), (C,)
    weights, biases = read_classifier(network.backbone, tensors)
    if len(weights) != len(names):
        raise UsageError(
            f"{len(names)} classes are named, but the classifier has {len(weights)} outputs",
            "name them all, in the order of its outputs",
        )
    dataset = Dataset(
        *("none", names, nothing, nothing),
        mirror=False,
        default_classes=None,
        framing=expected.framing,
    )
    rows = torch.cat([weights, biases[:, None]], 1)  # (C, D + 1)
    head = Head(rows, 1.0, len(names), is_linear=True)
    network = EmbeddingNetwork(network.backbone, task.normalisation, unit=False)
    counts = ((0, 0),) * len(names)
    checkpoint = Checkpoint(
        meta=describe_base(config, dataset, task, network, head=head, counts=counts),
        head=head,
        backbone=detached_state(network.backbone),
        holdout=no_photos(size),
        centre=torch.empty(0),
    )
    return TrainResult(
        checkpoint=checkpoint,
        base_accuracy=None,
        holdout_accuracy=None,
        weights=loaded,
    )


def _ensure_adoptable(options: TrainBaseConfig) -> None:
    """Refuse settings by which there is nothing to adopt.

    Raises:
        UsageError: weights are to be trained, or none are given.
    """
    if options.epochs:
        raise UsageError(
            f"`dataset=none` adopts a classifier as it is, but `epochs` is {options.epochs}",
            "leave `epochs` out, or give images to train on",
        )
    if not options.start:
        raise UsageError(
            f"`dataset=none` adopts a classifier, but {options.backbone} has no weights",
            "give `weights=FILE`, or `weights=DEFAULT` for the published ones",
        )


def _task_without_images(
    options: TrainBaseConfig, expected: Preprocessing, names: tuple[str, ...]
) -> BaseTask:
    """Classes that are known from weights alone, and how their images are normalised and sized."""
    side = expected.side
    pixels, labels = torch.empty(0, 3, side, side, dtype=torch.uint8), torch.empty(0).long()
    none = ImageSubset(pixels, labels)
    return BaseTask(
        names=names,
        labels_in_dataset=[],
        fit=none,
        fit_labels=labels,
        holdout=none,
        holdout_labels=labels,
        normalisation=expected.normalisation,
        flip=False,
        input_size=options.input_size,
    )
