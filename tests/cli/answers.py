"""What tests of commands share: small settings, and how to read what a command answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from click.testing import Result

# Enough to train a model of sorts within a second.
MINI = [
    "--dataset=glyphs",
    "--classes=3",
    "--width=4",
    "--embedding-size=8",
    "--epochs=1",
    "--batch-size=64",
]
SMALL_SWEEP = ["--trials=2", "--novel=3", "--shots=1,3", "--method=imprint,random"]
PLOTS = ("accuracy", "per_class", "tradeoff")


def done(result: Result) -> Result:
    """The same result, of a command that must have ended well."""
    assert result.exit_code == 0, result.stderr
    return result


def as_json(result: Result) -> Any:
    """All of stdout as one strict JSON document."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(done(result).stdout, parse_constant=refuse)


def types(values: dict[str, Any]) -> dict[str, type]:
    """The type of each value."""
    return {name: type(value) for name, value in values.items()}


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    """The rows of a sweep, by column."""
    with (run_dir / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    """All but the log, which tells the time."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "log.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def only_run(workdir: Path) -> Path:
    """The folder of the only sweep in a work folder."""
    (run_dir,) = workdir.glob("sweep-*")
    return run_dir
