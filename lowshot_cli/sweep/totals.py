"""Running totals of a sweep, in memory that does not grow with the number of trials."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from lowshot_cli.evaluation.statistics import (
    METRICS,
    FloatArray,
    MetricName,
    summarise,
    t_interval,
    t_interval_of_sums,
)
from lowshot_cli.sweep.results import ClassNames, Rows
from lowshot_cli.sweep.summary import Cell, ClassResult, MeanDifference, PairedDifference


@dataclass
class _Sums:
    """Running sums over the trials of one method and number of shots, for G groups.

    Attributes:
        counts: `(G,)` trials of each group.
        sums: `(G,)` sums of each metric.
        squares: `(G,)` sums of squares of each metric.
        confused_percent: `(G, C)` sum of the percent of novel queries that a base class took, over
            trials in which it took most.
        best: by group the largest NCR@2 and the number of its trial.
        worst: by group the smallest NCR@2 and the number of its trial.
    """

    counts: FloatArray
    sums: dict[MetricName, FloatArray]
    squares: dict[MetricName, FloatArray]
    confused_percent: FloatArray
    best: dict[int, tuple[float, int]] = field(default_factory=dict)
    worst: dict[int, tuple[float, int]] = field(default_factory=dict)


class RunningTotals:
    """Adds up rows as they come."""

    def __init__(self, names: ClassNames) -> None:
        self.names = names
        self.n_rows = 0
        self._sums: dict[tuple[str, int], _Sums] = {}

    def add(self, rows: Rows) -> None:
        """Add rows."""
        size = len(self.names.groups)
        cell = self._sums.get((rows.method, rows.shots))
        if cell is None:
            sums, squares = ({name: np.zeros(size) for name in METRICS} for _ in range(2))
            cell = _Sums(np.zeros(size), sums, squares, np.zeros((size, len(self.names.base))))
            self._sums[rows.method, rows.shots] = cell
        self.n_rows += len(rows.trials)
        np.add.at(cell.counts, rows.groups, 1)
        for name, values in rows.metrics.items():
            np.add.at(cell.sums[name], rows.groups, values)
            np.add.at(cell.squares[name], rows.groups, values**2)
        np.add.at(cell.confused_percent, (rows.groups, rows.confused_with), rows.confused_percent)
        self._note_extremes(cell, rows)

    def _note_extremes(self, cell: _Sums, rows: Rows) -> None:
        reached = rows.metrics["ncr_at_2"]
        for group in np.unique(rows.groups):
            members = np.flatnonzero(rows.groups == group)
            high, low = members[reached[members].argmax()], members[reached[members].argmin()]
            key = int(group)
            if key not in cell.best or reached[high] > cell.best[key][0]:
                cell.best[key] = (float(reached[high]), int(rows.trials[high]))
            if key not in cell.worst or reached[low] < cell.worst[key][0]:
                cell.worst[key] = (float(reached[low]), int(rows.trials[low]))

    def cells(self, ways: int = 1) -> tuple[Cell, ...]:
        """One cell per method and number of shots.

        Args:
            ways: novel classes of a trial; means and intervals count such a group as one class.
        """
        found = []
        for (method, shots), cell in self._sums.items():
            done = cell.counts > 0
            metrics = {
                name: summarise(cell.counts[done], cell.sums[name][done], cell.squares[name][done])
                for name in METRICS
            }
            n_trials, n_classes = int(cell.counts.sum()), ways * int(done.sum())
            found.append(Cell(method, shots, n_trials, n_classes, metrics))
        return tuple(found)

    def sessions(self, ways: int) -> tuple[Cell, ...]:
        """One cell per method, number of shots and session of a sequence.

        All trials add the same classes with other supports, so intervals are over trials.

        Args:
            ways: novel classes that a session adds.
        """
        found = []
        for (method, shots), cell in self._sums.items():
            for group in map(int, np.flatnonzero(cell.counts)):
                count, one = cell.counts[group], slice(group, group + 1)
                metrics = {}
                for name in METRICS:
                    total, squares = cell.sums[name][one], cell.squares[name][one]
                    metric = summarise(cell.counts[one], total, squares)
                    interval = t_interval_of_sums(count, total[0], squares[0])
                    metrics[name] = replace(metric, ci95=interval)
                session = group + 1
                found.append(Cell(method, shots, int(count), ways * session, metrics, session))
        return tuple(found)

    def paired(self) -> tuple[PairedDifference, ...]:
        """Differences between methods on the same draws, with intervals over class means."""
        found = []
        for (one, shots), (other, more) in combinations(self._sums, 2):
            if shots != more:
                continue
            first, second = self._sums[one, shots], self._sums[other, shots]
            both = (first.counts > 0) & (first.counts == second.counts)
            metrics = {}
            for name in METRICS if both.any() else ():
                difference = (second.sums[name][both] - first.sums[name][both]) / first.counts[both]
                metrics[name] = MeanDifference(float(difference.mean()), t_interval(difference))
            found.append(PairedDifference((other, one), shots, metrics))
        return tuple(found)

    def classes(self) -> tuple[ClassResult, ...]:
        """Results of each group in each cell; their supports are left empty."""
        found = []
        for (method, shots), cell in self._sums.items():
            for group in map(int, np.flatnonzero(cell.counts)):
                count = cell.counts[group]
                means = {name: cell.sums[name][group] / count for name in METRICS}
                confused_with = int(cell.confused_percent[group].argmax())
                share = cell.confused_percent[group, confused_with]
                found.append(
                    ClassResult(
                        method=method,
                        shots=shots,
                        name=self.names.groups[group],
                        metrics={name: round(float(mean), 4) for name, mean in means.items()},
                        confused_with=self.names.base[confused_with],
                        confused_percent=round(float(share / count), 4),
                        best_trial=cell.best[group][1],
                        worst_trial=cell.worst[group][1],
                    )
                )
        return tuple(found)

    def confused_percent(self, method: str, shots: int) -> FloatArray:
        """Mean percent of each group's novel queries that each base class takes, `(G, C)`."""
        cell = self._sums[method, shots]
        return cell.confused_percent / np.maximum(cell.counts, 1)[:, None]
