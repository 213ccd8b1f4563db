"""The bias that all novel classes of a checkpoint share, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import ImprintConfig
from lowshot_cli.methods.operating_point import operating_bias, resolve_budget


def _shared_budget(checkpoint: Checkpoint, options: ImprintConfig) -> float | None:
    """All novel classes share one bias, so one that needs it keeps it when others are added."""
    needs_bias = checkpoint.head.bias != 0
    return resolve_budget(
        options.max_forgetting, biased=needs_bias or METHODS[options.method].biased
    )


def can_calibrate(checkpoint: Checkpoint) -> bool:
    """Whether there are hold-out images to set a bias on; a model adopted without data has none."""
    return len(checkpoint.holdout) > 0


def set_bias(checkpoint: Checkpoint, max_forgetting: float | None) -> Checkpoint:
    """Set the one bias of all novel classes; None means 0."""
    bias = 0.0
    if max_forgetting is not None and checkpoint.novel_classes:
        novel = checkpoint.head.proxies[checkpoint.meta.n_base :]
        bias = operating_bias(novel[None], checkpoint.calibration, max_forgetting).item()
    return replace(checkpoint, head=replace(checkpoint.head, bias=bias))


def without_class(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Remove a class and solve the bias of the remaining novel ones anew, if they had one.

    Raises:
        UsageError: the last base class.
    """
    return set_bias(checkpoint.without_class(name), budget_in_use(checkpoint))


def budget_in_use(checkpoint: Checkpoint) -> float | None:
    """Points of forgetting for which the bias of a model was last solved; None if it has none."""
    if checkpoint.head.bias == 0:
        return None
    budgets = [
        step["options"]["max_forgetting"]
        for step in checkpoint.meta.history
        if "max_forgetting" in step["options"]
    ]
    return resolve_budget(budgets[-1] if budgets else None)


def expected_accuracy(checkpoint: Checkpoint) -> float:
    """Base accuracy of the pristine model in percent, on the half of the hold-out that sets the
    bias.
    """
    queries = checkpoint.calibration
    return 100 * int(queries.right_before.sum()) / queries.total


def expected_forgetting(checkpoint: Checkpoint) -> float:
    """Points of base accuracy that the novel classes cost, on the same half of the hold-out."""
    if not checkpoint.novel_classes:
        return 0.0
    queries, head = checkpoint.calibration, checkpoint.head
    margins = queries.margins(head.proxies[head.n_base :][None])
    return (
        expected_accuracy(checkpoint) - queries.accuracy(margins, torch.tensor([head.bias])).item()
    )
