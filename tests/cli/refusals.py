"""How tests look at what a refused command says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import typer
from click.testing import Result

from lowshot_cli.cli.main import app

USAGE, BAD_INPUT = 2, 3
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
USERS_OF_A_MODEL = {
    "imprint": ["imprint", "--class=omega"],
    "finetune": ["finetune"],
    "evaluate": ["evaluate"],
    "sweep": ["sweep", "--trials=1", "--novel=2", "--shots=1", "--method=imprint"],
}


def refused(result: Result, code: int | Iterable[int], *words: object) -> None:
    """One error line that names the thing, a next step that exists, and no traceback."""
    assert result.exit_code in ([code] if isinstance(code, int) else list(code)), result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len([line for line in lines if line.lower().startswith("error:")]) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr
    assert "  -> " in result.stderr or "did you mean" in result.stderr, "no next step is named"
    for command in re.findall(r"`lowshot ([\w-]+)", result.stderr):
        assert command in COMMANDS, f"the next step is an unknown command: {result.stderr}"


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every folder and every file with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
