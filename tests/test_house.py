"""The code is built as its pages draw it, and its parts stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

from tests.pages import PAGES, ROOT


def test_imports_point_down() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _sources() -> list[Path]:
    return sorted((ROOT / "lowshot_cli").rglob("*.py"))


def test_files_stay_small() -> None:
    long = [path for path in _sources() if len(path.read_text("utf-8").splitlines()) > 350]
    assert not long


def _lengths(code: str) -> dict[str, int]:
    """Lines of every function, those in classes and in other functions included."""
    return {
        f"{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_functions_stay_small() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{name}": length
        for path in _sources()
        for name, length in _lengths(path.read_text("utf-8")).items()
    }
    assert len(lengths) > 500
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_lengths_count_signature_docstring_and_inner_functions() -> None:
    code = "class A:\n    def b(\n        self,\n    ):\n        async def c():\n            ...\n"
    assert _lengths(code) == {"b:2": 5, "c:5": 2}


def _texts(node: ast.AST) -> list[str]:
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def test_errors_of_the_engine_name_no_flag() -> None:
    engine = [path for path in _sources() if "cli" not in path.relative_to(ROOT).parts[1:-1]]
    raised = [
        (path.name, text)
        for path in engine
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Raise)
        for text in _texts(node)
    ]
    assert len(raised) > 200
    ours = [(name, text.replace("ray start --head", "")) for name, text in raised]
    assert [entry for entry in ours if "--" in entry[1]] == []


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 300


def _drawn(page: str) -> set[str]:
    """First words of the lines of the code block under the heading that ends in `ayout`."""
    text = (ROOT / page).read_text("utf-8")
    section = re.split(r"^## .*[Ll]ayout$", text, maxsplit=1, flags=re.MULTILINE)[1]
    block = section.split("```")[1]
    return {line.split()[0] for line in block.splitlines() if line.strip()}


def test_the_layout_names_every_package_and_module_and_nothing_else() -> None:
    inside = [p for p in (ROOT / "lowshot_cli").iterdir() if not p.name.startswith("__")]
    packages = {f"{path.name}/" for path in inside if (path / "__init__.py").is_file()}
    modules = {path.name for path in inside if path.suffix == ".py"}
    assert _drawn("lowshot_cli/README.md") == packages | modules


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            name, _, heading = target.partition("#")
            if "//" in target:
                continue
            there = (page.parent / name) if name else page
            assert there.exists(), (page, target)
            assert not heading or heading in _headings(there), (page, target)


def _headings(page: Path) -> set[str]:
    """Names that links within a page use, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_shipped_configs_are_valid_and_open_with_their_command() -> None:
    from lowshot_cli.config.yaml_file import load_config

    for path in (ROOT / "configs").glob("*.yaml"):
        config = load_config(path)
        assert f"--config configs/{path.name}" in path.read_text().splitlines()[0]
        assert config.workdir != Path("runs")
