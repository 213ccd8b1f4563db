"""Paths and names as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from tests.conftest import RunCommand, save_images


@pytest.mark.parametrize(
    "typed",
    [
        ["train-base", "--workdir="],
        ["train-base", "--data-dir="],
        ["train-base", "--config="],
        ["train-base", "--out="],
        ["imprint", "--class=x", "--images="],
        ["imprint", "--from-run="],
        ["finetune", "--checkpoint="],
        ["evaluate", ""],
        ["evaluate", "--report="],
        ["sweep", "--resume="],
        ["predict", ""],
        ["predict", "a.png", "--checkpoint="],
        ["export", "--out="],
        ["export", "--check", "--images="],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(
    lowshot: RunCommand, workdir: Path, typed: list[str]
) -> None:
    """As `--images "$UNSET"` gives one."""
    result = lowshot(*typed)
    assert result.exit_code == 2
    assert "empty" in result.stderr
    assert result.stdout == ""


def test_a_page_must_have_the_name_of_one(lowshot: RunCommand, workdir: Path) -> None:
    before = (workdir / "base.safetensors").read_bytes()
    for name in ("page", "runs/base.safetensors"):
        result = lowshot("evaluate", "--report", name)
        assert result.exit_code == 2
        assert f"--report {name}: a page is an HTML file" in result.stderr
        assert f"name it {name}.html" in result.stderr
    assert "is a folder" in lowshot("evaluate", "--report", "runs").stderr
    assert (workdir / "base.safetensors").read_bytes() == before


def test_photos_of_a_class_need_a_class_and_a_path(lowshot: RunCommand, workdir: Path) -> None:
    assert "no path is named" in lowshot("evaluate", "--images", "mug=").stderr
    assert "no class is named" in lowshot("evaluate", "--images", "=photos").stderr


def test_names_that_are_words_of_the_command_line_are_names(
    lowshot: RunCommand, workdir: Path, glyphs: Dataset
) -> None:
    """As given to `imprint`; `classes` needs `--` before a name that starts with a dash."""
    save_images(glyphs.test.pixels[:5], Path("photos"))
    names = ("all", "none", "40", "-x", " mug ")
    for number, name in enumerate(names):
        typed = ["--class", name, "--images", f"photos/{number}.png", *["--add"][: number > 0]]
        assert lowshot("imprint", *typed).exit_code == 0
    assert load(workdir / "imprinted.safetensors").novel_classes == names
    assert lowshot("classes", "rename", "--", "-x", "40x").exit_code == 0
    assert "did you mean ' mug '?" in lowshot("classes", "remove", "mug").stderr
    twice = lowshot("imprint", "--class", "all", "--class", "all")
    assert "--class: has an entry twice" in twice.stderr


def test_home_and_relative_folders_mean_the_same_in_a_config(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("elsewhere").mkdir()
    for folder in ("~/runs", "./runs", "elsewhere/../runs"):
        Path("elsewhere/c.yaml").write_text(f"workdir: {folder}\n")
        for typed in (["--config", "~/elsewhere/c.yaml"], ["--workdir", folder]):
            assert lowshot("classes", "list", *typed).exit_code == 0
