"""Predictions for photos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.data.dataset import BATCH
from lowshot_cli.data.photos import read_photos
from lowshot_cli.evaluation.prediction_sets import RANKED, set_sizes
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import chunk_size
from lowshot_cli.progress import OnProgress, Progress, silent


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: its name, given by the caller.
        top: the most probable classes with their probabilities 0..1, best first.
        unknown: whether it resembles no class enough; False if this was not asked.
        blank: whether nothing is left of it: every pixel is white or was transparent.
        prediction_set: the classes that it may belong to, most probable first; None if this was
            not asked.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    unknown: bool = False
    blank: bool = False
    prediction_set: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        asked = {} if self.prediction_set is None else {"set": list(self.prediction_set)}
        return {
            "image": self.image,
            "class": self.name,
            "probability": self.probability,
            "top": [list(entry) for entry in self.top],
            "unknown": self.unknown,
            **asked,
        }

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Probability of that class, 0..1."""
        return self.top[0][1]


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read as an image, and the reason in one line."""

    file: Path
    reason: str


def describe(
    checkpoint: Checkpoint,
    embeddings: Tensor,
    images: Sequence[str],
    most: int,
    threshold: float = -np.inf,
    *,
    quantile: float | None = None,
) -> list[Prediction]:
    """Predictions for embedded images.

    Args:
        checkpoint: the model.
        embeddings: `(B, D)` unit.
        images: name of each.
        most: classes in `top`, at most all that the model knows.
        threshold: familiarity below which an image is unknown.
        quantile: of `set_quantile`, for prediction sets.
    """
    head, names = checkpoint.head, checkpoint.meta.classes
    predictions: list[Prediction] = []
    for part in embeddings.split(chunk_size(RANKED * len(names))):
        scores = head.scores(part)  # (b, C)
        unknown = (scores.amax(1) < threshold).tolist()
        logits = head.scale * scores
        # One ranking for both, so that every set begins with the most probable class.
        ranked = logits.topk(min(most, len(names)) if quantile is None else len(names))
        best = ranked.indices[:, :most]  # (b, most)
        # Probabilities `(b, C)` are not kept: with many classes they take much memory.
        chances = logits.softmax(1).gather(1, best)  # (b, most)
        sizes = None if quantile is None else set_sizes(ranked.values, quantile).tolist()
        pairs = zip(best.tolist(), chances.tolist(), unknown, strict=True)
        for row, (classes, values, flag) in enumerate(pairs):
            top = tuple((names[c], p) for c, p in zip(classes, values, strict=True))
            found = Prediction(images[len(predictions)], top, flag)
            if sizes:
                inside = ranked.indices[row, : sizes[row]].tolist()
                found = replace(found, prediction_set=tuple(names[c] for c in inside))
            predictions.append(found)
    return predictions


def predict(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    files: Sequence[Path],
    *,
    most: int = 3,
    threshold: float = -np.inf,
    quantile: float | None = None,
    batch: int = BATCH,
    on_progress: OnProgress = silent,
) -> Iterator[Prediction | Unreadable]:
    """Classify image files in fp32; while one batch is embedded, the next is decoded.

    Args:
        checkpoint: the model.
        network: the checkpoint's network.
        files: in the order of the results; unreadable ones come at the end of their batch.
        most: classes in `top`.
        threshold: familiarity below which an image is unknown.
        quantile: of `set_quantile`, for prediction sets.
        batch: images embedded together.
        on_progress: gets a report after each batch.
    """
    network, done = fused(network), 0
    meta = checkpoint.meta
    for part in read_photos(files, meta.image_size, batch, framing=meta.framing):
        if part.files:
            images = [str(file) for file in part.files]
            embeddings = embed(network, part.pixels)
            found = describe(checkpoint, embeddings, images, most, threshold, quantile=quantile)
            blank = set(part.blank)
            yield from (replace(one, blank=one.image in blank) for one in found)
        yield from (Unreadable(file, reason) for file, reason in part.unreadable)
        done += len(part.files) + len(part.unreadable)
        on_progress(Progress("predicting", done, len(files)))


def readable(found: Iterable[Prediction | Unreadable]) -> tuple[list[Prediction], list[Unreadable]]:
    """Separate predictions from files that could not be read."""
    predictions, unreadable = [], []
    for one in found:
        if isinstance(one, Prediction):
            predictions.append(one)
        else:
            unreadable.append(one)
    return predictions, unreadable
