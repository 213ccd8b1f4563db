"""The linear head of a base model, made in seconds from embeddings alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.holdout import N_FOLDS, SAMPLES, Holdout, first_of_classes
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import Interrupted, TrainingError
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import Head, as_read
from lowshot_cli.seeding import Stream, smallest_keys
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.result import with_centre
from lowshot_cli.training.task import BaseTask

# Shrinkages of base classes, of which the one is taken that makes unseen images likeliest.
SHRINKAGES = (0.2, 0.5, 1.0, 2.0)
NOVEL_SHRINKAGE = 4.0
# Images whose embeddings a checkpoint carries: of one class, and of all together.
_MOST_OF_CLASS, _MOST = 100, 5000
# Images of a class that has any in a fold.
_LEAST_OF_CLASS = 3
# How far from 1 the length of an embedding may be.
_UNIT_TOLERANCE = 0.01
# Largest ratios of the units of novel and of round scores to that of base classes. With hundreds of
# images they were 0.4 to 0.7, and 6 to 21.
_MOST_NOVEL, _MOST_ROUND = 4.0, 100.0
# Logarithms of the bounds of a fitted scale.
_LOG_SCALES = (-5.0, 10.0)


def fitted_scale(scores: Tensor, labels: Tensor) -> float:
    """The scale under which labels `(N,)` are likeliest, given scores `(N, C)`.

    The cross-entropy is convex in it. Images that shaped the proxies must not be among them, as
    their scores are larger than those of images the model has not seen.
    """
    if not len(labels) or scores.shape[1] < 2:
        return 1.0

    def cross_entropy(log_scale: float) -> float:
        return _surprise(math.exp(log_scale) * scores, labels)

    # Few trainings need it, and importing it takes a fifth of a second.
    from scipy.optimize import minimize_scalar

    return math.exp(minimize_scalar(cross_entropy, bounds=_LOG_SCALES, method="bounded").x)


def _surprise(logits: Tensor, labels: Tensor) -> float:
    """The cross-entropy of labels `(N,)` under logits `(N, C)`, as if one image more were wrong.

    Without that one, images that are all right would be likeliest under an endless scale.
    """
    if not len(labels):
        return 0.0
    smoothing = 1 / (len(labels) + 1)
    return F.cross_entropy(logits.double(), labels, label_smoothing=smoothing).item()


def draw_folds(counts: Sequence[int]) -> list[Tensor]:
    """The fold of each image of each class, `(n,)` int64; -1 for images that are in none.

    Folds are drawn from the numbers of images alone, without a seed. One or two images of a class
    are in none, because what they leave would not show how images of a class differ.

    Args:
        counts: number of images of each class, one or more.
    """
    most = max(N_FOLDS, min(_MOST_OF_CLASS, _MOST // len(counts)))
    folds = []
    for label, count in enumerate(counts):
        order = torch.from_numpy(smallest_keys(count, count, Stream.HOLDOUT, label))  # (n,)
        fold = torch.full((count,), -1)
        if count >= _LEAST_OF_CLASS:
            chosen = order[:most]
            fold[chosen] = torch.arange(len(chosen)) % N_FOLDS
        folds.append(fold)
    return folds


def cross_fitted(embeddings: Tensor, labels: Tensor, folds: Tensor) -> tuple[Head, Holdout]:
    """A head whose network was trained on none of the images, so that all can shape it.

    The images of each fold are scored by what all others say. These scores choose the shrinkage,
    set the units and the scale, and tell which images are right. Of an image's own fold the proxies
    know nothing but these few numbers, and the centre of stages, in which it is one of all.

    Args:
        embeddings: `(N, D)` fp32 unit embeddings of all images; rounded to fp16 in place, as the
            checkpoint keeps them.
        labels: `(N,)` int64, every class 0 to C - 1.
        folds: `(N,)` int64 from `draw_folds`.
    """
    embeddings.copy_(embeddings.half())
    whole = Statistics.of(embeddings, labels, SHRINKAGES[0], NOVEL_SHRINKAGE)
    inside = [folds == number for number in range(N_FOLDS)]
    apart = [whole.without(embeddings[fold], labels[fold]) for fold in inside]
    held = [(embeddings[fold], labels[fold]) for fold in inside]
    statistics, scale, right_of_folds = _fit(whole, apart, held)
    bases = [
        replace(each, shrinkage=statistics.shrinkage, unit=statistics.unit).base_proxies
        for each in apart
    ]
    # Images that are in no fold because their class has too few: they are kept as samples.
    few = torch.bincount(labels)[labels] < _LEAST_OF_CLASS  # (N,)
    right = torch.zeros(len(labels), dtype=torch.bool)
    for fold, found in zip(inside, right_of_folds, strict=True):
        right[fold] = found
    kept = (folds >= 0) | few
    holdout = Holdout(
        embeddings[kept].half(),
        labels[kept],
        right[kept],
        statistics=statistics,
        folds=folds[kept],
        fold_bases=torch.stack(bases),
    )
    return _head(statistics, scale), holdout


def held_out(
    fit: Tensor, fit_labels: Tensor, held: Tensor, held_labels: Tensor
) -> tuple[Head, Holdout]:
    """A head whose network was trained on the fit images, of which alone it is made.

    Args:
        fit: `(N, D)` fp32 unit embeddings of the fit images.
        fit_labels: `(N,)` int64, every class 0 to C - 1.
        held: `(M, D)` those of the hold-out, which chooses the shrinkage and sets the scale.
        held_labels: `(M,)` int64.
    """
    held = held.half()
    whole = Statistics.of(fit, fit_labels, SHRINKAGES[0], NOVEL_SHRINKAGE)
    statistics, scale, (right,) = _fit(whole, [whole], [(held.float(), held_labels)])
    samples = first_of_classes(fit_labels, SAMPLES)
    none = torch.zeros(len(samples), dtype=torch.bool)
    holdout = Holdout(
        torch.cat([fit[samples].half(), held]),
        torch.cat([fit_labels[samples], held_labels]),
        torch.cat([none, right]),
        calibrates=torch.cat([none, torch.ones(len(held), dtype=torch.bool)]),
        statistics=statistics,
    )
    return _head(statistics, scale), holdout


@dataclass(frozen=True)
class TrainingEmbeddings:
    """Embeddings of the training images of the base classes.

    Attributes:
        network: that made them.
        fit: `(N, D)` fp32 unit embeddings of the images that the head is made of.
        holdout: `(M, D)` those of the hold-out.
    """

    network: EmbeddingNetwork
    fit: Tensor
    holdout: Tensor


def embed_training_images(
    dataset: Dataset, task: BaseTask, network: EmbeddingNetwork, *, context: RunContext
) -> TrainingEmbeddings:
    """Embed each training image of the base classes once.

    Args:
        dataset: where the images come from.
        task: which of them there are.
        network: its backbone is used as it is.
        context: gets a report after each class, and is asked whether to stop; its cache is used.

    Raises:
        Interrupted: `should_stop` returned true.
        TrainingError: features are zero or not finite.
    """
    # With a centre of zeros, because the centre is a mean over the embeddings themselves.
    plain = with_centre(network, task, torch.zeros(sum(network.stage_sizes)))
    embedder = Embedder(plain, cache=context.cache, on_progress=context.on_progress)
    order = torch.cat([dataset.train.of_class(label) for label in task.labels_in_dataset])
    # Filled class by class, as all embeddings take more memory than anything else here.
    embeddings, done = torch.empty(len(order), plain.size), 0  # (N + M, D)
    each = embedder.each(dataset.train, task.labels_in_dataset)
    for name, part in zip(task.names, each, strict=True):
        # The length of an embedding is 0 if all features are.
        if not bool(((part.norm(dim=1) - 1).abs() < _UNIT_TOLERANCE).all()):
            raise TrainingError(
                f"the backbone's features of {name!r} are zero or not finite",
                "give `weights`, or train for some `epochs`",
            )
        embeddings[done : done + len(part)] = part  # (n, D)
        done += len(part)
        if context.should_stop():
            raise Interrupted("stopped while embedding", "the same command starts it again")
    places = torch.empty(len(dataset.train.labels), dtype=torch.int64)
    places[order] = torch.arange(len(order))
    fit = places[task.fit.index]  # (N,)
    used = with_centre(network, task, plain.recentre(embeddings, fit))
    if not len(task.holdout):  # then they are in this order already
        return TrainingEmbeddings(used, embeddings, embeddings[:0])
    return TrainingEmbeddings(used, embeddings[fit], embeddings[places[task.holdout.index]])


def _head(statistics: Statistics, scale: float) -> Head:
    proxies = statistics.base_proxies
    return Head(proxies, scale, len(proxies), is_linear=True)


def _fit(
    whole: Statistics, apart: Sequence[Statistics], held: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Statistics, float, list[Tensor]]:
    """Choose shrinkage, units and scale on images that are scored by statistics without them.

    The unit of base classes is the mean length of their weights, so that scores are about as large
    as cosines. The others are such that one scale makes labels likeliest by each kind of score.

    Args:
        whole: statistics that the head is made of.
        apart: statistics that score each part.
        held: embeddings `(n, D)` and labels `(n,)` of each part.

    Returns:
        `whole` with the shrinkage and the units; the scale; which images of each part are right.
    """
    labels = torch.cat([part for _, part in held])  # (M,)

    def judge(proxies_of: Callable[[Statistics], Tensor]) -> tuple[float, float, Tensor]:
        """The loss of labels, the scale for which it is least, and the scores `(M, C)`."""
        pairs = zip(apart, held, strict=True)
        scores = torch.cat([_score(part, proxies_of(each)) for each, (part, _) in pairs])
        scale = fitted_scale(scores, labels)
        return _surprise(scale * scores, labels), scale, scores

    def base_proxies(statistics: Statistics, shrinkage: float) -> Tensor:
        return replace(statistics, shrinkage=shrinkage).base_proxies

    judged = [(judge(partial(base_proxies, shrinkage=each)), each) for each in SHRINKAGES]
    (_, scale, scores), shrinkage = min(judged, key=lambda found: found[0][0])
    _, novel_scale, _ = judge(partial(base_proxies, shrinkage=NOVEL_SHRINKAGE))
    _, round_scale, _ = judge(lambda each: each.round_proxies(each.means))
    length = base_proxies(whole, shrinkage)[:, :-1].norm(dim=1).mean().item()
    unit = length if length > 0 else 1.0
    fitted = replace(
        whole,
        shrinkage=shrinkage,
        unit=unit,
        novel_unit=unit * _bounded(scale / novel_scale, _MOST_NOVEL),
        round_unit=unit * _bounded(scale / round_scale, _MOST_ROUND),
    )
    right = scores.argmax(1) == labels  # (M,)
    return fitted, scale * unit, list(right.split([len(part) for _, part in held]))


def _bounded(ratio: float, most: float) -> float:
    """A ratio of scales within reason, where few images leave it open."""
    return min(max(ratio, 1 / most), most)


def _score(embeddings: Tensor, proxies: Tensor) -> Tensor:
    return as_read(embeddings, proxies) @ proxies.T
