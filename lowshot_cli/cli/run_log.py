"""`log.jsonl`: what commands did in a folder and when, one event per line."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from lowshot_cli.progress import Progress
from lowshot_cli.storage.files import LOG

# Seconds between two lines about the same stage, except milestones.
_PAUSE = 10.0


class RunLog:
    """Adds events to the `log.jsonl` of a folder: JSON objects with `time` (UTC) and `event`.

    Nothing depends on the log, so a failure to write it is ignored. A command that ends before it
    has done anything writes nothing.

    Args:
        folder: where the log lies.
        facts: the fields of the first event, `begin`.
    """

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.started = time.perf_counter()
        self._path = folder / LOG
        self._file: TextIO | None = None
        self._last: dict[str, float] = {}
        self._begin: str | None = _line("begin", facts)

    def write(self, event: str, **facts: Any) -> None:
        """Add an event."""
        with suppress(OSError):
            if self._begin is not None:
                begin, self._begin = self._begin, None
                self._file = _open_for_append(self._path)
                self._file.write(begin)
            if self._file is not None:
                self._file.write(_line(event, facts))
                self._file.flush()

    def progress(self, report: Progress) -> None:
        """Add a report: the first of a stage, milestones, and others every few seconds."""
        now = time.perf_counter()
        if report.note:
            self.write("note", text=report.note)
        if not report.milestone and now - self._last.get(report.stage, -math.inf) < _PAUSE:
            return
        self._last[report.stage] = now
        far = {"stage": report.stage, "done": report.done, "total": report.total}
        self.write("progress", **far, unit=report.unit, **report.facts)

    def close(self, ending: BaseException | None) -> None:
        """Add how the command ended: the seconds it took, and what stopped it."""
        seconds = round(time.perf_counter() - self.started, 3)
        if ending is None:
            self.write("end", seconds=seconds)
        elif self._begin is None:
            kind, text = type(ending).__name__, str(ending)
            self.write("stopped", seconds=seconds, by=kind, text=text)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def _line(event: str, facts: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **facts}) + "\n"


def _open_for_append(path: Path) -> TextIO:
    """Open for appending; end a line that a crash has cut off first."""
    file = path.open("a", encoding="utf-8")
    with suppress(OSError):
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as before:
                before.seek(-1, os.SEEK_END)
                if before.read(1) != b"\n":
                    file.write("\n")
    return file
