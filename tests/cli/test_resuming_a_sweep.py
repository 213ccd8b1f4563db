"""A sweep that ends early names the command that continues it."""

from __future__ import annotations

import errno
import os
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest

from lowshot_cli.sweep.results import RowFile, Rows
from tests.conftest import RunCommand

SWEEP = ("sweep", "--trials", 1, "--novel", 2, "--shots", "1,2", "--method", "imprint")


def _proposed(text: str) -> list[str]:
    (command,) = re.findall(r"`lowshot (.*)` continues", text)
    return shlex.split(command)


def test_a_stopped_sweep_names_the_command_that_ends_it(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = workdir.rename(workdir.with_name("other")) / "base.safetensors"
    with monkeypatch.context() as patch:
        stopped = nullcontext(lambda: True)
        patch.setattr("lowshot_cli.cli.commands.sweep.stop_on_ctrl_c", lambda: stopped)
        result = lowshot(*SWEEP, "--checkpoint", base)
    assert result.exit_code == 130
    assert "stopped after 2 of 4 trials, nothing is lost" in result.stderr
    command = _proposed(result.stderr)
    assert command[:3] == ["sweep", "--checkpoint", str(base)]
    assert lowshot(*command).exit_code == 0
    assert len(Path(command[-1], "results.csv").read_text().splitlines()) == 1 + 4


def test_on_a_full_disk_space_comes_first(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: RowFile, rows: Rows) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "append", fail)
        result = lowshot(*SWEEP)
    assert result.exit_code == 3
    assert "No space left on device; its 0 trials are intact" in result.stderr
    assert "free some space, then `lowshot sweep --resume" in result.stderr
    assert lowshot(*_proposed(result.stderr)).exit_code == 0
