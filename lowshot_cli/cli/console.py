"""Printing: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from lowshot_cli.cli.run_log import RunLog
from lowshot_cli.environment import versions
from lowshot_cli.errors import LowshotError
from lowshot_cli.progress import OnProgress, Progress, silent
from lowshot_cli.report.tables import is_number

_FACTS = {
    "loss": "loss {:.3f}",
    "holdout_accuracy": "hold-out {:.1f} %",
    "images_per_second": "{:.0f} images/s",
}
# Short enough to fit beside a live bar in 80 columns.
_SHORT_FACTS = {
    "loss": "loss {:.2f}",
    "holdout_accuracy": "hold-out {:.1f} %",
    "images_per_second": "{:.0f}/s",
}
# Tables never fold names of up to this many characters.
_WHOLE_NAME = 16
# Columns of a terminal: with fewer than the first, the width counts as unknown, and is the second.
_NARROWEST, _USUAL_WIDTH = 20, 80
# A cell without a value.
_NOTHING = "–"
# Joins several emoji into one.
_JOINER = "\u200d"


class _FactsColumn(ProgressColumn):
    """The numbers of the latest progress report."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("facts", ""), no_wrap=True, overflow="ellipsis")


class Output:
    """Prints for people and for programs.

    Args:
        as_json: print results as one JSON document and nothing else on stdout.
        quiet: leave out progress and notes.
        command: the command line as it was typed.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, command: str = "") -> None:
        self.as_json, self.quiet, self.command = as_json, quiet, command
        self.results = _console(sys.stdout)
        self.messages = _console(sys.stderr)
        self._started: dict[str, float] = {}
        self._run_log: RunLog | None = None

    @contextmanager
    def logged(self, folder: Path) -> Iterator[None]:
        """Meanwhile log notes, progress and how the command ends to a folder's `log.jsonl`."""
        self._run_log = log = RunLog(folder, command=self.command, versions=versions())
        try:
            yield
        except BaseException as ending:
            log.close(ending)
            raise
        else:
            log.close(None)
        finally:
            self._run_log = None

    def note(self, text: str) -> None:
        """Print a line for people on stderr, and log it."""
        if self._run_log:
            self._run_log.write("note", text=text)
        self._say(text)

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.messages.print(Text(printable(text)), soft_wrap=True)

    def finish(self, written: Sequence[object], then: str | None = None) -> None:
        """Print the closing lines: what was written, and what to type next."""
        for path in written:
            self.note(f"wrote {path}")
        if then:
            self.note(f"next: {then}")

    def data(self, value: object) -> None:
        """Print results for programs."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=not prints_unicode()), flush=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        title: str | None = None,
        caption: str | None = None,
    ) -> None:
        """Print results for people: names are aligned to the left, numbers to the right."""
        if self.as_json:
            return
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, name in enumerate(columns):
            numeric = all(is_number(row[index]) for row in rows)
            # In a table that is too wide, short names stay whole and long cells are folded.
            longest = 0 if numeric else max((len(str(row[index])) for row in rows), default=0)
            least = longest if longest <= _WHOLE_NAME else None
            table.add_column(
                Text(name),
                justify="right" if numeric else "left",
                overflow="fold",
                min_width=least,
            )
        nothing = _NOTHING if prints_unicode() else "-"
        for row in rows:
            cells = (nothing if cell == _NOTHING else str(cell) for cell in row)
            table.add_row(*(Text(printable(cell)) for cell in cells))
        # Rich would fold a title and a caption to the width of the columns.
        if title:
            self.results.print(Text(printable(title), style="bold"), soft_wrap=True)
        self.results.print(table)
        if caption:
            self.results.print(Text(f"{caption}\n", style="dim"))

    def listing(self, start: str, items: Sequence[str]) -> None:
        """Print items separated by commas, breaking lines between items only."""
        self._fold([start, *(f"{item}," for item in items[:-1]), *items[-1:]])

    def sentence(self, text: str) -> None:
        """Print a sentence of results, breaking lines between words."""
        self._fold(text.split(" "))

    def _fold(self, parts: Sequence[str]) -> None:
        lines = [parts[0]]
        for part in parts[1:]:
            if len(lines[-1]) + 1 + len(part) > self.results.width:
                lines.append(" ")
            lines[-1] += f" {part}"
        for line in lines:
            self.line(line)

    def line(self, text: str) -> None:
        """Print one line of results for people."""
        if not self.as_json:
            self.results.print(Text(printable(text)), soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """Show progress reports of the engine, and log them if a log is kept."""
        with self._shown() as show:

            def both(report: Progress) -> None:
                if self._run_log:
                    self._run_log.progress(report)
                show(report)

            yield both

    @contextmanager
    def _shown(self) -> Iterator[OnProgress]:
        """A live bar on a terminal, otherwise a line per milestone."""
        if self.quiet:
            yield silent
        elif self.messages.is_terminal and not self.messages.is_dumb_terminal:
            with _bar(self.messages) as bar:
                tasks: dict[str, TaskID] = {}

                def show(report: Progress) -> None:
                    if report.note:
                        self._say(report.note)
                    if report.stage not in tasks:
                        tasks[report.stage] = bar.add_task(
                            report.stage, total=report.total, facts=""
                        )
                    bar.update(
                        tasks[report.stage],
                        completed=report.done,
                        total=report.total,
                        facts=_facts(report, _SHORT_FACTS, "  "),
                    )

                yield show
        else:
            yield self._print_milestone

    def _print_milestone(self, report: Progress) -> None:
        if report.note:
            self._say(report.note)
        started = self._started.setdefault(report.stage, time.perf_counter())
        if report.milestone:
            elapsed = time.perf_counter() - started
            if report.done == report.total:
                del self._started[report.stage]
            far = f"{report.done:,}/{report.total:,} {report.unit}"
            if "epoch" in report.facts:
                far = "epoch {epoch}/{epochs}".format_map(report.facts)
            parts = [f"{report.stage} {far}"]
            parts += [facts] if (facts := _facts(report)) else []
            self._say(", ".join([*parts, f"{elapsed:.0f} s"]))


class _Console(Console):
    """Leaves it to the app to end a command when nobody reads its output any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(file: Any) -> Console:
    made = _Console(file=file, markup=False, highlight=False, emoji=False)
    # A terminal may not say how wide it is, or say 0.
    if made.width < _NARROWEST:
        made.width = _USUAL_WIDTH
    return made


def prints_unicode() -> bool:
    """Whether stdout takes any character; one that it lacks would be escaped as in Python."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _bar(console: Console) -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        _FactsColumn(),
        console=console,
    )


def _facts(report: Progress, formats: Mapping[str, str] = _FACTS, separator: str = ", ") -> str:
    return separator.join(
        formats[name].format(value) for name, value in report.facts.items() if name in formats
    )


def show_error(error: LowshotError) -> None:
    """Print an error on stderr, and its hint on a line of its own."""
    console = _console(sys.stderr)
    message = "\n".join(map(printable, f"error: {error.message}".split("\n")))
    console.print(Text(message), soft_wrap=True)
    if error.hint:
        console.print(Text(printable(f"  -> {error.hint}")), soft_wrap=True)


def printable(text: str) -> str:
    """The text, with characters that could control a terminal escaped as in Python."""
    return "".join(
        c if c.isprintable() or c == _JOINER else c.encode("unicode_escape").decode() for c in text
    )
