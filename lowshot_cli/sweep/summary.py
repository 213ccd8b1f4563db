"""What the rows of a sweep add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from lowshot_cli.evaluation.statistics import (
    FloatArray,
    Summary,
    summarise,
    t_interval,
    t_interval_of_sums,
)
from lowshot_cli.sweep.results import ClassNames, Rows
from lowshot_cli.sweep.scoring import METRICS


@dataclass
class _Cell:
    """Running sums per group of one method at one number of shots."""

    counts: FloatArray
    sums: dict[str, FloatArray]
    squares: dict[str, FloatArray]
    confused_percent: FloatArray
    best: dict[int, tuple[float, int]] = field(default_factory=dict)
    worst: dict[int, tuple[float, int]] = field(default_factory=dict)


class RunningTotals:
    """Adds up rows as they come."""

    def __init__(self, names: ClassNames) -> None:
        self.names = names
        self.n_rows = 0
        self._cells: dict[tuple[str, int], _Cell] = {}

    def add(self, rows: Rows) -> None:
        """Count rows in."""
        size = len(self.names.groups)
        cell = self._cells.get((rows.method, rows.shots))
        if cell is None:
            sums, squares = ({name: np.zeros(size) for name in METRICS} for _ in range(2))
            cell = _Cell(np.zeros(size), sums, squares, np.zeros((size, len(self.names.base))))
            self._cells[rows.method, rows.shots] = cell
        self.n_rows += len(rows.trials)
        np.add.at(cell.counts, rows.groups, 1)
        for name, values in rows.metrics.items():
            np.add.at(cell.sums[name], rows.groups, values)
            np.add.at(cell.squares[name], rows.groups, values**2)
        np.add.at(cell.confused_percent, (rows.groups, rows.confused_with), rows.confused_percent)
        self._note_extremes(cell, rows)

    def _note_extremes(self, cell: _Cell, rows: Rows) -> None:
        reached = rows.metrics["ncr_at_2"]
        for group in np.unique(rows.groups):
            members = np.flatnonzero(rows.groups == group)
            high, low = members[reached[members].argmax()], members[reached[members].argmin()]
            key = int(group)
            if key not in cell.best or reached[high] > cell.best[key][0]:
                cell.best[key] = (float(reached[high]), int(rows.trials[high]))
            if key not in cell.worst or reached[low] < cell.worst[key][0]:
                cell.worst[key] = (float(reached[low]), int(rows.trials[low]))

    def cells(self, ways: int = 1) -> list[dict[str, Any]]:
        """One entry per method and number of shots, as in the `--json` contract.

        Args:
            ways: novel classes of a trial, a group of which counts as one in means and intervals.
        """
        entries = []
        for (method, shots), cell in self._cells.items():
            done = cell.counts > 0
            entry: dict[str, Any] = {
                "method": method,
                "shots": shots,
                "n_trials": int(cell.counts.sum()),
                "n_classes": ways * int(done.sum()),
            }
            for name in METRICS:
                entry[name] = as_json(
                    summarise(cell.counts[done], cell.sums[name][done], cell.squares[name][done])
                )
            entries.append(entry)
        return entries

    def sessions(self, ways: int) -> list[dict[str, Any]]:
        """One entry per method, number of shots and session of a sequence.

        Every trial adds the same classes, so intervals are over trials, which differ in supports.

        Args:
            ways: novel classes that a session adds.
        """
        entries = []
        for (method, shots), cell in self._cells.items():
            for group in map(int, np.flatnonzero(cell.counts)):
                count = cell.counts[group]
                entry: dict[str, Any] = {
                    "method": method,
                    "shots": shots,
                    "session": group + 1,
                    "n_trials": int(count),
                    "n_classes": ways * (group + 1),
                }
                one = slice(group, group + 1)
                for name in METRICS:
                    total, squares = cell.sums[name][one], cell.squares[name][one]
                    summary = summarise(cell.counts[one], total, squares)
                    interval = t_interval_of_sums(count, total[0], squares[0])
                    entry[name] = as_json(replace(summary, ci95=interval))
                entries.append(entry)
        return entries

    def paired(self) -> list[dict[str, Any]]:
        """Differences between methods on the same draws, with intervals over class means."""
        found = []
        for (one, shots), (other, more) in combinations(self._cells, 2):
            if shots != more:
                continue
            first, second = self._cells[one, shots], self._cells[other, shots]
            both = (first.counts > 0) & (first.counts == second.counts)
            entry: dict[str, Any] = {"methods": [other, one], "shots": shots}
            for name in METRICS:
                difference = (second.sums[name][both] - first.sums[name][both]) / first.counts[both]
                if len(difference):
                    interval = t_interval(difference)
                    entry[name] = {
                        "mean": float(difference.mean()),
                        "ci95": list(interval) if interval else None,
                    }
            found.append(entry)
        return found

    def groups(self) -> list[dict[str, Any]]:
        """Per cell and group of classes: means, the class most taken for it, extreme trials."""
        entries = []
        for (method, shots), cell in self._cells.items():
            for group in np.flatnonzero(cell.counts):
                count = cell.counts[group]
                means = {name: cell.sums[name][group] / count for name in METRICS}
                confused_with = int(cell.confused_percent[group].argmax())
                share = cell.confused_percent[group, confused_with]
                entries.append(
                    {
                        "method": method,
                        "shots": shots,
                        "class": self.names.groups[group],
                        **{name: round(float(value), 4) for name, value in means.items()},
                        "confused_with": self.names.base[confused_with],
                        "confused_percent": round(float(share / count), 4),
                        "best_trial": cell.best[int(group)][1],
                        "worst_trial": cell.worst[int(group)][1],
                    }
                )
        return entries

    def confused_percent(self, method: str, shots: int) -> FloatArray:
        """Mean percent of each group's novel queries that each base class takes, `(G, C)`."""
        cell = self._cells[method, shots]
        return cell.confused_percent / np.maximum(cell.counts, 1)[:, None]


def over_bases(found: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What sweeps of several base models add up to: cells with intervals over base models.

    Args:
        found: per base model its backbone, and the summary of its sweep.

    Returns:
        One entry per backbone, method and number of shots, with the mean of each metric over the
        base models' means, their standard deviation and Student's t interval; the last two are None
        for a single base model.
    """
    alike: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for backbone, summary in found:
        for cell in summary["cells"]:
            alike.setdefault((backbone, cell["method"], cell["shots"]), []).append(cell)
    entries = []
    for (backbone, method, shots), cells in alike.items():
        entry = {"backbone": backbone, "method": method, "shots": shots, "n_bases": len(cells)}
        for name in METRICS:
            means = np.array([cell[name]["mean"] for cell in cells])
            interval = t_interval(means)
            entry[name] = {
                "mean": float(means.mean()),
                "std": float(means.std(ddof=1)) if interval else None,
                "ci95": list(interval) if interval else None,
            }
        entries.append(entry)
    return entries


def as_json(summary: Summary) -> dict[str, Any]:
    """A summary as in the `--json` contract."""
    return {
        "mean": summary.mean,
        "std_between": summary.std_between,
        "std_within": summary.std_within,
        "ci95": list(summary.ci95) if summary.ci95 else None,
    }
