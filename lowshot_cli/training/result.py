"""From a trained network to a base checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import Holdout, fit_half
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import Precision
from lowshot_cli.data.dataset import Dataset, ImageSubset
from lowshot_cli.data.framing import CROP
from lowshot_cli.data.image_files import LISTING
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.methods.imprinting import reading_stages, whitened
from lowshot_cli.models.backbones import detached_state
from lowshot_cli.models.embedder import Embedder, centre_of_stages, embed
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import Head
from lowshot_cli.models.weights import LoadedWeights
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.task import BaseTask, embed_first, largest_shift
from lowshot_cli.version import __version__

# Fit images of each class, at most, that decide what its proxy reads of the stages.
_FOR_STATISTICS = 100
# Shrinkage of their statistics, whatever the number of dimensions: it matters little here.
_SHRINKAGE = 0.5


@dataclass(frozen=True)
class TrainResult:
    """The result of training.

    Attributes:
        checkpoint: the base model.
        base_accuracy: test accuracy in percent; None if there are no images.
        holdout_accuracy: hold-out accuracy in percent, likewise.
        epochs: passes over the fit images.
        train_seconds: the training loop with its hold-out evaluations, over all resumptions.
        images_per_second: fit images through the loop per second.
        weights: how the given weights fitted the backbone; None if none were given.
    """

    checkpoint: Checkpoint
    base_accuracy: float | None
    holdout_accuracy: float | None
    epochs: int = 0
    train_seconds: float = 0.0
    images_per_second: float = 0.0
    weights: LoadedWeights | None = None


def make_cosine_checkpoint(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    trained: EmbeddingNetwork,
    proxies: Tensor,
    *,
    scale: float,
    precision: Precision,
    context: RunContext = DEFAULT_CONTEXT,
) -> Checkpoint:
    """Turn a network and the proxies that were trained with it into a checkpoint.

    Args:
        config: the common settings and `train_base`.
        dataset: where images come from.
        task: the images of the base classes.
        trained: the network whose backbone is used.
        proxies: `(C, E)` of the base classes, unit.
        scale: the learned factor on the cosines.
        precision: that of training, for the record.
        context: gets reports while images are embedded.
    """
    images = ImageSubset(task.holdout.pixels, fit_half(task.holdout.index))
    network = with_centre(trained, task, centre_of_stages(trained, images))
    # On embeddings as they are stored: the bias is set on these, and rounding may turn a decision.
    stored = embed(network, task.holdout).half()
    length = network.joint_length if network.centre is not None else 1.0
    head = Head.of_base(proxies, scale, stored.shape[1], length)
    if network.centre is not None:
        known = Statistics.of(*embed_first(network, task, _FOR_STATISTICS), _SHRINKAGE)
        by_mean = whitened(known.means[:, None], known.centre, known.whiten)  # (C, D)
        head = replace(head, proxies=reading_stages(head.proxies, by_mean))
    right = head.predict(stored.float()) == task.holdout_labels  # (N,)
    holdout = Holdout(stored, task.holdout_labels, right).with_nearest_cached(head)
    return make_checkpoint(
        config,
        dataset,
        task,
        network,
        head=head,
        holdout=holdout,
        precision=precision,
        context=context,
    )


def with_centre(network: EmbeddingNetwork, task: BaseTask, centre: Tensor) -> EmbeddingNetwork:
    """The network as a checkpoint of the task has it, with the centre `(M,)` of its stages."""
    used = EmbeddingNetwork(network.backbone, task.normalisation, centre, task.flip)
    return used.to(network.device)


def make_checkpoint(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    network: EmbeddingNetwork,
    *,
    head: Head,
    holdout: Holdout,
    precision: Precision = "fp32",
    context: RunContext = DEFAULT_CONTEXT,
) -> Checkpoint:
    """The checkpoint of a base model, measured on the test images.

    Args:
        config: the common settings and `train_base`.
        dataset: where images come from.
        task: the images of the base classes.
        network: from `with_centre`.
        head: of the base classes.
        holdout: base images that set the bias.
        precision: that of training, for the record.
        context: gets reports while images are embedded; its cache is used.
    """
    embedder = Embedder(network, cache=context.cache, on_progress=context.on_progress)
    counts = tuple(
        (int((head.predict(embeddings) == label).sum()), len(embeddings))
        for label, embeddings in enumerate(embedder.each(dataset.test, task.labels_in_dataset))
    )
    centre = network.centre
    return Checkpoint(
        meta=describe_base(
            config, dataset, task, network, head=head, counts=counts, precision=precision
        ),
        head=head,
        backbone=detached_state(network.backbone),
        holdout=holdout,
        centre=torch.empty(0) if centre is None else centre.cpu(),
        fold_proxies=head.proxies.new_empty(holdout.n_folds, 0, head.proxies.shape[1])
        if holdout.folds is not None
        else None,
    )


def describe_base(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    network: EmbeddingNetwork,
    *,
    head: Head,
    counts: tuple[tuple[int, int], ...],
    precision: Precision = "fp32",
) -> Meta:
    """The metadata of a base model.

    Its config holds the settings as they were given, the history as they were used.

    Args:
        config: the config it was trained with.
        dataset: where its images come from.
        task: what it was trained on.
        network: that of the model.
        head: that of the model.
        counts: per class, how many test images it gets right and how many there are.
        precision: that of training.
    """
    options, size, is_adopted = config.train_base, network.trained_size, not network.unit
    portable = {**config.portable(), "dataset": dataset.name, "image_size": task.fit.side}
    used = {**portable["train_base"], **_used(options, task), "embedding_size": size}
    used["precision"] = precision
    return Meta(
        format=4 if is_adopted or dataset.framing != CROP else 3 if head.is_linear else 2,
        adopted=is_adopted,
        head="linear" if head.is_linear else "cosine",
        classes=task.names,
        n_base=len(task.names),
        backbone=options.backbone,
        width=options.width,
        embedding_size=size,
        image_size=task.fit.side,
        input_size=task.input_size,
        framing=dataset.framing,
        mirror=task.flip,
        mean=task.normalisation.mean,
        std=task.normalisation.std,
        dataset=dataset.name,
        dataset_hash=dataset.content_hash,
        listing=LISTING,
        class_order_seed=options.class_order_seed,
        split=options.split,
        holdout_per_class=options.holdout,
        base_counts=counts,
        config=portable,
        version=__version__,
        history=({"command": "train_base", "seed": config.seed, "options": used},),
    )


def _used(options: TrainBaseConfig, task: BaseTask) -> dict[str, object]:
    """The settings that depend on the images, as they were used."""
    return {
        "classes": len(task.names) if options.classes is None else options.classes,
        "crop": largest_shift(options, task.fit.side),
        "flip": task.flip,
        "input_size": task.input_size,
        **({"epochs": 0, "blend": None} if options.is_frozen else {"blend": options.share}),
    }
