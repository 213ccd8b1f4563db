"""From a trained network to a base checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import Holdout, fit_half
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import Precision
from lowshot_cli.data.dataset import BATCH, Dataset, ImageSubset
from lowshot_cli.data.image_files import LISTING
from lowshot_cli.models.backbones import detached_state
from lowshot_cli.models.embedder import centre_of_stages, embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import Head, chunk_size
from lowshot_cli.models.weights import LoadedWeights
from lowshot_cli.progress import OnProgress, Progress
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.task import BaseTask
from lowshot_cli.version import __version__

# Bounds of a fitted scale.
_SCALES = (1.0, 100.0)


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
    epochs: int
    train_seconds: float
    images_per_second: float
    weights: LoadedWeights | None = None


def fitted_scale(cosines: Tensor, labels: Tensor) -> float:
    """The scale under which labels `(N,)` are likeliest, given cosines `(N, C)`.

    The cross-entropy is convex in it. Images that shaped the proxies must not be among them, as
    their cosines are larger than those of images the model has not seen.
    """

    def cross_entropy(scale: float) -> float:
        return F.cross_entropy(scale * cosines, labels).item()

    # Few trainings need it, and importing it takes a fifth of a second.
    from scipy.optimize import minimize_scalar

    return float(minimize_scalar(cross_entropy, bounds=_SCALES, method="bounded").x)


def make_checkpoint(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    trained: EmbeddingNetwork,
    proxies: Tensor,
    *,
    scale: float | None = None,
    precision: Precision = "fp32",
    context: RunContext = DEFAULT_CONTEXT,
) -> tuple[Checkpoint, float]:
    """Turn a network and its proxies into a checkpoint, measured on the test images.

    Args:
        config: the common settings and `train_base`.
        dataset: where images come from.
        task: the images of the base classes.
        trained: the network whose backbone is used.
        proxies: `(C, E)` of the base classes, unit.
        scale: the learned factor on the cosines; None fits it on the hold-out's fit half.
        precision: that of training, for the record.
        context: gets reports while images are embedded.

    Returns:
        The checkpoint, and its hold-out accuracy in percent.
    """
    centre = centre_of_stages(
        trained, ImageSubset(task.holdout.pixels, fit_half(task.holdout.index))
    )
    network = EmbeddingNetwork(trained.backbone, task.normalisation, centre, task.flip)
    network = network.to(trained.device)
    test = [dataset.test.of_class(label) for label in task.labels_in_dataset]
    queries = dataset.test.picked(torch.cat(test))
    total = len(task.holdout) + len(queries)
    used = fused(network)
    holdout = embed(used, task.holdout)
    context.on_progress(Progress("embedding", len(holdout), total))
    if scale is None:
        labels = fit_half(task.holdout_labels)
        # With many classes, a sample of the images: it fits one number as well, in bounded memory.
        some = slice(None, None, 1 + len(labels) // chunk_size(len(proxies)))
        held = F.normalize(fit_half(holdout)[:, : proxies.shape[1]], dim=1)[some]  # (n, E)
        scale = fitted_scale(held @ proxies.T, labels[some])
    head = Head.of_base(proxies, scale, proxies.shape[1] + len(centre))
    predicted = _predict(used, head, queries, total, context.on_progress)
    counts = tuple(
        (int((of_class == label).sum()), len(of_class))
        for label, of_class in enumerate(predicted.split([len(index) for index in test]))
    )
    # On embeddings as they are stored: the bias is set on these, and rounding may turn a decision.
    stored = holdout.half()
    right = head.predict(stored.float()) == task.holdout_labels  # (N,)
    checkpoint = Checkpoint(
        meta=describe_base(config, dataset, task, proxies.shape[1], counts, precision=precision),
        head=head,
        backbone=detached_state(network.backbone),
        holdout=Holdout(stored, task.holdout_labels, right).with_nearest_cached(head),
        centre=centre,
    )
    return checkpoint, 100 * right.double().mean().item()


def _predict(
    network: EmbeddingNetwork, head: Head, queries: ImageSubset, total: int, on_progress: OnProgress
) -> Tensor:
    """Class `(N,)` of each image, without all images, embeddings or cosines in memory."""
    step = max(BATCH, chunk_size(max(len(head.proxies), head.size)) // BATCH * BATCH)
    found = [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(queries), step):
        found.append(head.predict(embed(network, queries.part(slice(start, start + step)))))
        done = total - max(0, len(queries) - start - step)
        on_progress(Progress("embedding", done, total))
    return torch.cat(found)


def describe_base(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    size: int,
    counts: tuple[tuple[int, int], ...],
    *,
    precision: Precision = "fp32",
) -> Meta:
    """The metadata of a base model.

    Its config holds the settings as they were given, the history as they were used.

    Args:
        config: the config it was trained with.
        dataset: where its images come from.
        task: what it was trained on.
        size: E, the size of the trained part of an embedding.
        counts: per class, how many test images it gets right and how many there are.
        precision: that of training.
    """
    options = config.train_base
    portable = {**config.portable(), "dataset": dataset.name, "image_size": task.fit.side}
    used = {
        "classes": len(task.names) if options.classes is None else options.classes,
        "embedding_size": size,
        "flip": task.flip,
        "input_size": task.input_size,
        "precision": precision,
    }
    step = {
        "command": "train_base",
        "seed": config.seed,
        "options": {**portable["train_base"], **used},
    }
    return Meta(
        classes=task.names,
        n_base=len(task.names),
        backbone=options.backbone,
        width=options.width,
        embedding_size=size,
        image_size=task.fit.side,
        input_size=task.input_size,
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
        history=(step,),
    )
