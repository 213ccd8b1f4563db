"""What goes to stdout and to stderr, and what is proposed next."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lowshot_cli.data.dataset import Dataset
from tests.cli.answers import MINI, SMALL_SWEEP, as_json, done
from tests.conftest import RunCommand, save_images


def test_results_go_to_stdout_and_the_rest_to_stderr(lowshot: RunCommand, workdir: Path) -> None:
    for command, heading in (
        (["imprint", "--class", "omega"], "base classes"),
        (["finetune"], "novel classes"),
        (["evaluate"], "accuracy on test images"),
        (["sweep", *SMALL_SWEEP], "NCR@2"),
    ):
        result = done(lowshot(*command))
        assert heading in result.stdout
        assert heading not in result.stderr
        for message in ("wrote ", "next: ", "embedding ", "trials 24/24"):
            assert message not in result.stdout
        if command[0] != "evaluate":
            assert "wrote " in result.stderr
    assert "trials 24/24" in result.stderr


def test_training_reports_its_progress_on_stderr(lowshot: RunCommand) -> None:
    result = done(lowshot("train-base", *MINI))
    for fact in ("epoch 1", "loss ", "hold-out ", "images/s"):
        assert fact in result.stderr
    assert "base model" in result.stdout
    assert "loss " not in result.stdout
    assert "next: lowshot imprint --class " in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["train-base", *MINI, "--overwrite"],
        ["imprint", "--class=omega"],
        ["evaluate"],
        ["sweep", *SMALL_SWEEP],
    ],
)
def test_quiet_leaves_only_the_results(
    lowshot: RunCommand, workdir: Path, command: list[str]
) -> None:
    result = done(lowshot(*command, "--quiet"))
    assert result.stderr == ""
    assert result.stdout.strip()
    result = lowshot(*command, "--quiet", "--json")
    as_json(result)
    assert result.stderr == ""


def test_what_is_proposed_next_works_as_it_stands(lowshot: RunCommand, tmp_path: Path) -> None:
    proposals, command = [], ["train-base", *MINI]
    while command:
        lines = done(lowshot(*command)).stderr.splitlines()
        following = [line for line in lines if line.startswith("next: lowshot ")]
        command = shlex.split(following[0])[2:] if following else []
        proposals.append(command[:1])
    assert proposals == [["imprint"], ["finetune"], ["evaluate"], []]


def test_what_is_proposed_next_leaves_out_what_was_left_out_and_takes_what_there_is(
    lowshot: RunCommand, tmp_path: Path, glyphs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "E", "Z"):
        places = glyphs.train.of_class(glyphs.label(name))[: 25 if name < "Z" else 5]
        save_images(glyphs.train.pixels[places], tmp_path / "photos" / name)
    (tmp_path / "photos" / "A" / "bad.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "photos")
    workdir = ["--workdir", str(tmp_path / "runs")]
    data = ["--dataset", "folder", "--data-dir", ".", "--skip-bad", "--holdout", "8"]
    small = ["--backbone", "resnet9", "--width", "4", "--epochs", "1", "--image-size", "32"]
    small += ["--classes", "A,E"]
    last = done(lowshot("train-base", *data, *small, *workdir)).stderr.splitlines()[-1]
    command = shlex.split(last)[2:]
    assert command == [
        *["imprint", "--class", "Z", "--shots", "4"],
        *[*workdir, "--data-dir", ".", "--skip-bad"],
    ]
    done(lowshot(*command))


def test_what_is_proposed_next_finds_other_folders_and_files(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    elsewhere = workdir.rename(tmp_path / "other runs")
    made, tuned = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    command = ["imprint", "--class", "omega", "--out", str(made), "--workdir", str(elsewhere)]
    proposals = []
    while command:
        extra = ["--out", str(tuned)] if command[0] == "finetune" else []
        last = done(lowshot(*command, *extra)).stderr.splitlines()[-1:]
        following = [line for line in last if line.startswith("next: lowshot ")]
        command = shlex.split(following[0])[2:] if following else []
        proposals.append(command)
    folder = ["--workdir", str(elsewhere)]
    assert proposals == [
        ["finetune", "--checkpoint", str(made), *folder],
        ["evaluate", str(tuned), *folder],
        [],
    ]
