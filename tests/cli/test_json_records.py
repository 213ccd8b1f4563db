"""What commands hand to programs with `--json`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lowshot_cli.evaluation.statistics import METRICS
from tests.cli.answers import MINI, SMALL_SWEEP, as_json, done, read_rows, types
from tests.conftest import RunCommand


def test_train_base_hands_programs_its_keys(lowshot: RunCommand) -> None:
    found = as_json(lowshot("train-base", *MINI, "--json"))
    assert types(found) == {
        "checkpoint": str,
        "base_accuracy": float,
        "holdout_accuracy": float,
        "epochs": int,
        "train_seconds": float,
        "images_per_second": float,
        "n_classes": int,
        "n_skipped": int,
    }
    assert (found["epochs"], found["n_classes"]) == (1, 3)
    assert found["train_seconds"] > 0
    assert found["images_per_second"] > 0
    measured = as_json(lowshot("evaluate", found["checkpoint"], "--json"))[0]
    assert found["base_accuracy"] == measured["base_accuracy"]


def test_evaluate_hands_programs_one_entry_per_checkpoint(
    lowshot: RunCommand, workdir: Path
) -> None:
    done(lowshot("imprint", "--class", "omega"))
    base, imprinted = as_json(lowshot("evaluate", "--json"))
    expected = {
        "checkpoint": str,
        "n_base": int,
        "n_novel": int,
        "base_accuracy": float,
        "novel_accuracy": float,
        "global_accuracy": float,
        "harmonic_mean": float,
        "forgetting": float,
        "per_class": list,
    }
    assert types(imprinted) == expected
    missing = {"novel_accuracy": type(None), "harmonic_mean": type(None)}
    assert types(base) == expected | missing
    for one in (base, imprinted):
        assert Path(one["checkpoint"]).is_file()
        for row in one["per_class"]:
            assert types(row) == {"class": str, "accuracy": float, "n": int}
    assert base["forgetting"] == 0
    assert [row["class"] for row in imprinted["per_class"]][-1] == "omega"


def test_the_numbers_of_evaluate_agree_with_each_other(lowshot: RunCommand, workdir: Path) -> None:
    done(lowshot("imprint", "--class", "omega", "--class", "A"))
    base, found = as_json(lowshot("evaluate", "--json"))
    rows, n_base = found["per_class"], found["n_base"]

    def accuracy(some: list[dict[str, Any]]) -> float:
        return sum(row["accuracy"] * row["n"] for row in some) / sum(row["n"] for row in some)

    old, new = accuracy(rows[:n_base]), accuracy(rows[n_base:])
    assert found["base_accuracy"] == pytest.approx(old)
    assert found["novel_accuracy"] == pytest.approx(new)
    assert found["global_accuracy"] == pytest.approx(accuracy(rows))
    assert found["harmonic_mean"] == pytest.approx(2 * old * new / (old + new) if new else 0)
    assert found["forgetting"] == pytest.approx(base["base_accuracy"] - old)


def test_sweep_hands_programs_its_cells(lowshot: RunCommand, workdir: Path) -> None:
    found = as_json(lowshot("sweep", *SMALL_SWEEP, "--json"))
    contract = {"cells": list, "base_accuracy_before": float, "timing": dict, "run_dir": str}
    assert types({name: found[name] for name in contract}) == contract
    assert types(found["timing"]) == {
        "embed_seconds": float,
        "trials_seconds": float,
        "trials_per_second": float,
    }
    cells = {(cell["method"], cell["shots"]): cell for cell in found["cells"]}
    assert set(cells) == {(m, k) for m in ("imprint", "random") for k in (1, 3)}
    assert len(cells) == len(found["cells"])
    for cell in found["cells"]:
        assert set(cell) == {"method", "shots", "n_trials", "n_classes"} | set(METRICS)
        assert (cell["n_trials"], cell["n_classes"]) == (6, 3)
        for metric in METRICS:
            assert types(cell[metric]) == {
                "mean": float,
                "std_between": float,
                "std_within": float,
                "ci95": list,
            }
            low, high = cell[metric]["ci95"]
            assert low <= cell[metric]["mean"] <= high
    before = as_json(lowshot("evaluate", workdir / "base.safetensors", "--json"))[0]
    assert found["base_accuracy_before"] == before["base_accuracy"]
    run_dir = Path(found["run_dir"])
    assert json.loads((run_dir / "results.json").read_text(encoding="utf-8")) == found


def test_the_means_of_a_sweep_are_those_of_its_rows(lowshot: RunCommand, workdir: Path) -> None:
    found = as_json(lowshot("sweep", *SMALL_SWEEP, "--json"))
    rows = read_rows(Path(found["run_dir"]))
    assert len(rows) == 2 * 3 * 2 * 2
    for cell in found["cells"]:
        chosen = [
            row
            for row in rows
            if (row["method"], int(row["shots"])) == (cell["method"], cell["shots"])
        ]
        for metric in METRICS:
            mean = sum(float(row[metric]) for row in chosen) / len(chosen)
            assert cell[metric]["mean"] == pytest.approx(mean, abs=1e-6)


def test_one_class_has_no_interval_and_the_answer_is_still_json(
    lowshot: RunCommand, workdir: Path
) -> None:
    flags = ["--trials=1", "--novel=omega", "--shots=1", "--method=imprint"]
    (cell,) = as_json(lowshot("sweep", *flags, "--json"))["cells"]
    assert (cell["n_trials"], cell["n_classes"]) == (1, 1)
    for metric in METRICS:
        assert cell[metric]["ci95"] is None
        assert math.isfinite(cell[metric]["mean"])
