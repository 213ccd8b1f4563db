"""The five commands one after the other, as they are typed, and what they hand to programs."""

from __future__ import annotations

import csv
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result

from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.checkpoint.format import load
from lowshot_cli.checkpoint.holdout import calibration_half
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.evaluation.statistics import METRICS
from tests.conftest import RunCommand, save_images

# Enough to train a model of sorts within a second.
MINI = [
    "--dataset=glyphs",
    "--classes=3",
    "--width=4",
    "--embedding-size=8",
    "--epochs=1",
    "--batch-size=64",
]
SMALL_SWEEP = ["--trials=2", "--novel=3", "--shots=1,3", "--method=imprint,random"]


@pytest.fixture(autouse=True)
def _glyphs_need_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWSHOT_DATA", raising=False)


PLOTS = ("accuracy", "per_class", "tradeoff")


def _done(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr
    return result


def _json(result: Result) -> Any:
    """All of stdout as one strict JSON document."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(_done(result).stdout, parse_constant=refuse)


def _types(values: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in values.items()}


def _rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _tree(folder: Path) -> dict[str, bytes]:
    """All but the log, which tells the time."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "log.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def _only_run(workdir: Path) -> Path:
    (run_dir,) = workdir.glob("sweep-*")
    return run_dir


# The chain


def test_the_chain_runs_with_no_path_typed(lowshot: RunCommand, tmp_path: Path) -> None:
    _done(lowshot("train-base", *MINI))
    _done(lowshot("imprint", "--class", "omega", "--shots", 2))
    _done(lowshot("finetune"))
    found = _json(lowshot("evaluate", "--json"))
    _done(lowshot("sweep", "--trials", 2, "--novel", 2, "--shots", "1"))
    stages = ["base", "imprinted", "finetuned"]
    assert [Path(one["checkpoint"]).stem for one in found] == stages
    assert [one["n_novel"] for one in found] == [0, 1, 1]
    runs = tmp_path / "runs"
    assert {path.name for path in runs.glob("*.safetensors")} == {
        f"{s}.safetensors" for s in stages
    }
    assert {path.name for path in _only_run(runs).iterdir()} == {
        "config.yaml",
        "results.csv",
        "results.json",
        "run.json",
        *(f"{name}.{kind}" for name in PLOTS for kind in ("png", "svg")),
        "report.html",
        "log.jsonl",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_each_command_works_on_its_predecessors_file(lowshot: RunCommand, workdir: Path) -> None:
    _done(lowshot("imprint", "--class", "omega", "--shots", 3))
    _done(lowshot("finetune"))
    base, imprinted, finetuned = (
        load(workdir / f"{stage}.safetensors") for stage in ("base", "imprinted", "finetuned")
    )
    assert imprinted.meta.classes == finetuned.meta.classes == (*base.meta.classes, "omega")
    n_base = base.meta.n_base
    for later in (imprinted, finetuned):
        assert torch.equal(later.head.proxies[:n_base], base.head.proxies)
    assert torch.equal(imprinted.supports[0], finetuned.supports[0])
    assert not torch.equal(imprinted.head.proxies[n_base], finetuned.head.proxies[n_base])


def test_the_work_folder_may_lie_anywhere(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "a folder" / "[b]"
    elsewhere.parent.mkdir()
    workdir.rename(elsewhere)
    _done(lowshot("imprint", "--class", "omega", "--workdir", elsewhere))
    monkeypatch.setenv("LOWSHOT_WORKDIR", str(elsewhere))
    result = _done(lowshot("finetune"))
    assert f"wrote {elsewhere / 'finetuned.safetensors'}" in result.stderr
    assert not workdir.exists()


def test_a_checkpoint_that_is_named_wins_over_the_chains(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.safetensors"
    _done(lowshot("imprint", "--class", "omega", "--class", "A", "--out", mine))
    assert not (workdir / "imprinted.safetensors").exists()
    _done(lowshot("finetune", "--checkpoint", mine))
    assert load(workdir / "finetuned.safetensors").novel_classes == ("omega", "A")
    found = _json(lowshot("evaluate", mine, "--json"))
    assert [(one["checkpoint"], one["n_novel"]) for one in found] == [(str(mine), 2)]


def test_a_model_made_from_a_later_one_of_the_chain_is_not_stale(
    lowshot: RunCommand, workdir: Path
) -> None:
    imprinted, finetuned = (workdir / f"{name}.safetensors" for name in ("imprinted", "finetuned"))
    _done(lowshot("imprint", "--class", "omega", "--shots", 2))
    _done(lowshot("finetune"))
    _done(lowshot("finetune", "--checkpoint", finetuned))
    _done(lowshot("imprint", "--class", "Z", "--shots", 2, "--add", "--checkpoint", finetuned))
    _done(lowshot("imprint", "--class", "phi", "--shots", 2, "--add", "--checkpoint", imprinted))
    _done(lowshot("finetune"))
    found = _json(lowshot("evaluate", "--json"))
    assert [one["n_novel"] for one in found] == [0, 3, 3]
    told = _done(lowshot("train-base", *MINI, "--overwrite")).stderr
    for path in (imprinted, finetuned):
        assert f"{path.relative_to(workdir.parent)} is stale now" in told
    assert lowshot("evaluate").exit_code == 3
    for command in (["imprint", "--class", "seven", "--add"], ["finetune"]):
        refused = lowshot(*command, "--checkpoint", finetuned)
        assert refused.exit_code == 2
        assert "with --out" in refused.stderr
        _done(lowshot(*command, "--checkpoint", finetuned, "--out", f"{command[0]}.safetensors"))


def test_shots_of_all_methods_are_the_same_draw(lowshot: RunCommand, workdir: Path) -> None:
    drawn = []
    for method in ("imprint", "random", "augmented"):
        _done(lowshot("imprint", "--class", "omega", "--method", method, "--shots", 4))
        imprinted = load(workdir / "imprinted.safetensors")
        drawn.append(imprinted.meta.supports[0].indices)
        assert imprinted.meta.supports[0].method == method
    assert len(drawn[0]) == len(set(drawn[0])) == 4
    assert drawn[0] == drawn[1] == drawn[2]


def test_imprint_tells_which_images_it_drew_and_what_changed(
    lowshot: RunCommand, workdir: Path
) -> None:
    result = _done(lowshot("imprint", "--class", "omega", "--shots", 3))
    for index in load(workdir / "imprinted.safetensors").meta.supports[0].indices:
        assert f"#{index}" in result.stdout
    before, after = (
        _json(lowshot("evaluate", workdir / f"{stage}.safetensors", "--json"))[0]
        for stage in ("base", "imprinted")
    )
    table = result.stdout.splitlines()
    (base,) = (line for line in table if "base classes" in line)
    (novel,) = (line for line in table if "novel classes" in line)
    assert base.split()[2:4] == [f"{one['base_accuracy']:.1f}" for one in (before, after)]
    assert novel.split()[3] == f"{after['novel_accuracy']:.1f}"


def test_imprint_says_what_the_holdout_expects_it_to_cost(
    lowshot: RunCommand, workdir: Path
) -> None:
    found = _json(lowshot("imprint", "--class", "omega", "--max-forgetting", 3, "--json"))
    model = load(workdir / "imprinted.safetensors")
    held = model.holdout
    cosines = model.head.cosines(held.calibration_embeddings)
    wrong = cosines.argmax(1) != calibration_half(held.labels)
    lost = calibration_half(held.right) & wrong
    assert found["expected_forgetting"] == pytest.approx(100 * lost.double().mean().item())
    assert 2 < found["expected_forgetting"] <= 3
    result = _done(lowshot("imprint", "--class", "omega", "--max-forgetting", 3))
    expected = (
        f"expected cost, estimated on the hold-out: {found['expected_forgetting']:.1f} points"
    )
    assert expected in result.stdout


# What stale children are worth


def _change_base(lowshot: RunCommand) -> None:
    _done(lowshot("train-base", *MINI, "--seed", 5, "--overwrite"))


def test_finetune_refuses_an_imprinted_model_of_an_earlier_base(
    lowshot: RunCommand, workdir: Path
) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    _change_base(lowshot)
    before = _tree(workdir)
    for command in (["finetune"], ["imprint", "--class", "A", "--add"]):
        result = lowshot(*command)
        assert result.exit_code == 3
        assert "imprinted.safetensors is stale" in result.stderr
        assert "`lowshot imprint`" in result.stderr
        assert _tree(workdir) == before
    _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("finetune"))


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
    _done(lowshot("imprint", "--class", "omega"))
    renamed = ["classes", "rename", known, "other", "--force", "--checkpoint", base]
    told = _done(lowshot(*renamed)).stderr
    assert "runs/imprinted.safetensors is stale now; `lowshot imprint` makes it again" in told
    before = _tree(workdir)
    for command in READERS:
        result = lowshot(*command, "--quiet")
        assert result.exit_code == 3, command
        assert "runs/imprinted.safetensors is stale: runs/base.safetensors" in result.stderr
        assert "`lowshot imprint`" in result.stderr
        assert ("--checkpoint" in result.stderr) == (command != ["evaluate"])
        assert result.stdout == ""
        assert _tree(workdir) == before
    for command in (READERS[0], READERS[1]):
        for named in (base, Path("runs", "imprinted.safetensors")):
            assert "using" not in _done(lowshot(*command, "--checkpoint", named)).stderr


@pytest.mark.usefixtures("picture")
def test_where_there_is_a_choice_the_model_that_is_used_is_named(
    lowshot: RunCommand, workdir: Path
) -> None:
    said = "using runs/imprinted.safetensors\n"
    assert "using" not in _done(lowshot("predict", "a.png")).stderr
    _done(lowshot("imprint", "--class", "omega"))
    for command in (READERS[0], READERS[1], READERS[6], READERS[3]):
        assert said in _done(lowshot(*command, "--json")).stderr


@pytest.mark.usefixtures("picture")
def test_the_next_command_is_one_that_takes_the_model_just_made(
    lowshot: RunCommand, workdir: Path
) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("finetune"))
    told = _done(lowshot("imprint", "--class", "mug", "--images", "a.png")).stderr
    assert "runs/finetuned.safetensors is stale now; `lowshot finetune` makes it again" in told
    then = told.split("next: lowshot ")[1].splitlines()[0]
    assert then == "predict a.png --checkpoint runs/imprinted.safetensors"
    _done(lowshot(*shlex.split(then)))


def test_evaluate_refuses_to_leave_a_stale_model_out(lowshot: RunCommand, workdir: Path) -> None:
    """A program that reads the last of the list would take it for the latest model."""
    _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("finetune"))
    _done(lowshot("imprint", "--class", "A"))
    result = lowshot("evaluate", "--json")
    assert result.exit_code == 3
    assert "finetuned.safetensors is stale" in result.stderr
    assert "or name the files to evaluate" in result.stderr


def test_a_grandchild_of_a_changed_base_is_stale_too(lowshot: RunCommand, workdir: Path) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("finetune"))
    _change_base(lowshot)
    result = lowshot("evaluate", "--json")
    assert result.exit_code == 3
    assert "runs/finetuned.safetensors is stale" in result.stderr
    assert "`lowshot imprint` and `lowshot finetune` make it again" in result.stderr


