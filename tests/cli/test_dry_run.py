"""`--dry-run` says what a command would do and cost, and writes nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli import estimate
from lowshot_cli.progress import Progress
from tests.conftest import RunCommand
from tests.faults.conftest import write_config


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_REHEARSAL", 0.2)


def _planned(lowshot: RunCommand, *typed: object) -> dict[str, Any]:
    result = lowshot(*typed, "--dry-run", "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    plan: dict[str, Any] = json.loads(result.stdout)
    assert plan["seconds"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"]))
    assert all(stage["seconds"] > 0 for stage in plan["stages"] if stage["n"])
    assert 100 * 2**20 < plan["memory_bytes"] < 2**37
    return plan


def _steps(plan: dict[str, Any]) -> dict[str, int]:
    return {stage["name"]: stage["n"] for stage in plan["stages"]}


def test_a_training_is_planned(lowshot: RunCommand, tiny_yaml: Path, tmp_path: Path) -> None:
    plan = _planned(lowshot, "train-base", "--config", tiny_yaml)
    counts = plan["counts"]
    assert counts == {
        "base classes": 12,
        "fit images": 1200,
        "hold-out images": 600,
        "test images": 600,
    }
    # Six epochs of whole batches of 32.
    assert _steps(plan) == {"training": 6 * 37 * 32, "hold-out": 6 * 600, "embedding": 1200}
    assert list(tmp_path.iterdir()) == []


def test_a_plan_names_the_files_that_the_command_then_writes(
    lowshot: RunCommand, workdir: Path
) -> None:
    typed = ("sweep", "--novel", "2", "--trials", "3", "--shots", "1,5", "--save-models")
    before = sorted(workdir.rglob("*"))
    plan = _planned(lowshot, *typed)
    assert sorted(workdir.rglob("*")) == before
    assert plan["counts"]["trials"] == 2 * 3 * 2 * 4
    assert _steps(plan)["whitened"] == 2 * 3 * 2
    assert lowshot(*typed, "--quiet").exit_code == 0
    (folder,) = workdir.glob("sweep-*")
    assert {path.name for path in folder.iterdir()} == {Path(p).name for p in plan["paths"]}
    with (folder / "results.csv").open(encoding="utf-8") as file:
        assert len(file.readlines()) - 1 == plan["counts"]["trials"]


def test_images_that_are_embedded_already_cost_nothing(lowshot: RunCommand, workdir: Path) -> None:
    typed = ("sweep", "--novel", "omega,Z", "--trials", "1", "--shots", "1")
    shutil.rmtree(_cache(), ignore_errors=True)
    cold = _planned(lowshot, *typed)
    assert lowshot(*typed, "--quiet").exit_code == 0
    assert (_steps(cold)["embedding"], _steps(_planned(lowshot, *typed))["embedding"]) == (1000, 0)


def _cache() -> Path:
    from lowshot_cli.storage.cache import embedding_cache

    return embedding_cache().folder


def test_a_sweep_without_a_base_model_is_planned_with_its_training(
    lowshot: RunCommand, tmp_path: Path, tiny_yaml: Path
) -> None:
    config = json.loads(tiny_yaml.read_text()) | {
        "sweep": {"train_base": True, "trials": 2, "novel": 3}
    }
    (tmp_path / "both.yaml").write_text(json.dumps(config))
    plan = _planned(lowshot, "sweep", "--config", "both.yaml")
    assert [stage["name"] for stage in plan["stages"]] == [
        *("training", "hold-out", "embedding"),
        *("imprint", "random", "whitened", "finetune-head"),
    ]
    # Hold-out and test images after the training; test and novel images for the trials.
    assert _steps(plan)["embedding"] == (600 + 600) + (600 + 3 * 200)
    assert plan["paths"][0] == "runs/base.safetensors"
    assert not (tmp_path / "runs").exists()


def test_a_sweep_over_base_models_is_planned_as_far_as_it_is_not_there(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    sweep = {"trials": 2, "novel": 3, "shots": [1], "methods": ["whitened"]}
    config = write_config(tmp_path, sweep=sweep)
    typed = ("sweep", "--config", config, "--class-order-seeds", "0,1", "--save-models")
    both = _planned(lowshot, *typed)
    assert not (tmp_path / "runs").exists()
    assert both["counts"]["base models"] == 2
    assert both["counts"]["trials"] == _steps(both)["whitened"] == 2 * 3 * 2
    assert lowshot(*typed, "--quiet").exit_code == 0
    written = {_undated(path) for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert {_undated(tmp_path / path) for path in both["paths"]} == written
    again = _planned(lowshot, *typed)
    assert (again["counts"], again["stages"]) == ({"base models": 0}, [])
    (tmp_path / "runs" / "order-1-resnet9" / "base.safetensors").unlink()
    one = _planned(lowshot, *typed)
    assert one["counts"]["trials"] == 2 * 3
    assert _steps(one)["training"] == _steps(both)["training"] / 2


def _undated(path: Path) -> Path:
    """A path with the name that plans have for run folders."""
    return Path(re.sub(r"sweep-[^/]*", "sweep-DATE-TIME", str(path)))


def test_fine_tuning_is_planned(lowshot: RunCommand, workdir: Path) -> None:
    assert lowshot("imprint", "--class", "omega", "--shots", "3").exit_code == 0
    files = {path: path.read_bytes() for path in workdir.iterdir()}
    head = _planned(lowshot, "finetune")
    whole = _planned(lowshot, "finetune", "--scope", "full", "--epochs", "2")
    assert head["counts"]["support images"] == 3
    assert _steps(head)["fine-tuning"] == 100
    # Two epochs of batches of 128 of 1,200 fit images and 99 repeated supports.
    assert _steps(whole)["fine-tuning"] == 2 * 11
    assert {path: path.read_bytes() for path in workdir.iterdir()} == files


def test_what_could_not_be_run_is_not_planned(lowshot: RunCommand, workdir: Path) -> None:
    for typed in (
        ("train-base", "--dataset", "glyphs"),
        ("sweep", "--shots", "100000"),
        ("sweep", "--resume", "runs/none"),
        ("train-base", "--resume"),
        ("finetune",),
    ):
        result = lowshot(*typed, "--dry-run")
        assert result.exit_code in (2, 3), typed
        assert result.stdout == ""


def test_a_sweep_from_a_model_with_novel_classes_is_not_planned(
    lowshot: RunCommand, workdir: Path
) -> None:
    assert lowshot("imprint", "--class", "omega").exit_code == 0
    for typed in ((), ("--dry-run",)):
        result = lowshot("sweep", "--checkpoint", workdir / "imprinted.safetensors", *typed)
        assert result.exit_code == 2
        assert "has novel classes" in result.stderr


def test_milestones_and_the_first_steps_are_not_counted_in() -> None:
    clock = iter([-9, 0, 9, 18, 20, 22, 60, 62, 64, *range(66, 1000, 2)])

    def work(watch: Any) -> None:
        for done in range(1, 100):
            watch(Progress("steps", done, 1000, "steps", important=done == 6))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate.time, "perf_counter", lambda: next(clock))
        found = estimate._rehearsed("steps", work)
    assert (found.n, found.seconds) == (1000, pytest.approx(2000))


def test_a_work_of_a_single_step_is_timed_from_its_beginning() -> None:
    clock = iter([5000, 5002])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate.time, "perf_counter", lambda: next(clock))
        found = estimate._rehearsed("steps", lambda watch: watch(Progress("steps", 10, 30)))
    assert found.seconds == pytest.approx(6)


def test_the_plan_is_a_table_for_people(lowshot: RunCommand, workdir: Path) -> None:
    result = lowshot("sweep", "--novel", "2", "--trials", "1", "--shots", "1", "--dry-run")
    assert "works on" in result.stdout
    assert "total" in result.stdout
    assert "\n  runs/sweep-DATE-TIME/results.csv\n" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
