"""Rejection of images of unknown classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.calibration import calibration_images
from lowshot_cli.evaluation.evaluate import join
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.models.head import Head, chunk_size


def familiarity(head: Head, embeddings: Tensor) -> Tensor:
    """Similarity of images to their most similar class: largest score, `(B,)`."""
    return head.best(embeddings)[0]


def unknown_threshold(checkpoint: Checkpoint, false_alarm: float | None) -> float:
    """The familiarity below which an image counts as unknown.

    It is measured on the base images that also set the bias, by a head that none of them shaped.

    Args:
        checkpoint: the model.
        false_alarm: largest percentage of these images that may be taken for unknown ones; with
            None no image is, and the threshold is minus infinity.

    Raises:
        UsageError: the percentage is out of range.
        CheckpointError: the checkpoint carries no hold-out.
    """
    if false_alarm is None:
        return -math.inf
    if not 0 <= false_alarm <= 100:
        raise UsageError(f"`false_alarm` is {false_alarm}", "give a percentage from 0 to 100")
    images = calibration_images(checkpoint, "false_alarm")
    scores = [familiarity(head, part) for head, part, _ in images]
    return float(np.quantile(torch.cat(scores).numpy(), false_alarm / 100, method="lower"))


@dataclass(frozen=True)
class OpenSet:
    """How well the model tells unknown images from known ones, in percent.

    Attributes:
        auroc: chance that a known image is more familiar than an unknown one.
        false_alarm: known test images that are taken for unknown ones.
        detected: unknown test images that are recognised as unknown.
        n_known: test images of the model's classes.
        n_unknown: test images of other classes.
    """

    auroc: float
    false_alarm: float
    detected: float
    n_known: int
    n_unknown: int

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return asdict(self)


def open_set(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder, false_alarm: float
) -> OpenSet:
    """Measure the rejection of unknown images on classes of the dataset that the model never saw.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: with the checkpoint's network.
        false_alarm: percent, as in `unknown_threshold`.

    Raises:
        UsageError: the model knows every class of the dataset.
        CheckpointError: the model has no hold-out, or was trained on another dataset.
    """
    check_dataset(checkpoint, dataset)
    names = {checkpoint.dataset_name(name) for name in checkpoint.meta.classes}
    groups: list[list[int]] = [[], []]
    for label, name in enumerate(dataset.class_names):
        groups[int(name not in names)].append(label)
    if not groups[1]:
        raise UsageError(
            "the model knows every class of the dataset", "`open_set` needs classes it never saw"
        )
    known, unknown = (_familiarities(checkpoint, dataset, embedder, labels) for labels in groups)
    threshold = unknown_threshold(checkpoint, false_alarm)
    from scipy.stats import mannwhitneyu  # takes half a second to import

    statistic = mannwhitneyu(known, unknown).statistic
    return OpenSet(
        auroc=100 * float(statistic) / (len(known) * len(unknown)),
        false_alarm=100 * float((known < threshold).mean()),
        detected=100 * float((unknown < threshold).mean()),
        n_known=len(known),
        n_unknown=len(unknown),
    )


def _familiarities(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder, labels: Sequence[int]
) -> npt.NDArray[np.float32]:
    """`familiarity` `(n,)` of all test images of these classes."""
    size = chunk_size(max(len(checkpoint.meta.classes), checkpoint.head.size))
    parts = ((embeddings,) for embeddings in embedder.each(dataset.test, labels))
    scores = [familiarity(checkpoint.head, block).numpy() for (block,) in join(parts, size)]
    return np.concatenate(scores)
