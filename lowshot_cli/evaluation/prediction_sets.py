"""Prediction sets: for each image the classes it may belong to, enough of them to keep a promise.

The classes of an image are ranked, and each has a score: the probability of all that rank before
it (APS: Romano, Sesia, Candès, "Classification with Valid and Adaptive Coverage", NeurIPS 2020,
without their random numbers). The set holds the classes whose score is at most the quantile of the
scores that the right classes of calibration images have. So no set is empty, the predicted class
is always in it, and the sets of an image grow with the confidence.

The calibration images are the base images that set the bias, each scored by a head that it did not
shape. The set of a new image, drawn as they were, holds its class with the probability asked for:
on average over base classes, not for each of them, and nothing is promised for novel classes.

A penalty on large sets (RAPS: Angelopoulos et al., ICLR 2021) is left out. On cross-fitted scores
of CIFAR-100 one that shrank sets by a tenth at 0.9 made them larger by half or more at 0.99.

With cross-fitting, calibration images are scored by heads made from the other folds, and new ones
by the head made from all. If new images were scored by the heads of all folds as well, coverage
would provably be no less than about 1 - 2a for a confidence of 1 - a (Barber et al., "Predictive
Inference with the Jackknife+", 2021). Measured, both ways give about 1 - a.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.calibration import calibration_images
from lowshot_cli.models.head import Head, chunk_size

# Ranking takes the memory of about this many matrices of scores.
RANKED = 8


def mass_before(logits: Tensor) -> Tensor:
    """Probability of the classes before each, `(B, C)` fp64, 0 for the first.

    Args:
        logits: `(B, C)`, those of each image in descending order.
    """
    # In fp64, as in fp32 the classes after a confident first one would all have mass 1.
    return F.pad(logits.double().softmax(1).cumsum(1)[:, :-1], (1, 0))


def set_sizes(logits: Tensor, quantile: float) -> Tensor:
    """How many classes, likeliest first, are in the set of each image: `(B,)` int64, 1 or more.

    Args:
        logits: `(B, C)`, those of each image in descending order.
        quantile: as `conformal_quantile` gives it.
    """
    return (mass_before(logits) <= quantile).sum(1)


def conformal_quantile(scores: Tensor, confidence: float) -> float:
    """The ceil((n + 1) · confidence)-th smallest of n calibration scores `(n,)`.

    It is infinite if n is smaller than `images_needed`. The score of one more image, drawn as
    these were, is at most the quantile with probability `confidence` or more.
    """
    # Exactly the decimal number that was given: 10 · 0.9 is 9, without an error that rounds up.
    rank = math.ceil((len(scores) + 1) * Fraction(str(confidence)))
    return scores.sort().values[rank - 1].item() if rank <= len(scores) else math.inf


def images_needed(confidence: float) -> int:
    """With fewer calibration images, only sets of all classes keep the promise."""
    share = Fraction(str(confidence))
    return math.ceil(share / (1 - share))


def set_quantile(checkpoint: Checkpoint, confidence: float | None) -> float | None:
    """The quantile of the scores that the model gives the right classes of calibration images.

    Args:
        checkpoint: the model.
        confidence: share of images whose set is to hold the right class, between 0 and 1; None
            asks for no sets, and so is the quantile.

    Raises:
        UsageError: the confidence is out of range.
        CheckpointError: the checkpoint carries no hold-out.
    """
    if confidence is None:
        return None
    if not 0 < confidence < 1:
        raise UsageError(
            f"`confidence` is {confidence}", "give a number between 0 and 1, such as 0.9"
        )
    scores = []
    for head, embeddings, labels in calibration_images(checkpoint, "confidence", labelled=True):
        size = chunk_size(RANKED * len(head.proxies))
        for part, own in zip(embeddings.split(size), labels.split(size), strict=True):
            classes, mass = _rank(head, part)
            scores.append(mass[classes == own[:, None]])  # (b,), as a class has one rank
    return conformal_quantile(torch.cat(scores), confidence)


@dataclass(frozen=True)
class Coverage:
    """How prediction sets do on test images; None without images of such classes.

    Attributes:
        base_coverage: percent of images of base classes whose set holds their class.
        base_size: mean number of classes in the sets of these images.
        novel_coverage: the same for images of novel classes.
        novel_size: the same for images of novel classes.
    """

    base_coverage: float | None
    base_size: float | None
    novel_coverage: float | None
    novel_size: float | None

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return asdict(self)


def coverage(
    checkpoint: Checkpoint, found: Iterable[tuple[str, Tensor]], quantile: float
) -> Coverage:
    """Measure prediction sets on embedded images.

    Args:
        checkpoint: the model.
        found: classes with embeddings `(n, D)` of their images, read one class at a time.
        quantile: of `set_quantile`.
    """
    head = checkpoint.head
    totals = torch.zeros(
        2, 3, dtype=torch.int64
    )  # base and novel: images, covered, classes in sets
    for name, embeddings in found:
        label = checkpoint.position(name)
        for part in embeddings.split(chunk_size(RANKED * len(head.proxies))):
            classes, mass = _rank(head, part)
            inside = mass <= quantile  # (b, C)
            covered = inside & (classes == label)
            counts = torch.stack([torch.tensor(len(part)), covered.sum(), inside.sum()])
            totals[int(label >= head.n_base)] += counts
    means: list[float | None] = []
    for images, covered, size in totals.tolist():
        means += [100 * covered / images, size / images] if images else [None, None]
    return Coverage(*means)


def _rank(head: Head, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Classes `(B, C)` int64 of each image, likeliest first, and the mass before each, fp64."""
    ranked = (head.scale * head.scores(embeddings)).sort(1, descending=True)
    return ranked.indices, mass_before(ranked.values)
