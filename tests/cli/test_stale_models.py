"""Models whose predecessors have changed are never used in silence."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lowshot_cli.checkpoint.format import load
from lowshot_cli.data.dataset import Dataset
from tests.cli.answers import MINI, as_json, done, tree
from tests.conftest import RunCommand, save_images


def _change_base(lowshot: RunCommand) -> None:
    done(lowshot("train-base", *MINI, "--seed", 5, "--overwrite"))


def test_finetune_refuses_an_imprinted_model_of_an_earlier_base(
    lowshot: RunCommand, workdir: Path
) -> None:
    done(lowshot("imprint", "--class", "omega"))
    _change_base(lowshot)
    before = tree(workdir)
    for command in (["finetune"], ["imprint", "--class", "A", "--add"]):
        result = lowshot(*command)
        assert result.exit_code == 3
        assert "imprinted.safetensors is stale" in result.stderr
        assert "`lowshot imprint`" in result.stderr
        assert tree(workdir) == before
    done(lowshot("imprint", "--class", "omega"))
    done(lowshot("finetune"))


# Every command that takes the furthest model of the work folder.
READERS = (
    ["predict", "a.png"],
    ["classes", "list"],
    ["classes", "remove", "omega"],
    ["classes", "rename", "omega", "mug"],
    ["export", "--format", "torch"],
    ["evaluate"],
    ["evaluate", "--images", "omega=a.png"],
)


@pytest.fixture
def picture(tmp_path: Path, glyphs: Dataset) -> None:
    save_images(glyphs.train.pixels[:1], tmp_path)
    (tmp_path / "0.png").rename(tmp_path / "a.png")


@pytest.mark.usefixtures("picture")
def test_no_command_takes_an_earlier_model_in_place_of_a_stale_one(
    lowshot: RunCommand, workdir: Path
) -> None:
    known = load(workdir / "base.safetensors").meta.classes[0]
    base = Path("runs", "base.safetensors")
    done(lowshot("imprint", "--class", "omega"))
    renamed = ["classes", "rename", known, "other", "--force", "--checkpoint", base]
    told = done(lowshot(*renamed)).stderr
    assert "runs/imprinted.safetensors is stale now; `lowshot imprint` makes it again" in told
    before = tree(workdir)
    for command in READERS:
        result = lowshot(*command, "--quiet")
        assert result.exit_code == 3, command
        assert "runs/imprinted.safetensors is stale: runs/base.safetensors" in result.stderr
        assert "`lowshot imprint`" in result.stderr
        assert ("--checkpoint" in result.stderr) == (command != ["evaluate"])
        assert result.stdout == ""
        assert tree(workdir) == before
    for command in (READERS[0], READERS[1]):
        for named in (base, Path("runs", "imprinted.safetensors")):
            assert "using" not in done(lowshot(*command, "--checkpoint", named)).stderr


@pytest.mark.usefixtures("picture")
def test_where_there_is_a_choice_the_model_that_is_used_is_named(
    lowshot: RunCommand, workdir: Path
) -> None:
    said = "using runs/imprinted.safetensors\n"
    assert "using" not in done(lowshot("predict", "a.png")).stderr
    done(lowshot("imprint", "--class", "omega"))
    for command in (READERS[0], READERS[1], READERS[6], READERS[3]):
        assert said in done(lowshot(*command, "--json")).stderr


@pytest.mark.usefixtures("picture")
def test_the_next_command_is_one_that_takes_the_model_just_made(
    lowshot: RunCommand, workdir: Path
) -> None:
    done(lowshot("imprint", "--class", "omega"))
    done(lowshot("finetune"))
    told = done(lowshot("imprint", "--class", "mug", "--images", "a.png")).stderr
    assert "runs/finetuned.safetensors is stale now; `lowshot finetune` makes it again" in told
    then = told.split("next: lowshot ")[1].splitlines()[0]
    assert then == "predict a.png --checkpoint runs/imprinted.safetensors"
    done(lowshot(*shlex.split(then)))


def test_evaluate_refuses_to_leave_a_stale_model_out(lowshot: RunCommand, workdir: Path) -> None:
    """A program that reads the last of the list would take it for the latest model."""
    done(lowshot("imprint", "--class", "omega"))
    done(lowshot("finetune"))
    done(lowshot("imprint", "--class", "A"))
    result = lowshot("evaluate", "--json")
    assert result.exit_code == 3
    assert "finetuned.safetensors is stale" in result.stderr
    assert "or name the files to evaluate" in result.stderr


def test_a_grandchild_of_a_changed_base_is_stale_too(lowshot: RunCommand, workdir: Path) -> None:
    done(lowshot("imprint", "--class", "omega"))
    done(lowshot("finetune"))
    _change_base(lowshot)
    result = lowshot("evaluate", "--json")
    assert result.exit_code == 3
    assert "runs/finetuned.safetensors is stale" in result.stderr
    assert "`lowshot imprint` and `lowshot finetune` make it again" in result.stderr


def test_a_model_that_is_named_is_taken_as_named(lowshot: RunCommand, workdir: Path) -> None:
    done(lowshot("imprint", "--class", "omega"))
    _change_base(lowshot)
    path = Path("runs") / "imprinted.safetensors"
    (found,) = as_json(lowshot("evaluate", path, "--json"))
    assert (found["checkpoint"], found["n_novel"]) == (str(path), 1)


def test_making_the_same_child_again_does_not_make_it_stale(
    lowshot: RunCommand, workdir: Path
) -> None:
    for _ in range(2):
        done(lowshot("imprint", "--class", "omega"))
    done(lowshot("finetune"))
    done(lowshot("imprint", "--class", "omega"))
    assert len(as_json(lowshot("evaluate", "--json"))) == 3
