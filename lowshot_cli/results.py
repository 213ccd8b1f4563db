"""Rows of a sweep on disk, and what they add up to. Memory does not grow with their number."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lowshot_cli.errors import DataError
from lowshot_cli.evaluate import METRICS
from lowshot_cli.metrics import FloatArray, Summary, summarise, t_interval, t_interval_of_sums

COLUMNS = ("method", "shots", "classes", "trial", *METRICS, "bias", "swallowed_by", "swallowed")
CLASS_SEPARATOR = " + "
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Results of some trials of one method at one number of shots.

    Attributes:
        method: as in `--method`.
        shots: support images per class.
        groups: `(T,)` which group of novel classes each trial added.
        trials: `(T,)` number of the trial within its group.
        metrics: per name in `METRICS` the values `(T,)`.
        bias: `(T,)`.
        swallower: `(T,)` the base class that took most of the novel queries.
        swallowed: `(T,)` percent of the novel queries that it took.
    """

    method: str
    shots: int
    groups: IntArray
    trials: IntArray
    metrics: dict[str, FloatArray]
    bias: FloatArray
    swallower: IntArray
    swallowed: FloatArray


@dataclass
class _Cell:
    """Running sums per group of one method at one number of shots."""

    counts: FloatArray
    sums: dict[str, FloatArray]
    squares: dict[str, FloatArray]
    swallowed: FloatArray
    best: dict[int, tuple[float, int]] = field(default_factory=dict)
    worst: dict[int, tuple[float, int]] = field(default_factory=dict)


class Tally:
    """Adds up rows as they come."""

    def __init__(self, group_names: Sequence[str], base_names: Sequence[str]) -> None:
        self.group_names, self.base_names = tuple(group_names), tuple(base_names)
        self.n_rows = 0
        self._cells: dict[tuple[str, int], _Cell] = {}

    def add(self, rows: Rows) -> None:
        """Count rows in."""
        size = len(self.group_names)
        cell = self._cells.get((rows.method, rows.shots))
        if cell is None:
            sums, squares = ({name: np.zeros(size) for name in METRICS} for _ in range(2))
            cell = _Cell(np.zeros(size), sums, squares, np.zeros((size, len(self.base_names))))
            self._cells[rows.method, rows.shots] = cell
        self.n_rows += len(rows.trials)
        np.add.at(cell.counts, rows.groups, 1)
        for name, values in rows.metrics.items():
            np.add.at(cell.sums[name], rows.groups, values)
            np.add.at(cell.squares[name], rows.groups, values**2)
        np.add.at(cell.swallowed, (rows.groups, rows.swallower), rows.swallowed)
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
        """Per cell and group of classes: means, who swallows it, best and worst trial."""
        entries = []
        for (method, shots), cell in self._cells.items():
            for group in np.flatnonzero(cell.counts):
                count = cell.counts[group]
                means = {name: cell.sums[name][group] / count for name in METRICS}
                swallower = int(cell.swallowed[group].argmax())
                entries.append(
                    {
                        "method": method,
                        "shots": shots,
                        "class": self.group_names[group],
                        **{name: round(float(value), 4) for name, value in means.items()},
                        "swallowed_by": self.base_names[swallower],
                        "swallowed": round(float(cell.swallowed[group, swallower] / count), 4),
                        "best_trial": cell.best[int(group)][1],
                        "worst_trial": cell.worst[int(group)][1],
                    }
                )
        return entries

    def swallowed(self, method: str, shots: int) -> FloatArray:
        """Mean percent of each group's novel queries that each base class takes, `(G, C)`."""
        cell = self._cells[method, shots]
        return cell.swallowed / np.maximum(cell.counts, 1)[:, None]


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


def rows_text(rows: Rows, tally: Tally) -> str:
    """Rows as lines of `results.csv`."""
    names = [tally.group_names[group] for group in rows.groups.tolist()]
    swallowers = [tally.base_names[base] for base in rows.swallower.tolist()]
    columns = [rows.metrics[name].tolist() for name in METRICS]
    columns += [rows.bias.tolist(), swallowers, rows.swallowed.tolist()]
    values = zip(names, rows.trials.tolist(), *columns, strict=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((rows.method, rows.shots, *row) for row in values)
    return text.getvalue()


class RowFile:
    """`results.csv`: one row per trial, flushed after each piece of work."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.tally = tally
        fresh = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="", encoding="utf-8")
        if fresh:
            self._write(",".join(COLUMNS) + "\n")

    def append(self, rows: Rows) -> None:
        """Write rows in one go."""
        self._write(rows_text(rows, self.tally))

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Close the file; what could not be written to it has been told of already."""
        with suppress(OSError):
            self._file.close()


def count_in(path: Path, tally: Tally, sizes: Iterable[int]) -> int:
    """Count the rows of an earlier run in, and cut off what it did not finish.

    Args:
        path: `results.csv`, which is not there yet if the run ended while it was still embedding.
        tally: gets the rows of all finished pieces of work.
        sizes: number of rows of each piece, in order.

    Returns:
        How many pieces are finished.

    Raises:
        DataError: rows that this sweep does not write.
    """
    if not path.is_file():
        return 0
    finished = end = consumed = 0

    def whole_lines() -> Iterator[str]:
        nonlocal consumed
        for line in file:
            if line.endswith(b"\n"):
                consumed += len(line)
                yield line.decode("utf-8")

    with path.open("rb") as file:
        reader = csv.reader(whole_lines())
        try:
            if tuple(next(reader, COLUMNS)) != COLUMNS:
                raise ValueError("the header is another")
            end = consumed
            for size in sizes:
                rows = list(islice(reader, size))
                if len(rows) < size or len(rows[-1]) < len(COLUMNS):
                    break
                tally.add(parse_rows(rows, tally))
                finished, end = finished + 1, consumed
        except (ValueError, csv.Error) as error:
            raise DataError(
                f"{path} has rows that this sweep does not write: {error}", "start a new sweep"
            ) from None
    if end < path.stat().st_size:
        os.truncate(path, end)
    return finished


def parse_rows(rows: Sequence[Sequence[str]], tally: Tally) -> Rows:
    """The rows of one piece of work, which share method and number of shots."""
    method, shots, names, trials, *numbers, bias, swallowers, swallowed = zip(*rows, strict=True)
    if len(set(method)) > 1 or len(set(shots)) > 1:
        raise ValueError("a piece of work with several methods or numbers of shots")
    return Rows(
        method=method[0],
        shots=int(shots[0]),
        groups=np.array([tally.group_names.index(name) for name in names]),
        trials=np.array(trials, dtype=np.int64),
        metrics={
            metric: np.array(column, dtype=np.float64)
            for metric, column in zip(METRICS, numbers, strict=True)
        },
        bias=np.array(bias, dtype=np.float64),
        swallower=np.array([tally.base_names.index(name) for name in swallowers]),
        swallowed=np.array(swallowed, dtype=np.float64),
    )
