"""Unlabelled photos in the checkpoint of a classifier that was adopted with its weights alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import N_FOLDS, Holdout
from lowshot_cli.errors import UsageError
from lowshot_cli.methods.adopted import statistics_of_photos
from lowshot_cli.models.head import nearest_proxies
from lowshot_cli.seeding import Stream, smallest_keys

# Fewer photos say next to nothing about what others look like.
LEAST_PHOTOS = 10


def no_photos(size: int) -> Holdout:
    """The hold-out of an adopted classifier of features `(B, size)` before it is given photos."""
    none = torch.empty(0, dtype=torch.int64)
    return Holdout(torch.empty(0, size).half(), none, none.bool(), unlabelled=True)


def with_photos(checkpoint: Checkpoint, features: Tensor) -> Checkpoint:
    """Put unlabelled photos in place of any that the checkpoint has, as its hold-out.

    Their labels are what the classifier decides. The checkpoint must have no novel classes, whose
    proxies would not be those that the photos make.

    Args:
        checkpoint: of an adopted classifier.
        features: `(N, D)` of ordinary photos of anything but the classes to be taught.

    Raises:
        UsageError: there are fewer than `LEAST_PHOTOS`.
    """
    if len(features) < LEAST_PHOTOS:
        raise UsageError(
            f"too few photos for a background: {len(features)}", f"give {LEAST_PHOTOS} or more"
        )
    head = checkpoint.head
    # As they are stored: rounding may turn a decision.
    stored = features.half()
    labels = nearest_proxies(stored.float(), head.base.proxies)[1]  # (N,)
    order = torch.from_numpy(smallest_keys(len(stored), len(stored), Stream.HOLDOUT, 0))  # (N,)
    folds = torch.empty(len(stored), dtype=torch.int64)
    folds[order] = torch.arange(len(stored)) % N_FOLDS
    holdout = Holdout(
        stored,
        labels,
        torch.ones(len(stored), dtype=torch.bool),
        statistics=statistics_of_photos(stored.float(), head.base.proxies),
        folds=folds,
        unlabelled=True,
    )
    none = head.proxies.new_empty(N_FOLDS, 0, head.proxies.shape[1])
    return replace(checkpoint, holdout=holdout, fold_proxies=none)
