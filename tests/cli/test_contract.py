"""What each command hands to programs: the keys, in their order, and the types of their values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from typer.testing import CliRunner

from lowshot_cli.adaptation.review import Confusion, Outlier, Review, Weakened
from lowshot_cli.cli.main import app
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.records import with_reviews
from tests.conftest import save_images
from tests.reference import REFERENCE, all_commands

# Enough to train a model of sorts within a second.
MINI = {"classes": 3, "width": 4, "embedding_size": 8, "epochs": 1, "batch_size": 64}
SWEEP = ("--trials", 2, "--novel", 2, "--shots", 2, "--method", "imprint,whitened")

NUMBER_OR_NONE = (float, NoneType)
METRIC = {"mean": float, "std_between": float, "std_within": float, "ci95": ([float], NoneType)}
DIFFERENCE = {"mean": float, "ci95": ([float], NoneType)}
OVER_BASES = {"mean": float, "std": NUMBER_OR_NONE, "ci95": ([float], NoneType)}
METRICS = (
    "novel_accuracy",
    "base_accuracy",
    "global_accuracy",
    "harmonic_mean",
    "forgetting",
    "ncr_at_2",
    "ncr_at_5",
)
CELL = {"method": str, "shots": int, "n_trials": int, "n_classes": int}
ABOUT_A_SWEEP = {
    "base_accuracy_before": float,
    "dropped_duplicates": int,
    "avoided_duplicates": int,
    "timing": {"embed_seconds": float, "trials_seconds": float, "trials_per_second": float},
    "run_dir": str,
    "versions": Mapping,
    "hardware": str,
}
SWEEP_RECORD = {
    "ways": int,
    "left_out": [str],
    "cells": [CELL | dict.fromkeys(METRICS, METRIC)],
    "paired": [{"methods": [str], "shots": int} | dict.fromkeys(METRICS, DIFFERENCE)],
    "classes": [
        {"method": str, "shots": int, "class": str}
        | dict.fromkeys(METRICS, float)
        | {"confused_with": str, "confused_percent": float, "best_trial": int, "worst_trial": int}
        | {"best_support": [[int]], "worst_support": [[int]]}
    ],
    **ABOUT_A_SWEEP,
}
EVALUATION = {
    "checkpoint": str,
    "n_base": int,
    "n_novel": int,
    "base_accuracy": NUMBER_OR_NONE,
    "novel_accuracy": NUMBER_OR_NONE,
    "global_accuracy": float,
    "harmonic_mean": NUMBER_OR_NONE,
    "forgetting": NUMBER_OR_NONE,
    "per_class": [{"class": str, "accuracy": NUMBER_OR_NONE, "n": int}],
}
SETS = {
    "base_coverage": NUMBER_OR_NONE,
    "base_size": NUMBER_OR_NONE,
    "novel_coverage": NUMBER_OR_NONE,
    "novel_size": NUMBER_OR_NONE,
}
SKIPPED = {"n_skipped": int}
CLASSES_CHANGED = {"checkpoint": str, "classes": [str]}

Run = Callable[..., Any]


@cache
def _section() -> str:
    """What the command reference says of records."""
    page = REFERENCE.read_text(encoding="utf-8")
    return page[page.index("\n## JSON records\n") : page.index("\n## Every command\n")]


def check(value: Any, shape: Any, place: str = "record") -> None:
    """Hold a value against types, lists of one shape, and mappings whose keys stand in order."""
    if isinstance(shape, tuple):
        (shape,) = (one for one in shape if isinstance(value, one if type(one) is type else list))
    if isinstance(shape, dict):
        assert list(value) == list(shape), place
        unknown = [key for key in shape if f"`{key}`" not in _section()]
        assert not unknown, f"{place}: {unknown} stand on no page"
        for key, below in shape.items():
            check(value[key], below, f"{place}.{key}")
    elif isinstance(shape, list):
        assert value, f"{place} is empty, which shows nothing"
        for one in value:
            check(one, shape[0], f"{place}[]")
    else:
        assert isinstance(value, shape), f"{place}: {value!r}"
        assert isinstance(value, bool) == (shape is bool), place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, glyphs: Dataset) -> Iterator[Path]:
    """A folder with a config, photos of a novel class, and a dataset with a duplicate."""
    made = tmp_path_factory.mktemp("contract")
    (made / "mini.yaml").write_text(json.dumps({"dataset": "glyphs", "train_base": MINI}))
    pixels = glyphs.train.pixels[glyphs.train.of_class(glyphs.label("omega"))[:3]]
    for place in ("mug", "images/train/omega", "images/test/omega"):
        save_images(pixels, made / place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.delenv("LOWSHOT_DATA", raising=False)
        yield made


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Run a command with `--json`; its record."""

    def run(*typed: object) -> Any:
        result = CliRunner().invoke(app, [*map(str, typed), "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture(scope="module")
def trained(run: Run) -> dict[str, Any]:
    return run("train-base", "--config", "mini.yaml")


@pytest.fixture(scope="module")
def imprinted(trained: dict[str, Any], run: Run) -> dict[str, Any]:
    return run("imprint", "--class", "omega", "--shots", 2)


@pytest.fixture(scope="module")
def finetuned(imprinted: dict[str, Any], run: Run) -> dict[str, Any]:
    return run("finetune")


@pytest.fixture(scope="module")
def swept(trained: dict[str, Any], run: Run) -> dict[str, Any]:
    return run("sweep", *SWEEP, "--save-models")


def test_train_base(trained: dict[str, Any]) -> None:
    shape = {
        "checkpoint": str,
        "base_accuracy": float,
        "holdout_accuracy": float,
        "epochs": int,
        "train_seconds": float,
        "images_per_second": float,
        "n_classes": int,
        **SKIPPED,
    }
    check(trained, shape)


# That these lists may be empty, and what is in them, is tested on a review of its own.
_REVIEW = {"confused": list, "outliers": list}


def test_a_review_of_an_imprinted_class() -> None:
    confused, outlier = Confusion("dress", 7, 100, 0), Outlier(1, "shirt")
    record = {"classes": [{"class": "hat", "support": ["a.jpg", "b.jpg", "c.jpg"]}]}
    (found,) = with_reviews(record, [Review("hat", 3, (confused,), (outlier,))])["classes"]
    assert found.pop("outliers") == [{"image": "b.jpg", "resembles": "shirt"}]
    shape = {"class": str, "lost": int, "n_holdout": int, "won": int}
    check(found.pop("confused"), [shape])
    assert [found] == record["classes"]
    weakened = with_reviews({"classes": []}, [], [Weakened("cap", 5, 2, 6)])["weakened"]
    assert weakened == [{"class": "cap", "before": 5, "after": 2, "n_support": 6}]
    (found,) = with_reviews(record, [Review("hat", 3, (), (), 1)])["classes"]
    assert found["supports_won"] == 1


def test_imprint(imprinted: dict[str, Any]) -> None:
    shape = {
        "checkpoint": str,
        "method": str,
        "bias": float,
        "expected_forgetting": float,
        "base_accuracy_before": float,
        "base_accuracy": float,
        "novel_accuracy": float,
        "classes": [{"class": str, "support": [int], "accuracy": float, **_REVIEW}],
        "weakened": list,
        **SKIPPED,
    }
    check(imprinted, shape)


def test_imprint_of_photos(trained: dict[str, Any], run: Run) -> None:
    shape = {
        "checkpoint": str,
        "method": str,
        "bias": float,
        "expected_forgetting": float,
        "classes": [{"class": str, "support": [str], **_REVIEW}],
        "weakened": list,
        **SKIPPED,
    }
    check(run("imprint", "--class", "mug", "--images", "mug", "--out", "photos.safetensors"), shape)
    check(run("imprint", "--images", "images/train", "--out", "folders.safetensors"), shape)


def test_imprint_of_a_trial(swept: dict[str, Any], run: Run) -> None:
    typed = ("--from-run", swept["run_dir"], "--trial", 0, "--out", "trial.safetensors")
    check(run("imprint", *typed), EVALUATION | SKIPPED)


def test_finetune(finetuned: dict[str, Any]) -> None:
    shape = {
        "checkpoint": str,
        "scope": str,
        "bias": float,
        "expected_forgetting": float,
        "before": EVALUATION,
        "after": EVALUATION,
        **SKIPPED,
    }
    check(finetuned, shape)


def test_evaluate(finetuned: dict[str, Any], run: Run) -> None:
    check(run("evaluate"), [EVALUATION])
    open_set = {
        "auroc": float,
        "false_alarm": float,
        "detected": float,
        "n_known": int,
        "n_unknown": int,
    }
    check(run("evaluate", "--open-set"), [EVALUATION | {"open_set": open_set}])
    check(run("evaluate", "--confidence", 0.9), [EVALUATION | {"sets": SETS}])


def test_evaluate_of_photos(finetuned: dict[str, Any], run: Run) -> None:
    typed = ("evaluate", "--images", "omega=mug")
    check(run(*typed), [EVALUATION | {"repeated": int}])
    shape = EVALUATION | {"sets": SETS, "repeated": int}
    check(run(*typed, "--confidence", 0.9), [shape])


def test_sweep(swept: dict[str, Any], run: Run) -> None:
    shape = {**SWEEP_RECORD, "left_out": list}
    check(swept, shape)
    assert json.loads(Path(swept["run_dir"], "results.json").read_text()) == swept
    columns = Path(swept["run_dir"], "results.csv").read_text().split("\n")[0].split(",")
    about = ["method", "shots", "classes", "trial"]
    assert columns == [*about, *METRICS, "bias", "confused_with", "confused_percent"]


def test_sweep_in_sessions(trained: dict[str, Any], run: Run, folder: Path) -> None:
    sweep = {"trials": 2, "novel": 2, "shots": [2], "methods": ["imprint"], "sessions": 2}
    (folder / "sessions.yaml").write_text(json.dumps({"dataset": "glyphs", "sweep": sweep}))
    cell = {"method": str, "shots": int, "session": int, "n_trials": int, "n_classes": int}
    cells = [cell | dict.fromkeys(METRICS, METRIC)]
    shape = {"cells": cells, "sessions": cells, **ABOUT_A_SWEEP}
    check(run("sweep", "--config", "sessions.yaml"), shape)


def test_sweep_over_base_models(trained: dict[str, Any], run: Run) -> None:
    typed = ("--config", "mini.yaml", "--class-order-seeds", 0, "--workdir", "several")
    found = run("sweep", *typed, *SWEEP)
    about = {"name": str, "backbone": str, "class_order_seed": int, "checkpoint": str}
    cell = {"backbone": str, "method": str, "shots": int, "n_bases": int}
    shape = {
        "base_models": [about | SWEEP_RECORD | {"left_out": list}],
        "cells": [cell | dict.fromkeys(METRICS, OVER_BASES)],
    }
    check(found, shape)
    assert json.loads(Path("several/base-models.json").read_text()) == found
    assert run("sweep", *typed, *SWEEP) == found


def test_predict(finetuned: dict[str, Any], run: Run) -> None:
    shape = {"image": str, "class": str, "probability": float, "top": [list], "unknown": bool}
    found = run("predict", "mug")
    check(found, [shape])
    check(run("predict", "mug", "--confidence", 0.9), [shape | {"set": [str]}])
    for name, probability in found[0]["top"]:
        check(name, str)
        check(probability, float)


def test_classes(finetuned: dict[str, Any], run: Run, folder: Path) -> None:
    shutil.copy(finetuned["checkpoint"], "changed.safetensors")
    of = ("--checkpoint", "changed.safetensors")
    shape = {"class": str, "kind": str, "shots": (int, NoneType), "method": str}
    check(run("classes", "list", *of), [shape])
    check(run("classes", "rename", "omega", "mug", *of), CLASSES_CHANGED)
    check(run("classes", "remove", "mug", *of), CLASSES_CHANGED)


def test_export(finetuned: dict[str, Any], run: Run) -> None:
    compared = {"images": str, "n": int, "largest_difference": float, "decisions_equal": bool}
    shape = {"folder": str, "files": [str], "opset": NoneType}
    check(run("export", "--format", "torch"), {**shape, "check": NoneType, **SKIPPED})
    found = run("export", "--format", "torch", "--check", "--images", "mug")
    check(found, {**shape, "check": compared, **SKIPPED})


def test_data(run: Run) -> None:
    images = ("--dataset", "folder", "--data-dir", "images")
    check(run("data", "classes", *images), [{"class": str, "train": int, "test": int}])
    use = {"cache": str, "entries": int, "bytes": int, "limit_bytes": int, "folder": str}
    check(run("data", "cache"), [use])
    pair = {"test": str, "class": str, "train": str, "train_class": str, "similarity": float}
    shape = {
        "at_least": float,
        "test_images": int,
        "found": int,
        "same_class": int,
        "pairs": [pair],
        **SKIPPED,
    }
    check(run("data", "duplicates", *images), shape)


def test_dry_run(imprinted: dict[str, Any], run: Run) -> None:
    stage = {"name": str, "n": int, "unit": str, "seconds": float}
    shape = {
        "counts": Mapping,
        "stages": [stage],
        "seconds": float,
        "memory_bytes": int,
        "paths": [str],
    }
    check(run("finetune", "--dry-run"), shape)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_has_a_paragraph_for_users(command: str) -> None:
    assert f"**`{command}`**" in _section()