def test_a_model_that_is_named_is_taken_as_named(lowshot: RunCommand, workdir: Path) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    _change_base(lowshot)
    path = Path("runs") / "imprinted.safetensors"
    (found,) = _json(lowshot("evaluate", path, "--json"))
    assert (found["checkpoint"], found["n_novel"]) == (str(path), 1)


def test_making_the_same_child_again_does_not_make_it_stale(
    lowshot: RunCommand, workdir: Path
) -> None:
    for _ in range(2):
        _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("finetune"))
    _done(lowshot("imprint", "--class", "omega"))
    assert len(_json(lowshot("evaluate", "--json"))) == 3


# Adding, replacing, overwriting


def test_imprint_starts_from_the_base_model_and_add_goes_on(
    lowshot: RunCommand, workdir: Path
) -> None:
    target = workdir / "imprinted.safetensors"
    _done(lowshot("imprint", "--class", "omega"))
    first = load(target)
    _done(lowshot("imprint", "--class", "A", "--add"))
    both = load(target)
    assert both.novel_classes == ("omega", "A")
    assert torch.equal(both.head.proxies[: len(first.meta.classes)], first.head.proxies)
    assert both.meta.supports[0] == first.meta.supports[0]
    _done(lowshot("finetune"))
    assert load(workdir / "finetuned.safetensors").novel_classes == ("omega", "A")
    told = _done(lowshot("imprint", "--class", "A")).stderr
    assert load(target).novel_classes == ("A",)
    assert "runs/imprinted.safetensors no longer knows omega; --add keeps" in told


