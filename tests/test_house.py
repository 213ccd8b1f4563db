"""The structure of the code is as the README draws it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_point_down() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_and_functions_stay_small() -> None:
    for path in (ROOT / "lowshot_cli").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 350, path


def test_the_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    plan = readme[readme.index("Imports point down") :]
    named = set(re.findall(r"(\w+)\.py", plan))
    modules = {path.stem for path in (ROOT / "lowshot_cli").glob("*.py")}
    assert modules - {"__init__", "__main__"} <= named


def test_shipped_configs_are_valid_and_open_with_their_command() -> None:
    from lowshot_cli.config.yaml_file import load_config

    for path in (ROOT / "configs").glob("*.yaml"):
        config = load_config(path)
        assert f"--config configs/{path.name}" in path.read_text().splitlines()[0]
        assert config.workdir != Path("runs")
