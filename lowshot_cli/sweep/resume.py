"""Resuming a sweep: finds finished batches, and holds rows that came early."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from lowshot_cli.errors import DataError
from lowshot_cli.storage.files import write_text
from lowshot_cli.sweep.results import COLUMNS, OLD_COLUMNS, ClassNames, Rows, parse_rows, rows_text
from lowshot_cli.sweep.totals import RunningTotals


def count_in(path: Path, totals: RunningTotals, sizes: Iterable[int]) -> int:
    """Add the rows of an earlier run to the totals, and cut off an unfinished batch.

    Args:
        path: `results.csv`, which is missing if the run ended while it was still embedding.
        totals: get the rows of all finished batches.
        sizes: number of rows of each batch, in order.

    Returns:
        How many batches are finished.

    Raises:
        DataError: the file has rows that do not belong to this sweep.
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
            if tuple(next(reader, COLUMNS)) not in (COLUMNS, OLD_COLUMNS):
                raise ValueError("unknown header")
            end = consumed
            for size in sizes:
                rows = list(islice(reader, size))
                if len(rows) < size or len(rows[-1]) < len(COLUMNS):
                    break
                totals.add(parse_rows(rows, totals.names))
                finished, end = finished + 1, consumed
        except (ValueError, csv.Error) as error:
            raise DataError(
                f"{path} has rows that do not belong to this sweep: {error}", "start a new sweep"
            ) from None
    if end < path.stat().st_size:
        os.truncate(path, end)
    return finished


class ReorderBuffer:
    """Puts batches back into the order of the plan.

    Executors may finish them in any order. Early batches wait on disk, where a resumed run finds
    them.

    Args:
        folder: the run folder; a waiting batch is a file `early-NUMBER.csv` there.
        names: of the classes in the rows.
        sizes: number of rows of each batch, in order.
        turn: number of the next batch to hand out.
    """

    def __init__(self, folder: Path, names: ClassNames, sizes: Sequence[int], turn: int) -> None:
        self.folder, self.names, self.sizes, self.turn = folder, names, sizes, turn
        self.waiting: set[int] = set()
        for path in folder.glob("early-*.csv"):
            number = int(path.stem.removeprefix("early-"))
            # Left by a run that was killed after it wrote these rows, or by another sweep.
            if number < turn or not self._fits(number):
                path.unlink()
            else:
                self.waiting.add(number)

    def push(self, number: int, rows: Rows) -> Iterator[Rows]:
        """Take the rows of a batch; yields all rows that are due, to be written at once.

        Raises:
            OSError: the folder cannot be written to.
        """
        if number != self.turn:
            write_text(self._path(number), rows_text(rows, self.names))
            self.waiting.add(number)
            return
        yield rows
        self.turn += 1
        yield from self.drain()

    def drain(self) -> Iterator[Rows]:
        """Yield the waiting rows that are due."""
        while self.turn in self.waiting:
            yield self._read(self.turn)
            self._path(self.turn).unlink()
            self.waiting.remove(self.turn)
            self.turn += 1

    def _path(self, number: int) -> Path:
        return self.folder / f"early-{number}.csv"

    def _read(self, number: int) -> Rows:
        text = self._path(number).read_text(encoding="utf-8")
        return parse_rows(list(csv.reader(io.StringIO(text))), self.names)

    def _fits(self, number: int) -> bool:
        try:
            return len(self._read(number).trials) == self.sizes[number]
        except (ValueError, IndexError):
            return False