def test_adding_one_by_one_is_adding_at_once(lowshot: RunCommand, workdir: Path) -> None:
    target = workdir / "imprinted.safetensors"
    _done(lowshot("imprint", "--class", "omega", "--class", "A"))
    at_once = load(target)
    _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("imprint", "--class", "A", "--add"))
    one_by_one = load(target)
    assert torch.equal(one_by_one.head.proxies, at_once.head.proxies)
    assert one_by_one.meta.supports == at_once.meta.supports
    assert one_by_one.head.bias == at_once.head.bias


def test_all_novel_classes_share_one_bias_that_is_solved_anew(
    lowshot: RunCommand, workdir: Path
) -> None:
    flags = ["--max-forgetting", 2]
    _done(lowshot("imprint", "--class", "omega", *flags))
    one = load(workdir / "imprinted.safetensors")
    _done(lowshot("imprint", "--class", "A", "--class", "seven", "--add", *flags))
    three = load(workdir / "imprinted.safetensors")
    # More rows compete with the base classes, so that each may push less.
    assert three.head.bias <= one.head.bias
    found = {one["n_novel"]: one for one in _json(lowshot("evaluate", "--json"))}
    assert set(found) == {0, 3}


def test_replace_makes_a_base_class_novel(lowshot: RunCommand, workdir: Path) -> None:
    base = load(workdir / "base.safetensors")
    name = base.base_classes[4]
    _done(lowshot("imprint", "--class", name, "--replace", "--shots", 3))
    replaced = load(workdir / "imprinted.safetensors")
    assert replaced.novel_classes == (name,)
    assert replaced.base_classes == tuple(n for n in base.base_classes if n != name)
    _done(lowshot("finetune"))
    found = _json(lowshot("evaluate", workdir / "finetuned.safetensors", "--json"))[0]
    assert (found["n_base"], found["n_novel"]) == (11, 1)


