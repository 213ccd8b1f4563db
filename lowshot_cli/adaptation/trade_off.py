"""What other budgets would give: the bias, its cost, and how well novel classes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lowshot_cli.adaptation.review import supports_known
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.methods.operating_point import BaseQueries, operating_bias


@dataclass(frozen=True)
class OperatingPoint:
    """A budget and what it gives.

    Attributes:
        max_forgetting: the budget, in points of base accuracy.
        bias: of novel classes.
        expected_forgetting: cost in points of base accuracy, estimated on the images that set the
            bias; for an adopted classifier percent of background photos whose decision changes.
        supports_known: percent of the supports of novel classes that their classes get, each judged
            by the others; None if none can be judged.
    """

    max_forgetting: float
    bias: float
    expected_forgetting: float
    supports_known: float | None


def trade_off(checkpoint: Checkpoint, budgets: Sequence[float]) -> list[OperatingPoint]:
    """The operating point of each budget.

    It is empty without novel classes, and without images that set the bias.
    """
    queries = BaseQueries.pooled(checkpoint.calibration)
    if not checkpoint.novel_classes or not queries.total:
        return []
    margins = checkpoint.novel_margins()
    biases = [operating_bias(margins, queries, budget).item() for budget in budgets]
    before = 100 * int(queries.right_before.sum()) / queries.total
    kept = [queries.accuracy(margins, torch.tensor([bias])).item() for bias in biases]
    counts, total = supports_known(checkpoint, biases)
    shares = [100 * count / total if total else None for count in counts]
    return [
        OperatingPoint(budget, bias, before - now, share)
        for budget, bias, now, share in zip(budgets, biases, kept, shares, strict=True)
    ]
