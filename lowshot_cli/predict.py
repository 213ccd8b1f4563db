"""What a model says of photos, and when it says that it does not know them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lowshot_cli.checkpoint import CALIBRATION, Checkpoint
from lowshot_cli.data import Dataset
from lowshot_cli.data.photos import read_photos
from lowshot_cli.embed import Embedder, embed, fused
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.evaluate import check_dataset, together
from lowshot_cli.model import EmbeddingNetwork, Head, at_once
from lowshot_cli.progress import OnProgress, Progress, silent

BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        image: how the caller names it.
        top: the most probable classes with their probabilities 0..1, best first.
        unknown: whether it resembles no class enough; False where nobody asked.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    unknown: bool = False

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Of the most probable class, 0..1."""
        return self.top[0][1]


@dataclass(frozen=True)
class Unreadable:
    """A file that is no readable image, and a line that says why."""

    file: Path
    reason: str


def familiarity(head: Head, embeddings: Tensor) -> Tensor:
    """How much images resemble the class they resemble most: largest cosine plus bias, `(B,)`."""
    return head.best(embeddings)[0]


def unknown_threshold(checkpoint: Checkpoint, false_alarm: float) -> float:
    """The familiarity below which an image is of no known class.

    It is taken from the half of the base hold-out that also sets the bias.

    Args:
        checkpoint: the model.
        false_alarm: percent of those images that are taken for unknown ones, at most.

    Raises:
        CheckpointError: the checkpoint carries no hold-out.
    """
    held = checkpoint.holdout[CALIBRATION].float()
    if not len(held):
        raise CheckpointError(
            "the checkpoint has no hold-out images, so unknown ones cannot be told", "train a base"
        )
    scores = familiarity(checkpoint.head, held).numpy()
    return float(np.quantile(scores, false_alarm / 100, method="lower"))


@dataclass(frozen=True)
class OpenSet:
    """How well unknown images are told from known ones, all in percent.

    Attributes:
        auroc: chance that a known image is more familiar than an unknown one.
        false_alarm: known test images that are taken for unknown ones.
        detected: unknown test images that are taken for unknown ones.
        n_known: test images of the model's classes.
        n_unknown: test images of other classes.
    """

    auroc: float
    false_alarm: float
    detected: float
    n_known: int
    n_unknown: int


def open_set(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder, false_alarm: float
) -> OpenSet:
    """Measure the rejection of unknown images on classes of the dataset that the model never saw.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: of the checkpoint's network.
        false_alarm: percent, as in `unknown_threshold`.

    Raises:
        UsageError: the model knows all classes.
        CheckpointError: no hold-out, or another dataset.
    """
    check_dataset(checkpoint, dataset)
    names = {checkpoint.dataset_name(name) for name in checkpoint.meta.classes}
    groups: list[list[int]] = [[], []]
    for label, name in enumerate(dataset.class_names):
        groups[int(name not in names)].append(label)
    if not groups[1]:
        raise UsageError("the model knows every class of the dataset", "--open-set needs others")
    step = at_once(max(len(names), checkpoint.head.size))
    known, unknown = (
        np.concatenate(
            [
                familiarity(checkpoint.head, block).numpy()
                for block in together(embedder.each(dataset.test, labels), step)
            ]
        )
        for labels in groups
    )
    threshold = unknown_threshold(checkpoint, false_alarm)
    from scipy.stats import mannwhitneyu  # takes half a second, which other commands are spared

    statistic = mannwhitneyu(known, unknown).statistic
    return OpenSet(
        auroc=100 * float(statistic) / (len(known) * len(unknown)),
        false_alarm=100 * float((known < threshold).mean()),
        detected=100 * float((unknown < threshold).mean()),
        n_known=len(known),
        n_unknown=len(unknown),
    )


def describe(
    checkpoint: Checkpoint,
    embeddings: Tensor,
    images: Sequence[str],
    most: int,
    threshold: float = -np.inf,
) -> list[Prediction]:
    """Predictions of embedded images.

    Args:
        checkpoint: the model.
        embeddings: `(B, D)` unit.
        images: how each is named.
        most: classes in `top`; there are no more than the model knows.
        threshold: familiarity below which an image is unknown.
    """
    head, names = checkpoint.head, checkpoint.meta.classes
    predictions: list[Prediction] = []
    for part in embeddings.split(at_once(len(names))):
        cosines = head.cosines(part)
        unknown = (cosines.amax(1) < threshold).tolist()
        chances, classes = (head.scale * cosines).softmax(1).topk(min(most, len(names)))
        for row, values, flag in zip(classes.tolist(), chances.tolist(), unknown, strict=True):
            top = tuple((names[c], p) for c, p in zip(row, values, strict=True))
            predictions.append(Prediction(images[len(predictions)], top, flag))
    return predictions


def predict(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    files: Sequence[Path],
    most: int = 3,
    threshold: float = -np.inf,
    batch: int = BATCH,
    on_progress: OnProgress = silent,
) -> Iterator[Prediction | Unreadable]:
    """Classify image files in fp32, one batch being embedded while the next is decoded.

    Args:
        checkpoint: the model.
        network: the checkpoint's.
        files: in the order of the results, but for unreadable ones, which end their batch.
        most: classes in `top`.
        threshold: familiarity below which an image is unknown.
        batch: images embedded together.
        on_progress: told after each batch.
    """
    network, done = fused(network), 0
    for part in read_photos(files, checkpoint.meta.image_size, batch):
        if part.files:
            images = [str(file) for file in part.files]
            embeddings = embed(network, part.pixels)
            yield from describe(checkpoint, embeddings, images, most, threshold)
        yield from (Unreadable(file, reason) for file, reason in part.unreadable)
        done += len(part.files) + len(part.unreadable)
        on_progress(Progress("predicting", done, len(files), milestone=done == len(files)))


def readable(found: Iterable[Prediction | Unreadable]) -> tuple[list[Prediction], list[Unreadable]]:
    """Tell predictions from files that could not be read."""
    predictions, unreadable = [], []
    for one in found:
        if isinstance(one, Prediction):
            predictions.append(one)
        else:
            unreadable.append(one)
    return predictions, unreadable
