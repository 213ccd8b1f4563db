"""Evaluation of one model on its test images, and of many trials at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.evaluation.statistics import harmonic_mean
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.models.head import chunk_size


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of one class in percent over its `n` test images, None where there are none."""

    name: str
    accuracy: float | None
    n: int
    is_base: bool


@dataclass(frozen=True)
class Confusion:
    """`n` test images of class `truth` that were taken for `taken_for`."""

    truth: str
    taken_for: str
    n: int


@dataclass(frozen=True)
class Evaluation:
    """A model on its test images; accuracies over all classes of the head, in percent.

    Base, novel accuracy and harmonic mean are None where there are no images of such classes.
    `counts` `(K, 3)` int64 has a row for each pair of classes that occurs, in ascending order:
    position of the class, position of the class that its images are taken for, how many are.
    """

    n_base: int
    n_novel: int
    base_accuracy: float | None
    novel_accuracy: float | None
    global_accuracy: float
    harmonic_mean: float | None
    forgetting: float | None
    per_class: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    counts: Tensor


def evaluate(checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder) -> Evaluation:
    """Classify the test images of every class the model knows.

    Classes that were learnt from photos outside the dataset have no test images in it.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: of the checkpoint's network.

    Raises:
        CheckpointError: another dataset.
    """
    check_dataset(checkpoint, dataset)
    names = checkpoint.meta.classes
    inside = {n: own for n in names if (own := checkpoint.dataset_name(n)) in dataset.labels}
    made = embedder.each(dataset.test, [dataset.label(own) for own in inside.values()])
    return evaluate_embeddings(checkpoint, zip(inside, made, strict=True))


def evaluate_embeddings(
    checkpoint: Checkpoint, found: Iterable[tuple[str, Tensor]], beside_base: bool = True
) -> Evaluation:
    """Count how often a model is right.

    Args:
        checkpoint: the model.
        found: classes with embeddings `(n, D)` of their images, which need not be in memory all at
            once.
        beside_base: whether the images of base classes are those that the pristine base model was
            measured on, so that forgetting can be told.
    """
    names, n_base = checkpoint.meta.classes, checkpoint.meta.n_base
    positions = {name: position for position, name in enumerate(names)}
    order, sizes = [], [0] * len(names)

    def embeddings() -> Iterator[Tensor]:
        for name, part in found:
            order.append(positions[name])
            sizes[positions[name]] = len(part)
            yield part

    blocks = together(embeddings(), chunk_size(max(len(names), checkpoint.head.size)))
    none = torch.empty(0, dtype=torch.int64)
    predicted = torch.cat([none, *(checkpoint.head.predict(block) for block in blocks)])
    truth = torch.cat([none, *(none.new_full((sizes[place],), place) for place in order)])
    right = torch.bincount(truth[predicted == truth], minlength=len(names))
    cells, times = torch.stack([truth, predicted]).unique(dim=1, return_counts=True)
    table = torch.cat([cells, times[None]]).T

    def accuracy(part: slice) -> float | None:
        count = sum(sizes[part])
        return 100 * int(right[part].sum()) / count if count else None

    base, novel = accuracy(slice(n_base)), accuracy(slice(n_base, None))
    harmonic = None
    if base is not None and novel is not None:
        harmonic = harmonic_mean(np.array([base]), np.array([novel])).item()
    return Evaluation(
        n_base=n_base,
        n_novel=len(names) - n_base,
        base_accuracy=base,
        novel_accuracy=novel,
        global_accuracy=accuracy(slice(None)) or 0.0,
        harmonic_mean=harmonic,
        forgetting=None if base is None or not beside_base else checkpoint.base_accuracy - base,
        per_class=tuple(
            ClassAccuracy(name, accuracy(slice(i, i + 1)), size, i < n_base)
            for i, (name, size) in enumerate(zip(names, sizes, strict=True))
        ),
        confusions=_worst_confusions(table, names),
        counts=table,
    )


def together(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The same rows in fewer tensors, each of at least `rows` rows but the last."""
    waiting: list[Tensor] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= rows:
            yield torch.cat(waiting)
            waiting, count = [], 0
    if waiting:
        yield torch.cat(waiting)


def _worst_confusions(table: Tensor, names: Sequence[str], most: int = 5) -> tuple[Confusion, ...]:
    truth, taken, times = table.unbind(1)
    wrong = (truth != taken).nonzero().squeeze(1)
    worst = wrong[times[wrong].argsort(descending=True, stable=True)[:most]].tolist()
    return tuple(
        Confusion(names[int(truth[cell])], names[int(taken[cell])], int(times[cell]))
        for cell in worst
    )
