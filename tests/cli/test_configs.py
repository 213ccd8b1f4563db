"""Configs: printed, read back, and what travels with results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lowshot_cli.checkpoint.format import load
from tests.cli.answers import MINI, SMALL_SWEEP, as_json, done, tree
from tests.conftest import RunCommand


@pytest.mark.parametrize(
    "command",
    [
        ["train-base", "--classes=7", "--epochs=3", "--seed=4"],
        ["train-base", "--classes=omega,A,seven", "--split=alphabetical"],
        ["imprint", "--class=omega", "--class=A", "--shots=2", "--max-forgetting=none"],
        ["finetune", "--scope=full", "--novel-weight=0.5", "--freeze-base=never"],
        ["evaluate", "--device=cpu", "--workdir=elsewhere"],
        ["sweep", "--shots=1,7", "--novel=omega,A", "--method=random,imprint", "--trials=3"],
    ],
)
def test_a_printed_config_reads_back_as_itself(
    lowshot: RunCommand, tiny_yaml: Path, tmp_path: Path, command: list[str]
) -> None:
    printed = done(lowshot(*command, "--config", tiny_yaml, "--print-config")).stdout
    path = tmp_path / "printed.yaml"
    path.write_text(printed, encoding="utf-8")
    again = done(lowshot(command[0], "--config", path, "--print-config"))
    assert again.stdout == printed
    assert again.stderr == ""
    defaults = done(lowshot(command[0], "--config", tiny_yaml, "--print-config")).stdout
    assert defaults != printed
    assert [entry.name for entry in tmp_path.iterdir()] == ["printed.yaml"]


def test_flags_win_over_the_yaml_and_the_yaml_over_defaults(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nsweep: {trials: 7, shots: [2, 4], max_forgetting: none}\n")
    found = yaml.safe_load(
        done(lowshot("sweep", "--config", path, "--trials", 9, "--print-config")).stdout
    )
    assert found["seed"] == 3
    assert found["device"] == "auto"
    assert found["dataset"] is None
    assert found["sweep"]["trials"] == 9
    assert found["sweep"]["shots"] == [2, 4]
    assert found["sweep"]["max_forgetting"] == "none"


def test_a_printed_config_makes_the_same_model_as_the_flags(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    printed = done(lowshot("train-base", *MINI, "--seed", 3, "--print-config")).stdout
    (tmp_path / "printed.yaml").write_text(printed)
    done(lowshot("train-base", *MINI, "--seed", 3, "--workdir", "flags"))
    done(lowshot("train-base", "--config", "printed.yaml", "--workdir", "yaml"))
    assert tree(tmp_path / "flags") == tree(tmp_path / "yaml")


def test_the_config_beside_the_results_repeats_the_sweep(
    lowshot: RunCommand, workdir: Path
) -> None:
    first = as_json(lowshot("sweep", *SMALL_SWEEP, "--seed", 2, "--json"))["run_dir"]
    config = Path(first) / "config.yaml"
    second = as_json(lowshot("sweep", "--config", config, "--json"))["run_dir"]
    assert first != second
    assert (Path(first) / "results.csv").read_bytes() == (Path(second) / "results.csv").read_bytes()


def test_a_sweep_trains_the_base_model_that_its_config_describes(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    options = {name.removeprefix("--"): value for name, value in (m.split("=") for m in MINI)}
    dataset = options.pop("dataset")
    section = {name.replace("-", "_"): int(value) for name, value in options.items()}
    config = tmp_path / "whole.yaml"
    config.write_text(json.dumps({"dataset": dataset, "train_base": section}))
    missing = lowshot("sweep", "--config", config)
    assert missing.exit_code == 3
    assert "train_base" in missing.stderr
    config.write_text(
        json.dumps({"dataset": dataset, "train_base": section, "sweep": {"train_base": True}})
    )
    flags = ["--config", config, "--trials=1", "--novel=2", "--shots=1", "--method=imprint"]
    done(lowshot("sweep", *flags))
    base = tmp_path / "runs" / "base.safetensors"
    content = base.read_bytes()
    done(lowshot("sweep", *flags))
    assert base.read_bytes() == content
    done(lowshot("train-base", *MINI, "--out", "flags.safetensors"))
    from_sweep, from_flags = load(base), load(Path("flags.safetensors"))
    assert torch.equal(from_sweep.head.proxies, from_flags.head.proxies)
    assert from_sweep.meta.config["train_base"] == from_flags.meta.config["train_base"]
