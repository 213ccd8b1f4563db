"""Ordinary photos for a classifier that was adopted without images, to calibrate it by."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.adaptation.methods import make_whitened
from lowshot_cli.adaptation.supports import distinct
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.photos import with_photos
from lowshot_cli.data.photos import Photos
from lowshot_cli.errors import UsageError
from lowshot_cli.methods.operating_point import DEFAULT_MAX_FORGETTING
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.progress import OnProgress, Progress, silent

# Photos between two reports.
_AT_ONCE = 64


def ensure_adopted(checkpoint: Checkpoint) -> None:
    """Check that a model is a classifier that was adopted without images.

    Raises:
        UsageError: it is not.
    """
    if not checkpoint.meta.adopted:
        raise UsageError(
            "the model was trained on images of its own, which set the bias of new classes",
            "leave `background` out",
        )


def give_photos(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    photos: Photos,
    on_progress: OnProgress = silent,
) -> Checkpoint:
    """Let an adopted classifier know what ordinary photos look like.

    They shape novel classes, set their bias and estimate what it costs; they travel in the
    checkpoint. Novel classes that the model knows already are made again, by `whitened`.

    Args:
        checkpoint: of a classifier that was adopted without images.
        network: its embedding network.
        photos: unlabelled, of anything but novel classes; of those that show the same, pixel for
            pixel, one counts.
        on_progress: gets a report after each few photos.

    Raises:
        UsageError: the model was not adopted in this way, or there are too few photos.
    """
    ensure_adopted(checkpoint)
    pixels, parts = distinct(photos).pixels, []
    network, done = fused(network), 0
    for part in pixels.split(_AT_ONCE):
        parts.append(embed(network, part))
        done += len(part)
        on_progress(Progress("embedding", done, len(pixels)))
    features = torch.cat(parts)  # (N, D)
    base, meta = checkpoint.head.base, checkpoint.meta
    bare = replace(
        checkpoint,
        head=base,
        meta=meta.model_copy(update={"classes": meta.base_classes, "supports": ()}),
        supports=(),
    )
    taught = with_photos(bare, features)
    taught = taught.with_history("background", {"n_photos": len(features)})
    taught_before = zip(checkpoint.novel_classes, checkpoint.supports, meta.supports, strict=True)
    for name, support, record in taught_before:
        made = [make_whitened(support, background) for background in taught.backgrounds]
        again = record.model_copy(update={"method": "whitened"})
        taught = taught.with_class(name, torch.stack(made), support, again)
    budget = meta.max_forgetting
    return set_bias(taught, DEFAULT_MAX_FORGETTING if budget is None else budget)
