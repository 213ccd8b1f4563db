"""A trial of a sweep becomes a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.checkpoint.format import load
from tests.cli.answers import MINI, SMALL_SWEEP, as_json, done, only_run, read_rows
from tests.conftest import RunCommand


def test_a_model_rebuilt_from_a_sweep_scores_as_its_row(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "short.yaml"
    config.write_text("finetune: {steps: 3}\nsweep: {methods: [imprint, random, finetune-head]}\n")
    flags = ["--config", config, "--trials=2", "--novel=3", "--shots=3", "--save-models"]
    done(lowshot("sweep", *flags))
    run_dir = only_run(workdir)
    rows = read_rows(run_dir)
    for trial in (0, 9, len(rows) - 1):
        row = rows[trial]
        done(lowshot("imprint", "--from-run", run_dir, "--trial", trial))
        found = as_json(lowshot("evaluate", workdir / "imprinted.safetensors", "--json"))[0]
        for metric in ("novel_accuracy", "base_accuracy", "global_accuracy"):
            assert found[metric] == pytest.approx(float(row[metric]), abs=1e-3)
        assert found["harmonic_mean"] == pytest.approx(float(row["harmonic_mean"]), abs=1e-3)
        assert found["forgetting"] == pytest.approx(float(row["forgetting"]), abs=1e-3)
        model = load(workdir / "imprinted.safetensors")
        assert model.novel_classes == (row["classes"],)
        assert model.head.bias == pytest.approx(float(row["bias"]), abs=1e-5)
        assert model.meta.supports[0].method == row["method"]
        assert len(model.meta.supports[0].indices) == 3
    done(lowshot("finetune"))


def test_trial_0_of_a_sweep_is_what_imprint_makes(lowshot: RunCommand, workdir: Path) -> None:
    sweep = ["--trials=2", "--novel=omega", "--shots=3", "--method=imprint", "--save-models"]
    done(lowshot("sweep", *sweep))
    done(lowshot("imprint", "--class", "omega", "--shots", 3, "--method", "imprint"))
    imprinted = load(workdir / "imprinted.safetensors")
    done(lowshot("imprint", "--from-run", only_run(workdir), "--trial", 0))
    rebuilt = load(workdir / "imprinted.safetensors")
    assert rebuilt.meta.supports == imprinted.meta.supports
    assert torch.allclose(rebuilt.head.proxies, imprinted.head.proxies, atol=1e-5)
    assert rebuilt.head.bias == imprinted.head.bias == 0


def test_a_rebuilt_trial_remembers_the_sweeps_options(lowshot: RunCommand, workdir: Path) -> None:
    budget = ("--max-forgetting", 10, "--seed", 3)
    sweep = ("--trials", 1, "--novel", 2, "--ways", 2, "--shots", 3, "--method", "teen")
    done(lowshot("sweep", *sweep, *budget, "--save-models"))
    done(lowshot("imprint", "--from-run", only_run(workdir), "--trial", 0))
    rebuilt = load(workdir / "imprinted.safetensors")
    step = rebuilt.meta.history[-1]
    options = {key: step["options"][key] for key in ("shots", "method", "max_forgetting")}
    assert (step["seed"], options) == (
        3,
        {"shots": 3, "method": "teen", "max_forgetting": 10},
    )
    done(lowshot("classes", "remove", rebuilt.novel_classes[1]))
    left = load(workdir / "imprinted.safetensors")
    assert left.head.bias == set_bias(left, 10).head.bias != set_bias(left, 2).head.bias


def test_a_trial_is_not_rebuilt_on_another_base_model(lowshot: RunCommand, tmp_path: Path) -> None:
    done(lowshot("train-base", *MINI))
    done(lowshot("sweep", *SMALL_SWEEP, "--save-models"))
    # Of the same classes and the same size, so that every row would fit.
    done(lowshot("train-base", *MINI, "--seed", 1, "--overwrite"))
    result = lowshot("imprint", "--from-run", only_run(tmp_path / "runs"), "--trial", 0)
    assert result.exit_code == 3, "rows of one base model were put into another"
    assert "base" in result.stderr
    assert not (tmp_path / "runs" / "imprinted.safetensors").exists()
