"""Writes results of trials to the run folder and adds them to the totals."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowshot_cli.sweep.plan import Plan, TrialBatch
from lowshot_cli.sweep.results import ClassNames, RowFile, Rows
from lowshot_cli.sweep.resume import ReorderBuffer, count_in
from lowshot_cli.sweep.run_folder import ROWS, Models, keep_models, open_models
from lowshot_cli.sweep.totals import RunningTotals
from lowshot_cli.sweep.trials import BatchResult


class Recorder:
    """Writes rows and models of a sweep in the order of the plan, and totals the rows.

    Args:
        run_dir: the run folder.
        plan: of the sweep.
        names: of the classes in the rows.
        resume: start from the rows that the folder already has.

    Attributes:
        totals: of the rows written so far.
        n_done: trials with rows that are written, or wait on disk for their turn.

    Raises:
        DataError: the folder to resume has rows that do not belong to this sweep.
    """

    def __init__(self, run_dir: Path, plan: Plan, names: ClassNames, *, resume: bool) -> None:
        self.run_dir, self.plan = run_dir, plan
        self.totals = RunningTotals(names)
        self._sizes = [batch.stop - batch.start for batch in plan.batches()]
        self._firsts = [0, *itertools.accumulate(self._sizes)]
        turn = count_in(run_dir / ROWS, self.totals, self._sizes) if resume else 0
        self._buffer = ReorderBuffer(run_dir, names, self._sizes, turn)
        self.n_done = self.totals.n_rows + sum(self._sizes[n] for n in self._buffer.waiting)
        self._file: RowFile | None = None
        self._models: Models | None = None

    def unfinished(self) -> Iterator[tuple[int, TrialBatch]]:
        """The batches that are still to run, with their numbers."""
        through = {*range(self._buffer.turn), *self._buffer.waiting}
        return ((n, batch) for n, batch in enumerate(self.plan.batches()) if n not in through)

    def open(self, *, size: int, save_models: bool) -> None:
        """Open the files of the folder.

        Args:
            size: dimensions D of a proxy.
            save_models: also keep the proxies of each trial.

        Raises:
            DataError: the models of a resumed sweep are missing or damaged.
        """
        if save_models:
            begun = self._buffer.turn or self._buffer.waiting
            self._models = open_models(self.run_dir, self.plan, size, "r+" if begun else "w+")
        self._file = RowFile(self.run_dir / ROWS, self.totals.names)

    def write_waiting(self) -> None:
        """Write the rows that an earlier run left waiting and that are due now."""
        self._write(self._buffer.drain())

    def record(self, number: int, result: BatchResult) -> None:
        """Write the results of a batch: models first, then the rows that mark it as done.

        Raises:
            OSError: the folder cannot be written to.
        """
        if self._models is not None:
            keep_models(self._models, self._firsts[number], result)
        self._write(self._buffer.push(number, result.rows))
        self.n_done += self._sizes[number]

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()

    def _write(self, batches: Iterable[Rows]) -> None:
        assert self._file is not None
        for rows in batches:
            self._file.append(rows)
            self.totals.add(rows)