def test_a_class_is_known_by_the_name_that_the_dataset_has_for_it(
    lowshot: RunCommand, workdir: Path
) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    _done(lowshot("classes", "rename", "omega", "mug"))
    again = lowshot("imprint", "--class", "omega", "--add")
    assert again.exit_code == 2
    assert "the model already knows 'omega', as 'mug'" in again.stderr
    _done(lowshot("imprint", "--class", "omega", "--add", "--replace"))
    names = [one["class"] for one in _json(lowshot("classes", "list", "--json"))]
    assert "omega" in names
    assert "mug" not in names


def test_replace_draws_a_novel_class_anew(lowshot: RunCommand, workdir: Path) -> None:
    target = workdir / "imprinted.safetensors"
    _done(lowshot("imprint", "--class", "omega", "--class", "A"))
    before = load(target)
    _done(lowshot("imprint", "--class", "omega", "--add", "--replace", "--seed", 1))
    after = load(target)
    assert sorted(after.novel_classes) == ["A", "omega"]
    old, new = (
        dict(zip(one.novel_classes, one.meta.supports, strict=True)) for one in (before, after)
    )
    assert old["A"] == new["A"]
    assert old["omega"].indices != new["omega"].indices


def test_overwrite_is_asked_for_before_any_work(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    before = _tree(workdir)
    # The data are absent as well: whoever had begun to work would complain about them.
    nowhere = ["--dataset", "cifar100", "--data-dir", tmp_path / "nowhere"]
    result = lowshot("train-base", *nowhere)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert _tree(workdir) == before
    assert not (tmp_path / "nowhere").exists()


def test_overwrite_replaces_the_base_model(lowshot: RunCommand, workdir: Path) -> None:
    _done(lowshot("train-base", *MINI, "--overwrite"))
    assert load(workdir / "base.safetensors").meta.n_base == 3
    assert list(_tree(workdir)) == ["base.safetensors"]


@pytest.mark.parametrize(
    "command", [["imprint", "--class=omega"], ["finetune"], ["train-base", *MINI]]
)
def test_a_file_the_user_named_is_not_replaced_unasked(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: list[str]
) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    mine = tmp_path / "mine.safetensors"
    mine.write_text("precious")
    result = lowshot(*command, "--out", mine)
    assert result.exit_code == 2
    assert str(mine) in result.stderr
    assert "--overwrite" in result.stderr
    assert mine.read_text() == "precious"
    _done(lowshot(*command, "--out", mine, "--overwrite"))
    assert load(mine).meta.n_base in (3, 12)


# The --json contract


def test_train_base_hands_programs_its_keys(lowshot: RunCommand) -> None:
    found = _json(lowshot("train-base", *MINI, "--json"))
    assert _types(found) == {
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
    measured = _json(lowshot("evaluate", found["checkpoint"], "--json"))[0]
    assert found["base_accuracy"] == measured["base_accuracy"]


def test_evaluate_hands_programs_one_entry_per_checkpoint(
    lowshot: RunCommand, workdir: Path
) -> None:
    _done(lowshot("imprint", "--class", "omega"))
    base, imprinted = _json(lowshot("evaluate", "--json"))
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
    assert _types(imprinted) == expected
    missing = {"novel_accuracy": type(None), "harmonic_mean": type(None)}
    assert _types(base) == expected | missing
    for one in (base, imprinted):
        assert Path(one["checkpoint"]).is_file()
        for row in one["per_class"]:
            assert _types(row) == {"class": str, "accuracy": float, "n": int}
    assert base["forgetting"] == 0
    assert [row["class"] for row in imprinted["per_class"]][-1] == "omega"


def test_the_numbers_of_evaluate_agree_with_each_other(lowshot: RunCommand, workdir: Path) -> None:
    _done(lowshot("imprint", "--class", "omega", "--class", "A"))
    base, found = _json(lowshot("evaluate", "--json"))
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
    found = _json(lowshot("sweep", *SMALL_SWEEP, "--json"))
    contract = {"cells": list, "base_accuracy_before": float, "timing": dict, "run_dir": str}
    assert _types({name: found[name] for name in contract}) == contract
    assert _types(found["timing"]) == {
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
            assert _types(cell[metric]) == {
                "mean": float,
                "std_between": float,
                "std_within": float,
                "ci95": list,
            }
            low, high = cell[metric]["ci95"]
            assert low <= cell[metric]["mean"] <= high
    before = _json(lowshot("evaluate", workdir / "base.safetensors", "--json"))[0]
    assert found["base_accuracy_before"] == before["base_accuracy"]
    run_dir = Path(found["run_dir"])
    assert json.loads((run_dir / "results.json").read_text(encoding="utf-8")) == found


def test_the_means_of_a_sweep_are_those_of_its_rows(lowshot: RunCommand, workdir: Path) -> None:
    found = _json(lowshot("sweep", *SMALL_SWEEP, "--json"))
    rows = _rows(Path(found["run_dir"]))
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
    (cell,) = _json(lowshot("sweep", *flags, "--json"))["cells"]
    assert (cell["n_trials"], cell["n_classes"]) == (1, 1)
    for metric in METRICS:
        assert cell[metric]["ci95"] is None
        assert math.isfinite(cell[metric]["mean"])


# A trial of a sweep becomes a model


def test_a_model_rebuilt_from_a_sweep_scores_as_its_row(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "short.yaml"
    config.write_text("finetune: {steps: 3}\nsweep: {methods: [imprint, random, finetune-head]}\n")
    flags = ["--config", config, "--trials=2", "--novel=3", "--shots=3", "--save-models"]
    _done(lowshot("sweep", *flags))
    run_dir = _only_run(workdir)
    rows = _rows(run_dir)
    for trial in (0, 9, len(rows) - 1):
        row = rows[trial]
        _done(lowshot("imprint", "--from-run", run_dir, "--trial", trial))
        found = _json(lowshot("evaluate", workdir / "imprinted.safetensors", "--json"))[0]
        for metric in ("novel_accuracy", "base_accuracy", "global_accuracy"):
            assert found[metric] == pytest.approx(float(row[metric]), abs=1e-3)
        assert found["harmonic_mean"] == pytest.approx(float(row["harmonic_mean"]), abs=1e-3)
        assert found["forgetting"] == pytest.approx(float(row["forgetting"]), abs=1e-3)
        model = load(workdir / "imprinted.safetensors")
        assert model.novel_classes == (row["classes"],)
        assert model.head.bias == pytest.approx(float(row["bias"]), abs=1e-5)
        assert model.meta.supports[0].method == row["method"]
        assert len(model.meta.supports[0].indices) == 3
    _done(lowshot("finetune"))


def test_trial_0_of_a_sweep_is_what_imprint_makes(lowshot: RunCommand, workdir: Path) -> None:
    sweep = ["--trials=2", "--novel=omega", "--shots=3", "--method=imprint", "--save-models"]
    _done(lowshot("sweep", *sweep))
    _done(lowshot("imprint", "--class", "omega", "--shots", 3, "--method", "imprint"))
    imprinted = load(workdir / "imprinted.safetensors")
    _done(lowshot("imprint", "--from-run", _only_run(workdir), "--trial", 0))
    rebuilt = load(workdir / "imprinted.safetensors")
    assert rebuilt.meta.supports == imprinted.meta.supports
    assert torch.allclose(rebuilt.head.proxies, imprinted.head.proxies, atol=1e-5)
    assert rebuilt.head.bias == imprinted.head.bias == 0


def test_a_rebuilt_trial_remembers_the_sweeps_options(lowshot: RunCommand, workdir: Path) -> None:
    budget = ("--max-forgetting", 10, "--seed", 3)
    sweep = ("--trials", 1, "--novel", 2, "--ways", 2, "--shots", 3, "--method", "teen")
    _done(lowshot("sweep", *sweep, *budget, "--save-models"))
    _done(lowshot("imprint", "--from-run", _only_run(workdir), "--trial", 0))
    rebuilt = load(workdir / "imprinted.safetensors")
    step = rebuilt.meta.history[-1]
    options = {key: step["options"][key] for key in ("shots", "method", "max_forgetting")}
    assert (step["seed"], options) == (
        3,
        {"shots": 3, "method": "teen", "max_forgetting": 10},
    )
    _done(lowshot("classes", "remove", rebuilt.novel_classes[1]))
    left = load(workdir / "imprinted.safetensors")
    assert left.head.bias == set_bias(left, 10).head.bias != set_bias(left, 2).head.bias


def test_a_trial_is_not_rebuilt_on_another_base_model(lowshot: RunCommand, tmp_path: Path) -> None:
    _done(lowshot("train-base", *MINI))
    _done(lowshot("sweep", *SMALL_SWEEP, "--save-models"))
    # Of the same classes and the same size, so that every row would fit.
    _done(lowshot("train-base", *MINI, "--seed", 1, "--overwrite"))
    result = lowshot("imprint", "--from-run", _only_run(tmp_path / "runs"), "--trial", 0)
    assert result.exit_code == 3, "rows of one base model were put into another"
    assert "base" in result.stderr
    assert not (tmp_path / "runs" / "imprinted.safetensors").exists()


# Configs


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
    printed = _done(lowshot(*command, "--config", tiny_yaml, "--print-config")).stdout
    path = tmp_path / "printed.yaml"
    path.write_text(printed, encoding="utf-8")
    again = _done(lowshot(command[0], "--config", path, "--print-config"))
    assert again.stdout == printed
    assert again.stderr == ""
    defaults = _done(lowshot(command[0], "--config", tiny_yaml, "--print-config")).stdout
    assert defaults != printed
    assert [entry.name for entry in tmp_path.iterdir()] == ["printed.yaml"]


def test_flags_win_over_the_yaml_and_the_yaml_over_defaults(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nsweep: {trials: 7, shots: [2, 4], max_forgetting: none}\n")
    found = yaml.safe_load(
        _done(lowshot("sweep", "--config", path, "--trials", 9, "--print-config")).stdout
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
    printed = _done(lowshot("train-base", *MINI, "--seed", 3, "--print-config")).stdout
    (tmp_path / "printed.yaml").write_text(printed)
    _done(lowshot("train-base", *MINI, "--seed", 3, "--workdir", "flags"))
    _done(lowshot("train-base", "--config", "printed.yaml", "--workdir", "yaml"))
    assert _tree(tmp_path / "flags") == _tree(tmp_path / "yaml")


def test_the_config_beside_the_results_repeats_the_sweep(
    lowshot: RunCommand, workdir: Path
) -> None:
    first = _json(lowshot("sweep", *SMALL_SWEEP, "--seed", 2, "--json"))["run_dir"]
    config = Path(first) / "config.yaml"
    second = _json(lowshot("sweep", "--config", config, "--json"))["run_dir"]
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
    _done(lowshot("sweep", *flags))
    base = tmp_path / "runs" / "base.safetensors"
    content = base.read_bytes()
    _done(lowshot("sweep", *flags))
    assert base.read_bytes() == content
    _done(lowshot("train-base", *MINI, "--out", "flags.safetensors"))
    from_sweep, from_flags = load(base), load(Path("flags.safetensors"))
    assert torch.equal(from_sweep.head.proxies, from_flags.head.proxies)
    assert from_sweep.meta.config["train_base"] == from_flags.meta.config["train_base"]


# The same again


def _whole_chain(lowshot: RunCommand, workdir: Path, seed: int) -> dict[str, bytes]:
    common = ["--workdir", workdir, "--seed", seed]
    _done(lowshot("train-base", *MINI, *common))
    _done(lowshot("imprint", "--class", "omega", "--shots", 3, *common))
    _done(lowshot("finetune", *common))
    _done(lowshot("sweep", *SMALL_SWEEP, "--save-models", *common))
    names = ("results.csv", "models.npy")
    return {
        **{path.name: path.read_bytes() for path in workdir.glob("*.safetensors")},
        **{name: (_only_run(workdir) / name).read_bytes() for name in names},
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    lowshot: RunCommand, tmp_path: Path
) -> None:
    first, again, other = (
        _whole_chain(lowshot, tmp_path / name, seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert set(first) == {
        "base.safetensors",
        "imprinted.safetensors",
        "finetuned.safetensors",
        "results.csv",
        "models.npy",
    }
    for name, content in first.items():
        assert again[name] == content, f"{name} differs between two runs of one seed"
        assert other[name] != content, f"{name} does not depend on the seed"


def test_a_cold_and_a_warm_cache_give_the_same_rows(
    lowshot: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _done(lowshot("train-base", *MINI))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [_json(lowshot("sweep", *SMALL_SWEEP, "--json"))["run_dir"] for _ in range(2)]
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    cold, warm = ((Path(run) / "results.csv").read_bytes() for run in runs)
    assert cold == warm


def test_results_on_disk_name_no_folder_and_no_time(lowshot: RunCommand, workdir: Path) -> None:
    found = _json(lowshot("sweep", *SMALL_SWEEP, "--json"))
    header = (Path(found["run_dir"]) / "results.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= {"method", "shots", "classes", "trial", "bias"} | set(METRICS)
    assert not [name for name in header if "time" in name or "second" in name or "path" in name]


# What goes where


def test_results_go_to_stdout_and_the_rest_to_stderr(lowshot: RunCommand, workdir: Path) -> None:
    for command, heading in (
        (["imprint", "--class", "omega"], "base classes"),
        (["finetune"], "novel classes"),
        (["evaluate"], "accuracy on test images"),
        (["sweep", *SMALL_SWEEP], "NCR@2"),
    ):
        result = _done(lowshot(*command))
        assert heading in result.stdout
        assert heading not in result.stderr
        for message in ("wrote ", "next: ", "embedding ", "trials 24/24"):
            assert message not in result.stdout
        if command[0] != "evaluate":
            assert "wrote " in result.stderr
    assert "trials 24/24" in result.stderr


def test_training_reports_its_progress_on_stderr(lowshot: RunCommand) -> None:
    result = _done(lowshot("train-base", *MINI))
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
    result = _done(lowshot(*command, "--quiet"))
    assert result.stderr == ""
    assert result.stdout.strip()
    result = lowshot(*command, "--quiet", "--json")
    _json(result)
    assert result.stderr == ""


def test_what_is_proposed_next_works_as_it_stands(lowshot: RunCommand, tmp_path: Path) -> None:
    proposals, command = [], ["train-base", *MINI]
    while command:
        lines = _done(lowshot(*command)).stderr.splitlines()
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
    small = ["--width", "4", "--epochs", "1", "--image-size", "32", "--classes", "A,E"]
    last = _done(lowshot("train-base", *data, *small, *workdir)).stderr.splitlines()[-1]
    command = shlex.split(last)[2:]
    assert command == [
        *["imprint", "--class", "Z", "--shots", "4"],
        *[*workdir, "--data-dir", ".", "--skip-bad"],
    ]
    _done(lowshot(*command))


def test_what_is_proposed_next_finds_other_folders_and_files(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    elsewhere = workdir.rename(tmp_path / "other runs")
    made, tuned = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    command = ["imprint", "--class", "omega", "--out", str(made), "--workdir", str(elsewhere)]
    proposals = []
    while command:
        extra = ["--out", str(tuned)] if command[0] == "finetune" else []
        last = _done(lowshot(*command, *extra)).stderr.splitlines()[-1:]
        following = [line for line in last if line.startswith("next: lowshot ")]
        command = shlex.split(following[0])[2:] if following else []
        proposals.append(command)
    folder = ["--workdir", str(elsewhere)]
    assert proposals == [
        ["finetune", "--checkpoint", str(made), *folder],
        ["evaluate", str(tuned), *folder],
        [],
    ]
