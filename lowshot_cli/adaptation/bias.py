"""The bias that all novel classes of a checkpoint share, and what it costs."""

from __future__ import annotations

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import ImprintConfig
from lowshot_cli.methods.operating_point import BaseQueries, operating_bias, resolve_budget


def shared_budget(checkpoint: Checkpoint, options: ImprintConfig) -> float | None:
    """The budget in points for adding a class with these options; None means bias 0.

    All novel classes share one bias, so a model that has one keeps it even if a class is added
    by a method that needs none.
    """
    biased = checkpoint.meta.max_forgetting is not None or METHODS[options.method].biased
    return resolve_budget(options.max_forgetting, biased=biased)


def can_calibrate(checkpoint: Checkpoint) -> bool:
    """Whether hold-out images are left in both halves; a model adopted without data has none."""
    return checkpoint.holdout.suffices


def set_bias(checkpoint: Checkpoint, max_forgetting: float | None) -> Checkpoint:
    """Solve the bias that all novel classes share for a budget in points; None means bias 0."""
    if max_forgetting is None or not checkpoint.novel_classes:
        return checkpoint.with_bias(0.0, None)
    queries = BaseQueries.pooled(checkpoint.calibration)
    bias = operating_bias(checkpoint.novel_margins(), queries, max_forgetting).item()
    return checkpoint.with_bias(bias, max_forgetting)


def without_class(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Remove a class; if novel classes remain and have a budget, the bias is solved again.

    Raises:
        UsageError: no such class, or the last base class.
    """
    return set_bias(checkpoint.without_class(name), checkpoint.meta.max_forgetting)


def expected_accuracy(checkpoint: Checkpoint) -> tuple[float, float] | None:
    """Base accuracy on the images that set the bias, in percent; None if there are none.

    Returns:
        That of the pristine base model, and that of the model.
    """
    queries = BaseQueries.pooled(checkpoint.calibration)
    if not queries.total:
        return None
    before, after = (
        100 * int(right.sum()) / queries.total
        for right in (queries.right_before, queries.right_now)
    )
    if checkpoint.novel_classes:
        bias = torch.tensor([checkpoint.head.bias])
        after = queries.accuracy(checkpoint.novel_margins(), bias).item()
    return before, after


def expected_forgetting(checkpoint: Checkpoint) -> float | None:
    """Points of base accuracy that the novel classes cost, if there are images to estimate it on.

    They lie between 0 and the budget. Where fine-tuning has changed base proxies or network, the
    cost of that is in them, so they may exceed the budget, or be negative.
    """
    found = expected_accuracy(checkpoint)
    return found and found[0] - found[1]
