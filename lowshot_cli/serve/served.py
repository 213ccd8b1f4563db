"""A model in use, with what is found out about it once."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

from lowshot_cli.adaptation.bias import expected_forgetting
from lowshot_cli.adaptation.trade_off import trade_off
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.evaluation.open_set import unknown_threshold
from lowshot_cli.evaluation.prediction_sets import set_quantile
from lowshot_cli.records import Record

# Budgets of `trade_off`, in points.
BUDGETS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10)
# Thresholds, and quantiles, that are kept for a model.
_MOST_KNOWN = 16


@dataclass(frozen=True, eq=False)
class Served:
    """A model in use.

    Attributes:
        checkpoint: the model.
        path: its file.
        revision: a text that no other model has, which tells whether it is still in use.
    """

    checkpoint: Checkpoint
    path: Path
    revision: str = field(default_factory=partial(secrets.token_hex, 8))

    @cached_property
    def threshold(self) -> Callable[[float | None], float]:
        """As `unknown_threshold` of the model, found once for each rate."""
        return lru_cache(_MOST_KNOWN)(partial(unknown_threshold, self.checkpoint))

    @cached_property
    def quantile(self) -> Callable[[float | None], float | None]:
        """As `set_quantile` of the model, found once for each confidence."""
        return lru_cache(_MOST_KNOWN)(partial(set_quantile, self.checkpoint))

    @cached_property
    def cost(self) -> float | None:
        """As `expected_forgetting`, found once."""
        return expected_forgetting(self.checkpoint)

    @cached_property
    def trade_off(self) -> list[Record]:
        """What other budgets would give, and the present one."""
        now = self.checkpoint.meta.max_forgetting
        budgets = sorted({*BUDGETS, *([] if now is None else [now])})
        return [asdict(point) for point in trade_off(self.checkpoint, budgets)]
