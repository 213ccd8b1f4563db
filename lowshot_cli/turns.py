"""Rows in the order of the plan, in whatever order pieces of work come in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowshot_cli.files import write_text
from lowshot_cli.results import Rows, Tally, parse_rows, rows_text


class Turns:
    """Lets rows through in turn; those that are early wait on disk, where a resumed run finds them.

    Args:
        folder: of the run; a piece that waits is a file `early-NUMBER.csv` there.
        tally: knows the names in the rows.
        sizes: number of rows of each piece, in order.
        turn: number of the first piece whose rows are not through.
    """

    def __init__(self, folder: Path, tally: Tally, sizes: Sequence[int], turn: int) -> None:
        self.folder, self.tally, self.sizes, self.turn = folder, tally, sizes, turn
        self.waiting: set[int] = set()
        for path in folder.glob("early-*.csv"):
            number = int(path.stem.removeprefix("early-"))
            # Killed after its rows were through, or of another sweep in the same folder.
            if number < turn or not self._fits(number):
                path.unlink()
            else:
                self.waiting.add(number)

    def arrive(self, number: int, rows: Rows) -> Iterator[Rows]:
        """Take in the rows of a piece; yields those whose turn has come, to be written at once.

        Raises:
            OSError: the folder cannot be written to.
        """
        if number != self.turn:
            write_text(self._path(number), rows_text(rows, self.tally))
            self.waiting.add(number)
            return
        yield rows
        self.turn += 1
        yield from self.due()

    def due(self) -> Iterator[Rows]:
        """The waiting rows whose turn has come."""
        while self.turn in self.waiting:
            yield self._read(self.turn)
            self._path(self.turn).unlink()
            self.waiting.remove(self.turn)
            self.turn += 1

    def _path(self, number: int) -> Path:
        return self.folder / f"early-{number}.csv"

    def _read(self, number: int) -> Rows:
        text = self._path(number).read_text(encoding="utf-8")
        return parse_rows(list(csv.reader(io.StringIO(text))), self.tally)

    def _fits(self, number: int) -> bool:
        try:
            return len(self._read(number).trials) == self.sizes[number]
        except (ValueError, IndexError):
            return False
