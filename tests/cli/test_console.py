"""What people see, whatever their terminal says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from tests.conftest import RunCommand


@pytest.mark.parametrize("columns", ["0", "1", "19"])
def test_a_terminal_of_no_width_gets_the_usual_one(
    lowshot: RunCommand, workdir: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    usual = lowshot("classes", "list").stdout
    monkeypatch.setenv("COLUMNS", columns)
    assert lowshot("classes", "list").stdout == usual
    assert "learnt by" in usual


def test_equals_signs_may_stand_in_names_and_in_paths(
    lowshot: RunCommand, workdir: Path, base: Checkpoint
) -> None:
    first = base.base_classes[0]
    lowshot("classes", "rename", first, "t=q", "--force")
    for text, path in (("t=q=day=7/x", "day=7/x"), ("t=q=x", "x")):
        assert f"no image at {path}" in lowshot("evaluate", "--images", text).stderr
    # Where no part is a class, the name ends at the first sign.
    assert "no class 'u'" in lowshot("evaluate", "--images", "u=v=w").stderr
