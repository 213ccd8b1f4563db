"""The bias that all novel classes of a checkpoint share, and what it costs."""

from __future__ import annotations

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import ImprintConfig
from lowshot_cli.methods.operating_point import operating_bias, resolve_budget


def shared_budget(checkpoint: Checkpoint, options: ImprintConfig) -> float | None:
    """The budget in points for adding a class with these options; None means bias 0.

    All novel classes share one bias, so a model that has one keeps it even if a class is added
    by a method that needs none.
    """
    biased = checkpoint.head.bias != 0 or METHODS[options.method].biased
    return resolve_budget(options.max_forgetting, biased=biased)


def can_calibrate(checkpoint: Checkpoint) -> bool:
    """Whether there are hold-out images to set a bias on; a model adopted without data has none."""
    return len(checkpoint.holdout) > 0


def set_bias(checkpoint: Checkpoint, max_forgetting: float | None) -> Checkpoint:
    """Solve the bias that all novel classes share for a budget in points; None means bias 0."""
    bias = 0.0
    if max_forgetting is not None and checkpoint.novel_classes:
        novel = checkpoint.head.proxies[checkpoint.meta.n_base :]
        queries = checkpoint.holdout.calibration_half(checkpoint.head)
        bias = operating_bias(novel[None], queries, max_forgetting).item()
    return checkpoint.with_bias(bias, max_forgetting)


def without_class(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Remove a class; if novel classes remain and had a bias, it is solved again.

    Raises:
        UsageError: no such class, or the last base class.
    """
    return set_bias(checkpoint.without_class(name), checkpoint.meta.max_forgetting)


def expected_accuracy(checkpoint: Checkpoint) -> float:
    """Base accuracy of the pristine model, in percent, on the calibration half of the hold-out."""
    queries = checkpoint.holdout.calibration_half(checkpoint.head)
    return 100 * int(queries.right_before.sum()) / queries.total


def expected_forgetting(checkpoint: Checkpoint) -> float:
    """Points of base accuracy that the novel classes cost, on the calibration half."""
    if not checkpoint.novel_classes:
        return 0.0
    head = checkpoint.head
    queries = checkpoint.holdout.calibration_half(head)
    margins = queries.margins(head.proxies[head.n_base :][None])  # (1, n)
    after = queries.accuracy(margins, torch.tensor([head.bias])).item()
    return expected_accuracy(checkpoint) - after
