"""Evaluation of one model on its test images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """Accuracy of one class in percent over its `n` test images; None without test images."""

    name: str
    accuracy: float | None
    n: int
    is_base: bool

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return {"class": self.name, "accuracy": self.accuracy, "n": self.n}


@dataclass(frozen=True)
class Confusion:
    """`n` test images of class `truth` that were taken for `taken_for`."""

    truth: str
    taken_for: str
    n: int


@dataclass(frozen=True)
class Evaluation:
    """A model on its test images; accuracies over all classes of the head, in percent.

    Base and novel accuracy and their harmonic mean are None without images of such classes.
    `forgetting` is None where the accuracy of the base model on these images is not known.
    `counts` `(K, 3)` int64 has a row for each pair of classes that occurs, in ascending order:
    position of the true class, position of the predicted class, number of images.
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

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return {
            "n_base": self.n_base,
            "n_novel": self.n_novel,
            "base_accuracy": self.base_accuracy,
            "novel_accuracy": self.novel_accuracy,
            "global_accuracy": self.global_accuracy,
            "harmonic_mean": self.harmonic_mean,
            "forgetting": self.forgetting,
            "per_class": [each.to_json() for each in self.per_class],
        }


def evaluate(checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder) -> Evaluation:
    """Classify the test images of every class the model knows.

    Classes learnt from photos outside the dataset have no test images in it. If base classes were
    removed, forgetting is against the base model without them; where fine-tuning has also changed
    network or base proxies, that model is gone, and forgetting is None.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: of the checkpoint's network.

    Raises:
        CheckpointError: the model was trained on another dataset.
    """
    found = test_embeddings(checkpoint, dataset, embedder)
    meta, right = checkpoint.meta, list[Tensor]()
    if meta.base_counts is None and not meta.base_changed:
        found = _with_base_alone(checkpoint, found, right)
    measured, before = evaluate_embeddings(checkpoint, found), checkpoint.base_accuracy
    if measured.base_accuracy is not None and right:
        every = torch.cat(right)  # (N,)
        before = 100 * int(every.sum()) / len(every)
    if measured.base_accuracy is None or before is None:
        return measured
    return replace(measured, forgetting=before - measured.base_accuracy)


def test_embeddings(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder
) -> Iterable[tuple[str, Tensor]]:
    """The classes of the model that the dataset has, and embeddings `(n, D)` of their test images.

    Raises:
        CheckpointError: the model was trained on another dataset.
    """
    check_dataset(checkpoint, dataset)
    names = checkpoint.meta.classes
    inside = {n: own for n in names if (own := checkpoint.dataset_name(n)) in dataset.labels}
    made = embedder.each(dataset.test, [dataset.label(own) for own in inside.values()])
    return zip(inside, made, strict=True)


def _with_base_alone(
    checkpoint: Checkpoint, found: Iterable[tuple[str, Tensor]], right: list[Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Pass classes on, and append which images the base classes alone get right, `(n,)` bool."""
    base = checkpoint.head.base
    for name, embeddings in found:
        if name in checkpoint.base_classes:
            right.append(base.predict(embeddings) == checkpoint.position(name))
        yield name, embeddings


def evaluate_embeddings(checkpoint: Checkpoint, found: Iterable[tuple[str, Tensor]]) -> Evaluation:
    """Measure a model on embedded images; forgetting is not known from these.

    Args:
        checkpoint: the model.
        found: classes with embeddings `(n, D)` of their images, read one class at a time.
    """
    names, n_base = checkpoint.meta.classes, checkpoint.meta.n_base
    counts = confusion_counts(checkpoint, found)  # (K, 3)
    truth, predicted, times = counts.unbind(1)
    zeros, is_right = counts.new_zeros(len(names)), truth == predicted
    sizes = zeros.index_add(0, truth, times).tolist()  # images of each class
    right = zeros.index_add(0, truth[is_right], times[is_right]).tolist()  # and how many are right

    def accuracy(part: slice) -> float | None:
        count = sum(sizes[part])
        return 100 * sum(right[part]) / count if count else None

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
        forgetting=None,
        per_class=tuple(
            ClassAccuracy(name, accuracy(slice(i, i + 1)), size, i < n_base)
            for i, (name, size) in enumerate(zip(names, sizes, strict=True))
        ),
        confusions=_worst_confusions(counts, names),
        counts=counts,
    )


def confusion_counts(checkpoint: Checkpoint, found: Iterable[tuple[str, Tensor]]) -> Tensor:
    """Count what the images of each class are taken for.

    Args:
        checkpoint: the model.
        found: classes with embeddings `(n, D)` of their images.

    Returns:
        `(K, 3)` int64, as `Evaluation.counts`.
    """
    names = checkpoint.meta.classes
    positions = {name: position for position, name in enumerate(names)}
    labelled = ((part, torch.full((len(part),), positions[name])) for name, part in found)
    truth, predicted = [_NO_LABELS], [_NO_LABELS]
    for embeddings, labels in join(labelled, chunk_size(max(len(names), checkpoint.head.size))):
        truth.append(labels)  # (b,)
        predicted.append(checkpoint.head.predict(embeddings))  # (b,)
    pairs = torch.stack([torch.cat(truth), torch.cat(predicted)])  # (2, N)
    cells, times = pairs.unique(dim=1, return_counts=True)  # (2, K) and (K,)
    return torch.cat([cells, times[None]]).T


_NO_LABELS = torch.empty(0, dtype=torch.int64)


def join(parts: Iterable[tuple[Tensor, ...]], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Concatenate tuples of tensors position by position, to `size` rows or more (last: fewer)."""
    waiting: list[tuple[Tensor, ...]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part[0])
        if count >= size:
            yield tuple(map(torch.cat, zip(*waiting, strict=True)))
            waiting, count = [], 0
    if waiting:
        yield tuple(map(torch.cat, zip(*waiting, strict=True)))


def _worst_confusions(counts: Tensor, names: Sequence[str], most: int = 5) -> tuple[Confusion, ...]:
    truth, taken, times = counts.unbind(1)
    wrong = (truth != taken).nonzero().squeeze(1)  # cells off the diagonal
    worst = wrong[times[wrong].argsort(descending=True, stable=True)[:most]].tolist()
    return tuple(
        Confusion(names[int(truth[cell])], names[int(taken[cell])], int(times[cell]))
        for cell in worst
    )
