"""Rows of a sweep on disk: `results.csv`, one row per trial."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot_cli.config.methods import find_method
from lowshot_cli.evaluation.statistics import METRICS, FloatArray, MetricName
from lowshot_cli.seeding import IntArray

COLUMNS = (
    "method",
    "shots",
    "classes",
    "trial",
    *METRICS,
    "bias",
    "confused_with",
    "confused_percent",
)
# The header of version 0.1.0; its runs are read and resumed below it.
OLD_COLUMNS = (*COLUMNS[:-2], "swallowed_by", "swallowed")
CLASS_SEPARATOR = " + "


@dataclass(frozen=True)
class ClassNames:
    """Names that `results.csv` uses for positions in `Rows`.

    Attributes:
        groups: of the groups of novel classes.
        base: of the base classes.
    """

    groups: tuple[str, ...]
    base: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Results of some trials of one method at one number of shots.

    Attributes:
        method: as in `--method`.
        shots: support images per class.
        groups: `(T,)` position of the group of novel classes that each trial added.
        trials: `(T,)` number of the trial within its group.
        metrics: values `(T,)` of each name in `METRICS`.
        bias: `(T,)` bias of the novel proxies.
        confused_with: `(T,)` the base class that took most of the novel queries.
        confused_percent: `(T,)` percent of the novel queries that it took.
    """

    method: str
    shots: int
    groups: IntArray
    trials: IntArray
    metrics: dict[MetricName, FloatArray]
    bias: FloatArray
    confused_with: IntArray
    confused_percent: FloatArray


def rows_text(rows: Rows, names: ClassNames) -> str:
    """Rows as lines of `results.csv`."""
    groups = [names.groups[group] for group in rows.groups.tolist()]
    confused_with = [names.base[base] for base in rows.confused_with.tolist()]
    columns = [rows.metrics[name].tolist() for name in METRICS]
    columns += [rows.bias.tolist(), confused_with, rows.confused_percent.tolist()]
    values = zip(groups, rows.trials.tolist(), *columns, strict=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((rows.method, rows.shots, *row) for row in values)
    return text.getvalue()


class RowFile:
    """`results.csv`: one row per trial, flushed after each batch."""

    def __init__(self, path: Path, names: ClassNames) -> None:
        self.names = names
        fresh = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", newline="", encoding="utf-8")
        if fresh:
            self._write(",".join(COLUMNS) + "\n")

    def append(self, rows: Rows) -> None:
        """Write rows with a single call."""
        self._write(rows_text(rows, self.names))

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Close the file; a failure to write was already reported."""
        with suppress(OSError):
            self._file.close()


def parse_rows(rows: Sequence[Sequence[str]], names: ClassNames) -> Rows:
    """Parse the rows of one batch, which share method and number of shots.

    Raises:
        ValueError: they are not such rows.
    """
    method, shots, groups, trials, *numbers, bias, confused_with, confused_percent = zip(
        *rows, strict=True
    )
    if len(set(method)) > 1 or len(set(shots)) > 1:
        raise ValueError("a batch has several methods or numbers of shots")
    known = find_method(method[0])
    if known is None:
        raise ValueError(f"unknown method {method[0]!r}")
    return Rows(
        method=known.name,
        shots=int(shots[0]),
        groups=np.array([names.groups.index(name) for name in groups]),
        trials=np.array(trials, dtype=np.int64),
        metrics={
            metric: np.array(column, dtype=np.float64)
            for metric, column in zip(METRICS, numbers, strict=True)
        },
        bias=np.array(bias, dtype=np.float64),
        confused_with=np.array([names.base.index(name) for name in confused_with]),
        confused_percent=np.array(confused_percent, dtype=np.float64),
    )
