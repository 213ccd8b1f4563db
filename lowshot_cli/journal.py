"""`log.jsonl`: what was done in a folder and when, one event a line."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from lowshot_cli.progress import Progress

LOG = "log.jsonl"
# Seconds between two lines about the same stage, milestones apart.
_PAUSE = 10.0


class Journal:
    """Adds events to the `log.jsonl` of a folder: JSON objects with `time` (UTC) and `event`.

    It is there for whoever looks back; where it cannot be written, nothing else stops.
    """

    def __init__(self, folder: Path) -> None:
        self.started = time.perf_counter()
        self._file: TextIO | None = None
        self._last: dict[str, float] = {}
        with suppress(OSError):
            self._file = _open(folder / LOG)

    def write(self, event: str, **facts: Any) -> None:
        """Add an event."""
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with suppress(OSError):
            self._file.write(json.dumps({"time": now, "event": event, **facts}) + "\n")
            self._file.flush()

    def progress(self, report: Progress) -> None:
        """Add a report of the engine: every milestone, and of others one each few seconds."""
        now = time.perf_counter()
        if report.note:
            self.write("note", text=report.note)
        if not report.milestone and now - self._last.setdefault(report.stage, now) < _PAUSE:
            return
        self._last[report.stage] = now
        far = {"stage": report.stage, "done": report.done, "total": report.total}
        self.write("progress", **far, unit=report.unit, **report.facts)

    def close(self, ending: BaseException | None) -> None:
        """Add how it ended: with the seconds it took, and with what stopped it."""
        seconds = round(time.perf_counter() - self.started, 3)
        if ending is None:
            self.write("end", seconds=seconds)
        else:
            kind, text = type(ending).__name__, str(ending)
            self.write("stopped", seconds=seconds, by=kind, text=text)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def _open(path: Path) -> TextIO:
    """Open for adding; a line that a crash has cut off gets its end."""
    file = path.open("a", encoding="utf-8")
    with suppress(OSError):
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as before:
                before.seek(-1, os.SEEK_END)
                if before.read(1) != b"\n":
                    file.write("\n")
    return file
