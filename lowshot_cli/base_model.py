"""What a base model is made from, and the checkpoint that is made of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.backbones import build_backbone
from lowshot_cli.checkpoint import SHAPING, Checkpoint
from lowshot_cli.config import Config, TrainBaseConfig
from lowshot_cli.data import Dataset, Picked
from lowshot_cli.data.splits import base_classes, split_holdout
from lowshot_cli.embed import BATCH, centre_of_stages, embed, fused
from lowshot_cli.meta import Meta
from lowshot_cli.model import EmbeddingNetwork, Head, Normalisation, at_once, relabel
from lowshot_cli.progress import OnProgress, Progress
from lowshot_cli.version import __version__
from lowshot_cli.weights import LoadedWeights, load_weights, preprocessing, read_weights

_SCALES = (1.0, 100.0)


@dataclass(frozen=True)
class TrainResult:
    """What training made.

    Attributes:
        checkpoint: the base model.
        base_accuracy: test accuracy in percent; None where there are no images.
        holdout_accuracy: hold-out accuracy in percent, likewise.
        epochs: passes over the fit images.
        train_seconds: the training loop with its hold-out evaluations, over all resumptions.
        images_per_second: fit images through the loop per second.
        weights: how the weights that it started from met the backbone; None without.
    """

    checkpoint: Checkpoint
    base_accuracy: float | None
    holdout_accuracy: float | None
    epochs: int
    train_seconds: float
    images_per_second: float
    weights: LoadedWeights | None = None


@dataclass(frozen=True)
class BaseTask:
    """The images of one base model, picked from its dataset, with labels in head order.

    `input_size` is the side in pixels that the backbone resizes them to, None for their own.
    """

    names: tuple[str, ...]
    labels_in_dataset: list[int]
    fit: Picked
    fit_labels: Tensor
    holdout: Picked
    holdout_labels: Tensor
    normalisation: Normalisation
    flip: bool
    input_size: int | None


def prepare(options: TrainBaseConfig, dataset: Dataset) -> BaseTask:
    """Split the images of the base classes, and see how they are to be normalised and sized."""
    names = base_classes(dataset, options.classes, options.split, options.class_order_seed)
    labels = [dataset.label(name) for name in names]
    fit, holdout = split_holdout(dataset.train, labels, options.holdout)
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
    """To which side in pixels the network resizes images of `side`; None leaves them as they are.

    A library's network gets images no smaller than those that its weights were trained on.
    """
    expected = preprocessing(options)
    if options.input_size is None and expected is not None and side < expected.side:
        return expected.side
    return options.input_size


def build_network(
    options: TrainBaseConfig, task: BaseTask, with_weights: bool
) -> tuple[EmbeddingNetwork, int, LoadedWeights | None]:
    """The network to train, the size E of what it makes, and how its weights met it.

    Args:
        options: of the base model.
        task: its images.
        with_weights: load the weights that the options name; a resumed training has its own.
    """
    backbone = build_backbone(
        options.backbone,
        options.width,
        options.embedding_size,
        task.fit.side,
        task.input_size,
    )
    loaded = None
    if options.weights and with_weights:
        loaded = load_weights(backbone, read_weights(options), options.weights)
    if options.freeze_backbone:
        backbone.requires_grad_(False)
        backbone.project.requires_grad_(True)
    return EmbeddingNetwork(backbone, task.normalisation), backbone.embedding_size, loaded


def fitted_scale(cosines: Tensor, labels: Tensor) -> float:
    """The scale under which labels `(N,)` are likeliest, given cosines `(N, C)`.

    The cross-entropy is convex in it. The images must not have shaped the rows.
    """

    def cross_entropy(scale: float) -> float:
        return F.cross_entropy(scale * cosines, labels).item()

    # Every command imports this module, few need it, and it takes a fifth of a second.
    from scipy.optimize import minimize_scalar

    return float(minimize_scalar(cross_entropy, bounds=_SCALES, method="bounded").x)


def make_checkpoint(
    config: Config,
    dataset: Dataset,
    task: BaseTask,
    trained: EmbeddingNetwork,
    rows: Tensor,
    scale: float | None,
    on_progress: OnProgress,
) -> tuple[Checkpoint, float]:
    """Turn a network and its rows into a checkpoint, measured on the test images.

    Args:
        config: common part and `train_base`.
        dataset: where images come from.
        task: its images.
        trained: its backbone is taken.
        rows: `(C, E)` unit base rows.
        scale: the learned factor on the cosines; None fits it on the hold-out's shaping half.
        on_progress: told while images are embedded.

    Returns:
        The checkpoint, and its hold-out accuracy in percent.
    """
    centre = centre_of_stages(trained, task.holdout.part(SHAPING))
    network = EmbeddingNetwork(trained.backbone, task.normalisation, centre, task.flip)
    network = network.to(trained.device)
    test = [dataset.test.of_class(label) for label in task.labels_in_dataset]
    queries = dataset.test.picked(torch.cat(test))
    total = len(task.holdout) + len(queries)
    used = fused(network)
    holdout = embed(used, task.holdout)
    on_progress(Progress("embedding", len(holdout), total))
    if scale is None:
        labels = task.holdout_labels[SHAPING]
        # One number needs no more images than so many.
        some = slice(None, None, 1 + len(labels) // at_once(len(rows)))
        shaping = F.normalize(holdout[SHAPING, : rows.shape[1]], dim=1)[some]
        scale = fitted_scale(shaping @ rows.T, labels[some])
    head = Head.of_base(rows, scale, rows.shape[1] + len(centre))
    right = _predicted(used, head, queries, total, on_progress).split([len(n) for n in test])
    counts = tuple(
        (int((predicted == position).sum()), len(predicted))
        for position, predicted in enumerate(right)
    )
    found = head.predict(holdout) == task.holdout_labels
    checkpoint = Checkpoint(
        describe(config, dataset, task, rows.shape[1], counts),
        head,
        {n: t.detach().cpu() for n, t in network.backbone.state_dict().items()},
        holdout.half(),
        task.holdout_labels,
        found,
        centre,
    ).settled()
    return checkpoint, 100 * found.double().mean().item()


def _predicted(
    network: EmbeddingNetwork, head: Head, queries: Picked, total: int, on_progress: OnProgress
) -> Tensor:
    """Class `(N,)` of each image; images, embeddings and cosines are never all there at once."""
    step = max(BATCH, at_once(max(len(head.proxies), head.size)) // BATCH * BATCH)
    found = [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(queries), step):
        found.append(head.predict(embed(network, queries.part(slice(start, start + step)))))
        done = total - max(0, len(queries) - start - step)
        on_progress(Progress("embedding", done, total, milestone=done == total))
    return torch.cat(found)


def describe(
    config: Config, dataset: Dataset, task: BaseTask, size: int, counts: tuple[tuple[int, int], ...]
) -> Meta:
    """What a checkpoint says of a base model whose embeddings' trained part has `size` numbers."""
    options, portable = config.train_base, config.portable()
    step = {"command": "train_base", "seed": config.seed, "options": portable["train_base"]}
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
        class_order_seed=options.class_order_seed,
        split=options.split,
        holdout_per_class=options.holdout,
        base_counts=counts,
        config=portable,
        version=__version__,
        history=(step,),
    )
