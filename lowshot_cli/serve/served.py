"""A model in use, with what is found out about it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lowshot_cli.adaptation.bias import expected_forgetting
from lowshot_cli.adaptation.trade_off import trade_off
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.evaluation.open_set import unknown_threshold
from lowshot_cli.evaluation.prediction_sets import set_quantile
from lowshot_cli.records import Record

# Budgets of `trade_off`, in points.
BUDGETS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10)
# Thresholds that are kept for a model.
_MOST_KNOWN = 16


@dataclass(frozen=True, eq=False)
class Served:
    """A model in use.

    Attributes:
        checkpoint: the model.
        path: its file.
    """

    checkpoint: Checkpoint
    path: Path
    _known: dict[tuple[str, float], float | None] = field(default_factory=dict)

    def threshold(self, false_alarm: float | None) -> float:
        """As `unknown_threshold`, found once."""
        if false_alarm is None:
            return -np.inf
        found = self._once("unknown", false_alarm, lambda: self._threshold(false_alarm))
        assert found is not None
        return found

    def quantile(self, confidence: float | None) -> float | None:
        """As `set_quantile`, found once."""
        if confidence is None:
            return None
        return self._once("sets", confidence, lambda: set_quantile(self.checkpoint, confidence))

    def _threshold(self, false_alarm: float) -> float:
        return unknown_threshold(self.checkpoint, false_alarm)

    def _once(self, what: str, rate: float, find: Callable[[], float | None]) -> float | None:
        if (what, rate) not in self._known:
            found = find()
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[what, rate] = found
            return found
        return self._known[what, rate]

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
