"""Homes, terminals, locales and pipes as they come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import ROOT

IMPRINT = ["imprint", "--class", "Z"]
# Each starts real programs, which takes seconds.
slow = partial(pytest.param, marks=pytest.mark.slow)
SWEEP = ["sweep", "--trials", "2", "--novel", "2", "--shots", "1", "--method", "imprint"]


def run(
    workdir: Path, arguments: list[str], redirect: str = "", **changes: str | None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell, with changes of the environment; None takes a variable away."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("LOWSHOT_DATA", None)
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    command = [sys.executable, "-m", "lowshot_cli", *arguments, "--workdir", str(workdir)]
    script = " ".join(f"'{part}'" for part in command) + redirect
    return subprocess.run(
        ["bash", "-c", script], cwd=workdir, env=environment, capture_output=True, check=False
    )


def clean(answer: subprocess.CompletedProcess[bytes]) -> str:
    """The text on stderr of a command that did what it should and told of nothing else."""
    told = answer.stderr.decode("utf-8", "replace")
    assert answer.returncode == 0, told
    for word in ("Traceback", "Warning", "warning", "Exception", "matplotlib"):
        assert word not in told, told
    return told


@pytest.mark.parametrize("home", [None, slow("/nonexistent"), slow("/proc/1")])
def test_without_a_home_or_a_cache_all_works(workdir: Path, home: str | None) -> None:
    told = clean(run(workdir, SWEEP, HOME=home, XDG_CACHE_HOME=None, MPLCONFIGDIR=None))
    assert "wrote" in told
    assert len(list(workdir.glob("sweep-*/accuracy.png"))) == 1


def test_a_cache_that_cannot_be_written_to_is_done_without(workdir: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    clean(run(workdir, SWEEP, XDG_CACHE_HOME=str(blocked)))


@pytest.mark.parametrize(
    "changes",
    [
        slow({"TERM": "dumb"}),
        slow({"NO_COLOR": "1", "TERM": "xterm-256color"}),
        {"COLUMNS": "40"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        slow({"PYTHONIOENCODING": "ascii"}),
    ],
)
def test_any_terminal_and_locale_is_served(workdir: Path, changes: dict[str, str]) -> None:
    answer = run(workdir, IMPRINT, **changes)
    clean(answer)
    assert b"\x1b" not in answer.stdout + answer.stderr
    if "COLUMNS" in changes:
        text = answer.stdout.decode()
        assert max(len(line) for line in text.splitlines() if "─" in line or "%" in line) <= 40
    as_json = run(workdir, ["classes", "list", "--json"], **changes)
    names = [one["class"] for one in json.loads(as_json.stdout)]
    assert names[-1] == "Z"


@pytest.mark.parametrize(
    "redirect", [" | true", " <&- >&- 2>&-", slow(" | head -1"), slow(" >&-"), slow(" 2>&-")]
)
def test_a_reader_that_goes_away_ends_nothing_noisily(workdir: Path, redirect: str) -> None:
    clean(run(workdir, ["classes", "list"], f"{redirect}; exit ${{PIPESTATUS[0]}}"))
    clean(run(workdir, ["evaluate", "--json"], f"{redirect}; exit ${{PIPESTATUS[0]}}"))


def test_a_model_is_written_whole_where_stdout_is_closed(workdir: Path) -> None:
    clean(run(workdir, IMPRINT, " >&-"))
    listed = run(workdir, ["classes", "list", "--json"])
    assert json.loads(listed.stdout)[-1]["class"] == "Z"
