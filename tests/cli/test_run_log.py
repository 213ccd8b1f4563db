"""`log.jsonl`: what was done in a folder, one event a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.cli.run_log import RunLog
from lowshot_cli.progress import Progress
from lowshot_cli.storage.files import LOG
from tests.conftest import RunCommand


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def _kinds(folder: Path) -> list[str]:
    return [event["event"] for event in _events(folder)]


def test_a_sweep_says_how_it_began_went_and_ended(lowshot: RunCommand, workdir: Path) -> None:
    typed = ("sweep", "--novel", "2", "--trials", "2", "--shots", "1", "--quiet")
    assert lowshot(*typed).exit_code == 0
    (folder,) = workdir.glob("sweep-*")
    begin, *between, end = _events(folder)
    assert (begin["event"], begin["command"]) == ("begin", f"lowshot {' '.join(typed)}")
    assert "torch" in begin["versions"]
    assert end["event"] == "end"
    assert end["seconds"] > 0
    stages = {event["stage"]: event for event in between if event["event"] == "progress"}
    assert (stages["trials"]["done"], stages["trials"]["total"]) == (16, 16)
    assert [event["time"] for event in between] == sorted(event["time"] for event in between)


def test_commands_of_a_work_folder_share_its_log(lowshot: RunCommand, workdir: Path) -> None:
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    assert lowshot("finetune").exit_code == 0
    assert lowshot("imprint", "--class", "no such").exit_code == 2
    assert [k for k in _kinds(workdir) if k in ("begin", "end", "stopped")] == [
        *("begin", "end"),
        *("begin", "end"),
    ]


def test_what_stopped_a_command_on_its_way_is_in_the_log(
    lowshot: RunCommand, tmp_path: Path, tiny_yaml: Path
) -> None:
    typed = ("train-base", "--config", tiny_yaml, "--lr", "1e30")
    assert lowshot(*typed).exit_code == 3
    last = _events(tmp_path / "runs")[-1]
    assert (last["event"], last["by"]) == ("stopped", "TrainingError")
    assert "not finite in epoch 1" in last["text"]


def test_what_is_made_elsewhere_leaves_no_log_there(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    assert lowshot("imprint", "--class", "omega", "--out", "mine/a.safetensors").exit_code == 0
    assert not (tmp_path / "mine" / LOG).exists()
    assert not (workdir / LOG).exists()


def test_epochs_are_in_the_log_with_their_numbers(
    lowshot: RunCommand, tiny_yaml: Path, tmp_path: Path
) -> None:
    typed = ("train-base", "--config", tiny_yaml, "--epochs", 2, "--classes", 3, "--quiet")
    assert lowshot(*typed).exit_code == 0
    first, *training = [e for e in _events(tmp_path / "runs") if e.get("stage") == "training"]
    assert (first["epoch"], first["done"]) == (1, 32)
    assert [event["epoch"] for event in training] == [1, 2]
    assert all(0 <= event["holdout_accuracy"] <= 100 for event in training)


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"time": "2025-')
    journal = RunLog(tmp_path)
    journal.close(None)
    first, second, _ = (tmp_path / LOG).read_text().splitlines()
    assert first == '{"time": "2025-'
    assert json.loads(second)["event"] == "begin"


def test_reports_between_milestones_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 3))
    monkeypatch.setattr("lowshot_cli.cli.run_log.time.perf_counter", lambda: next(now))
    journal = RunLog(tmp_path)
    for done in range(100):
        journal.progress(Progress("trials", done, 100))
    journal.close(None)
    assert 20 <= len(_events(tmp_path)) <= 33


def test_a_log_that_cannot_be_written_stops_nothing(lowshot: RunCommand, workdir: Path) -> None:
    (workdir / LOG).mkdir()
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    (workdir / LOG).rmdir()
    (workdir / LOG).symlink_to("/dev/full")
    assert lowshot("imprint", "--class", "omega").exit_code == 0
