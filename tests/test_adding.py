"""The examples of a method, backbone and dataset in `lowshot_cli/README.md` are all it takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.checkpoint.format import save
from tests.conftest import save_images
from tests.tiny_world import tiny_world

ROOT = Path(__file__).parent.parent
Run = Callable[..., list[Any]]
# Commands in one process, which loads PyTorch once.
_ONE_AFTER_THE_OTHER = """
import json, sys
from lowshot_cli.cli.main import app
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments, prog_name="lowshot")
    except SystemExit as ending:
        if ending.code:
            raise
"""


def _examples(heading: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks between a bold heading and the next one."""
    text = (ROOT / "lowshot_cli" / "README.md").read_text(encoding="utf-8")
    section = text[text.index(f"**{heading}**") + len(heading) + 4 :]
    return re.findall(r"```(\w+)\n(.*?)```", section.split("\n**")[0], re.DOTALL)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path} does not hold this once:\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def _apply(diff: str, root: Path) -> None:
    """Apply hunks without line numbers: `+++` names a file, `@@` parts hunks of the same file."""
    for change in re.split(r"^\+\+\+ ", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = change.partition("\n")
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old, new = ("".join(x[1:] for x in lines if x[0] in kinds) for kinds in (" -", " +"))
            _replace(root / name, old, new)


def _write(code: str, root: Path) -> None:
    """Code whose first line says where it goes: a new file, or a place in one."""
    place, _, body = code.partition("\n")
    name, _, before = place.removeprefix("# ").partition(", above ")
    if not before:
        (root / name).write_text(body, encoding="utf-8")
        return
    start = before.strip("`").removesuffix("...")
    _replace(root / name, f"\n{start}", f"\n{body}\n\n{start}")


@pytest.fixture
def copy_with(tmp_path: Path) -> Callable[[str], Run]:
    """A copy of the package with an example of the README in it, to run commands of."""

    def make(heading: str) -> Run:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "lowshot_cli", tmp_path / "lowshot_cli", ignore=ignored)
        examples = _examples(heading)
        assert examples
        for language, text in examples:
            assert len(text.splitlines()) <= 16, "an example is short"
            {"diff": _apply, "python": _write}[language](text, tmp_path)
        return run

    def run(*commands: Sequence[object]) -> list[Any]:
        typed = [[*map(str, command), "--quiet", "--json"] for command in commands]
        done = subprocess.run(
            [sys.executable, "-c", _ONE_AFTER_THE_OTHER, json.dumps(typed)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return make


def test_a_new_method_imprints_and_is_swept(
    copy_with: Callable[[str], Run], base_path: Path, tmp_path: Path
) -> None:
    run = copy_with("An imprinting method")
    dataset, frozen, _ = tiny_world("linear")
    save(frozen, tmp_path / "frozen.safetensors")
    save_images(dataset.train.pixels[:3], tmp_path / "mugs")
    sweep = ("sweep", "--checkpoint", base_path, "--method", "imprint,median")
    imprint = ("imprint", "--checkpoint", base_path, "--class", "Z", "--method", "median")
    photos = ("--checkpoint", "frozen.safetensors", "--class", "mug", "--images", "mugs")
    found, taught, linear = run(
        (*sweep, "--trials", 2, "--novel", 2, "--shots", "1,5"),
        imprint,
        ("imprint", *photos, "--method", "median", "--out", "linear.safetensors"),
    )
    cells = {(cell["method"], cell["shots"]): cell["ncr_at_2"]["mean"] for cell in found["cells"]}
    assert cells["median", 5] != cells["imprint", 5]
    assert taught["method"] == linear["method"] == "median"
    assert taught["novel_accuracy"] > 100 / 13


def test_a_new_backbone_is_trained_and_taught(
    copy_with: Callable[[str], Run], tiny_yaml: Path
) -> None:
    run = copy_with("A backbone")
    short = ("--config", tiny_yaml, "--epochs", 1, "--classes", 5)
    trained, taught = run(
        ("train-base", *short, "--backbone", "conv3"), ("imprint", "--class", "Z")
    )
    assert (trained["n_classes"], trained["epochs"]) == (5, 1)
    assert taught["classes"][0]["class"] == "Z"


def test_a_new_dataset_is_listed_and_trained_on(copy_with: Callable[[str], Run]) -> None:
    run = copy_with("A dataset")
    rows, trained = run(
        ("data", "classes", "--dataset", "stripes"),
        ("train-base", "--dataset", "stripes", "--epochs", 1, "--width", 4),
    )
    assert rows == [{"class": str(n), "train": 100, "test": 20} for n in range(1, 9)]
    assert trained["n_classes"] == 5
