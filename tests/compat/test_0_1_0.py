"""What version 0.1.0 wrote still loads, and everything can be done with it.

`0.1.0/` holds a base model of glyphs, what `imprint --class one --shots 3 --max-forgetting 10` and
`finetune --steps 20 --max-forgetting 10` made of it, the config of the training and of a sweep, and
that sweep's folder.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lowshot_cli
from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.metadata import read_metadata
from lowshot_cli.checkpoint.workdir import furthest
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError
from lowshot_cli.storage.tensors import read_tensors
from tests.conftest import RunCommand

WRITTEN = Path(__file__).parent / "0.1.0"
STAGES = ("base", "imprinted", "finetuned")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the work folder, on a machine that draws the glyphs as the writer's did."""
    # How they look depends on the versions of Pillow and Matplotlib.
    content = read_metadata(WRITTEN / "base.safetensors").dataset_hash
    monkeypatch.setattr(Dataset, "content_hash", content)
    return shutil.copytree(WRITTEN, tmp_path / "runs")


def _json(lowshot: RunCommand, *typed: object) -> Any:
    result = lowshot(*typed, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_comes_through_bit_for_bit(stage: str, tmp_path: Path) -> None:
    before, said = read_tensors(WRITTEN / f"{stage}.safetensors")
    save(load(WRITTEN / f"{stage}.safetensors"), tmp_path / "again.safetensors")
    after, says = read_tensors(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor)
    old, new = json.loads(said["lowshot"]), json.loads(says["lowshot"])
    added = {"format", "head", "max_forgetting", "input_size", "renamed", "listing"}
    assert {key for key in new if new[key] != old.get(key)} <= added
    assert (new["renamed"], new["listing"], new["head"]) == ({}, 1, "cosine")
    assert (old["format"], new["format"]) == (1, 2)
    assert new["max_forgetting"] == (None if stage == "base" else 10)


def _with_budget(path: Path, budget: object) -> Path:
    """The imprinted model as if its command had been given another budget."""
    tensors, metadata = read_tensors(WRITTEN / "imprinted.safetensors")
    meta = json.loads(metadata["lowshot"])
    meta["history"][-1]["options"]["max_forgetting"] = budget
    save_file(tensors, path, {"lowshot": json.dumps(meta)})
    return path


@pytest.mark.parametrize(("asked", "budget"), [(None, 2), (7.5, 7.5), ("none", None)])
def test_the_budget_is_the_last_of_the_history(
    tmp_path: Path, asked: object, budget: float | None
) -> None:
    assert load(_with_budget(tmp_path / "model", asked)).meta.max_forgetting == budget


@pytest.mark.parametrize("asked", ["lots", [1], {}, -1, 101])
def test_a_history_with_another_kind_of_budget_is_refused(tmp_path: Path, asked: object) -> None:
    with pytest.raises(CheckpointError, match="inconsistent: its history"):
        load(_with_budget(tmp_path / "model", asked))


def test_the_chain_is_fresh_and_its_last_stage_is_found(lowshot: RunCommand, runs: Path) -> None:
    assert furthest(runs)[0] == runs / "finetuned.safetensors"
    listed = _json(lowshot, "classes", "list")
    assert [row["class"] for row in listed if row["kind"] == "novel"] == ["one"]
    measured = _json(lowshot, "evaluate")
    assert [Path(row["checkpoint"]).stem for row in measured] == list(STAGES)


def test_it_is_taught_more(lowshot: RunCommand, runs: Path) -> None:
    added = _json(lowshot, "imprint", "--class", "omega", "--shots", 2, "--add")
    assert added["classes"][0]["class"] == "omega"
    model = load(runs / "imprinted.safetensors")
    assert model.novel_classes == ("one", "omega")
    assert model.meta.config["dataset"] == "glyphs"
    _json(lowshot, "finetune", "--steps", 5)
    assert load(runs / "finetuned.safetensors").novel_classes == ("one", "omega")


def test_its_classes_are_renamed_and_removed_within_the_budget_of_its_history(
    lowshot: RunCommand, runs: Path
) -> None:
    checkpoint = ("--checkpoint", runs / "imprinted.safetensors")
    _json(lowshot, "imprint", "--class", "omega", "--shots", 2, "--add", "--max-forgetting", 10)
    _json(lowshot, "classes", "rename", "one", "first", *checkpoint)
    _json(lowshot, "classes", "remove", "omega", *checkpoint)
    left = load(runs / "imprinted.safetensors")
    assert left.novel_classes == ("first",)
    assert left.dataset_name("first") == "one"
    old = load(WRITTEN / "imprinted.safetensors")
    assert left.head.bias == pytest.approx(old.head.bias)
    assert old.head.bias == set_bias(old, 10).head.bias != set_bias(old, 2).head.bias


def test_python_opens_it() -> None:
    model = lowshot_cli.load(WRITTEN / "finetuned.safetensors")
    assert repr(model) == "Model(resnet9, 6 base + 1 novel classes, cpu)"
    assert model.finetune(steps=2).classes == model.classes
    assert model.remove("one").classes == model.classes[:-1]


def test_its_config_means_what_it_meant() -> None:
    config = load_config(WRITTEN / "config.yaml")
    assert (config.dataset, config.train_base.width, config.sweep.shots) == ("glyphs", 4, (1, 5))
    assert (config.imprint.max_forgetting, config.sweep.max_forgetting) == (10, 10)


def test_a_trial_of_its_run_folder_becomes_a_model_again(lowshot: RunCommand, runs: Path) -> None:
    _json(lowshot, "imprint", "--from-run", runs / "run", "--trial", 20)
    model = load(runs / "imprinted.safetensors")
    with (WRITTEN / "run" / "results.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[20]
    assert model.novel_classes == (row["classes"],)
    assert model.head.bias == pytest.approx(float(row["bias"]), abs=1e-6)
    assert (model.meta.supports[0].method, model.meta.max_forgetting) == ("whitened", 10)


@pytest.mark.parametrize("rows", [24, 13, 12])
def test_its_run_folder_is_resumed(lowshot: RunCommand, runs: Path, rows: int) -> None:
    table = runs / "run" / "results.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[: 1 + rows]))
    summary = _json(lowshot, "sweep", "--resume", runs / "run")
    again = table.read_text().splitlines(keepends=True)
    assert len(again) == len(lines) == 25
    assert again[1 : 1 + rows // 6 * 6] == lines[1 : 1 + rows // 6 * 6]
    assert [line.split(",")[:4] for line in again[1:]] == [
        line.split(",")[:4] for line in lines[1:]
    ]
    assert len(summary["cells"]) == 4
    assert (runs / "run" / "report.html").is_file()
