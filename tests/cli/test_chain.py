"""The commands one after the other, as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowshot_cli.checkpoint.format import load
from lowshot_cli.checkpoint.holdout import calibration_half
from tests.cli.answers import MINI, PLOTS, as_json, done, only_run, tree
from tests.conftest import RunCommand

# The chain


def test_the_chain_runs_with_no_path_typed(lowshot: RunCommand, tmp_path: Path) -> None:
    done(lowshot("train-base", *MINI))
    done(lowshot("imprint", "--class", "omega", "--shots", 2))
    done(lowshot("finetune"))
    found = as_json(lowshot("evaluate", "--json"))
    done(lowshot("sweep", "--trials", 2, "--novel", 2, "--shots", "1"))
    stages = ["base", "imprinted", "finetuned"]
    assert [Path(one["checkpoint"]).stem for one in found] == stages
    assert [one["n_novel"] for one in found] == [0, 1, 1]
    runs = tmp_path / "runs"
    assert {path.name for path in runs.glob("*.safetensors")} == {
        f"{s}.safetensors" for s in stages
    }
    assert {path.name for path in only_run(runs).iterdir()} == {
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
    done(lowshot("imprint", "--class", "omega", "--shots", 3))
    done(lowshot("finetune"))
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
    done(lowshot("imprint", "--class", "omega", "--workdir", elsewhere))
    monkeypatch.setenv("LOWSHOT_WORKDIR", str(elsewhere))
    result = done(lowshot("finetune"))
    assert f"wrote {elsewhere / 'finetuned.safetensors'}" in result.stderr
    assert not workdir.exists()


def test_a_checkpoint_that_is_named_wins_over_the_chains(
    lowshot: RunCommand, workdir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.safetensors"
    done(lowshot("imprint", "--class", "omega", "--class", "A", "--out", mine))
    assert not (workdir / "imprinted.safetensors").exists()
    done(lowshot("finetune", "--checkpoint", mine))
    assert load(workdir / "finetuned.safetensors").novel_classes == ("omega", "A")
    found = as_json(lowshot("evaluate", mine, "--json"))
    assert [(one["checkpoint"], one["n_novel"]) for one in found] == [(str(mine), 2)]


def test_a_model_made_from_a_later_one_of_the_chain_is_not_stale(
    lowshot: RunCommand, workdir: Path
) -> None:
    imprinted, finetuned = (workdir / f"{name}.safetensors" for name in ("imprinted", "finetuned"))
    done(lowshot("imprint", "--class", "omega", "--shots", 2))
    done(lowshot("finetune"))
    done(lowshot("finetune", "--checkpoint", finetuned))
    done(lowshot("imprint", "--class", "Z", "--shots", 2, "--add", "--checkpoint", finetuned))
    done(lowshot("imprint", "--class", "phi", "--shots", 2, "--add", "--checkpoint", imprinted))
    done(lowshot("finetune"))
    found = as_json(lowshot("evaluate", "--json"))
    assert [one["n_novel"] for one in found] == [0, 3, 3]
    told = done(lowshot("train-base", *MINI, "--overwrite")).stderr
    for path in (imprinted, finetuned):
        assert f"{path.relative_to(workdir.parent)} is stale now" in told
    assert lowshot("evaluate").exit_code == 3
    for command in (["imprint", "--class", "seven", "--add"], ["finetune"]):
        refused = lowshot(*command, "--checkpoint", finetuned)
        assert refused.exit_code == 2
        assert "with --out" in refused.stderr
        done(lowshot(*command, "--checkpoint", finetuned, "--out", f"{command[0]}.safetensors"))


def test_shots_of_all_methods_are_the_same_draw(lowshot: RunCommand, workdir: Path) -> None:
    drawn = []
    for method in ("imprint", "random", "augmented"):
        done(lowshot("imprint", "--class", "omega", "--method", method, "--shots", 4))
        imprinted = load(workdir / "imprinted.safetensors")
        drawn.append(imprinted.meta.supports[0].indices)
        assert imprinted.meta.supports[0].method == method
    assert len(drawn[0]) == len(set(drawn[0])) == 4
    assert drawn[0] == drawn[1] == drawn[2]


def test_imprint_tells_which_images_it_drew_and_what_changed(
    lowshot: RunCommand, workdir: Path
) -> None:
    result = done(lowshot("imprint", "--class", "omega", "--shots", 3))
    for index in load(workdir / "imprinted.safetensors").meta.supports[0].indices:
        assert f"#{index}" in result.stdout
    before, after = (
        as_json(lowshot("evaluate", workdir / f"{stage}.safetensors", "--json"))[0]
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
    found = as_json(lowshot("imprint", "--class", "omega", "--max-forgetting", 3, "--json"))
    model = load(workdir / "imprinted.safetensors")
    held = model.holdout
    scores = model.head.scores(held.calibrating(held.embeddings).float())
    wrong = scores.argmax(1) != calibration_half(held.labels)
    lost = calibration_half(held.right) & wrong
    assert found["expected_forgetting"] == pytest.approx(100 * lost.double().mean().item())
    assert 2 < found["expected_forgetting"] <= 3
    result = done(lowshot("imprint", "--class", "omega", "--max-forgetting", 3))
    expected = (
        f"expected cost, estimated on the hold-out: {found['expected_forgetting']:.1f} points"
    )
    assert expected in result.stdout


# Adding, replacing, overwriting


def test_imprint_starts_from_the_base_model_and_add_goes_on(
    lowshot: RunCommand, workdir: Path
) -> None:
    target = workdir / "imprinted.safetensors"
    done(lowshot("imprint", "--class", "omega"))
    first = load(target)
    done(lowshot("imprint", "--class", "A", "--add"))
    both = load(target)
    assert both.novel_classes == ("omega", "A")
    assert torch.equal(both.head.proxies[: len(first.meta.classes)], first.head.proxies)
    assert both.meta.supports[0] == first.meta.supports[0]
    done(lowshot("finetune"))
    assert load(workdir / "finetuned.safetensors").novel_classes == ("omega", "A")
    told = done(lowshot("imprint", "--class", "A")).stderr
    assert load(target).novel_classes == ("A",)
    assert "runs/imprinted.safetensors no longer knows omega; --add keeps" in told


def test_adding_one_by_one_is_adding_at_once(lowshot: RunCommand, workdir: Path) -> None:
    target = workdir / "imprinted.safetensors"
    done(lowshot("imprint", "--class", "omega", "--class", "A"))
    at_once = load(target)
    done(lowshot("imprint", "--class", "omega"))
    done(lowshot("imprint", "--class", "A", "--add"))
    one_by_one = load(target)
    assert torch.equal(one_by_one.head.proxies, at_once.head.proxies)
    assert one_by_one.meta.supports == at_once.meta.supports
    assert one_by_one.head.bias == at_once.head.bias


def test_all_novel_classes_share_one_bias_that_is_solved_anew(
    lowshot: RunCommand, workdir: Path
) -> None:
    flags = ["--max-forgetting", 2]
    done(lowshot("imprint", "--class", "omega", *flags))
    one = load(workdir / "imprinted.safetensors")
    done(lowshot("imprint", "--class", "A", "--class", "seven", "--add", *flags))
    three = load(workdir / "imprinted.safetensors")
    # More rows compete with the base classes, so that each may push less.
    assert three.head.bias <= one.head.bias
    found = {one["n_novel"]: one for one in as_json(lowshot("evaluate", "--json"))}
    assert set(found) == {0, 3}


def test_replace_makes_a_base_class_novel(lowshot: RunCommand, workdir: Path) -> None:
    base = load(workdir / "base.safetensors")
    name = base.base_classes[4]
    done(lowshot("imprint", "--class", name, "--replace", "--shots", 3))
    replaced = load(workdir / "imprinted.safetensors")
    assert replaced.novel_classes == (name,)
    assert replaced.base_classes == tuple(n for n in base.base_classes if n != name)
    done(lowshot("finetune"))
    found = as_json(lowshot("evaluate", workdir / "finetuned.safetensors", "--json"))[0]
    assert (found["n_base"], found["n_novel"]) == (11, 1)


def test_a_class_is_known_by_the_name_that_the_dataset_has_for_it(
    lowshot: RunCommand, workdir: Path
) -> None:
    done(lowshot("imprint", "--class", "omega"))
    done(lowshot("classes", "rename", "omega", "mug"))
    again = lowshot("imprint", "--class", "omega", "--add")
    assert again.exit_code == 2
    assert "the model already knows 'omega', as 'mug'" in again.stderr
    done(lowshot("imprint", "--class", "omega", "--add", "--replace"))
    names = [one["class"] for one in as_json(lowshot("classes", "list", "--json"))]
    assert "omega" in names
    assert "mug" not in names


def test_replace_draws_a_novel_class_anew(lowshot: RunCommand, workdir: Path) -> None:
    target = workdir / "imprinted.safetensors"
    done(lowshot("imprint", "--class", "omega", "--class", "A"))
    before = load(target)
    done(lowshot("imprint", "--class", "omega", "--add", "--replace", "--seed", 1))
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
    before = tree(workdir)
    # The data are absent as well: whoever had begun to work would complain about them.
    nowhere = ["--dataset", "cifar100", "--data-dir", tmp_path / "nowhere"]
    result = lowshot("train-base", *nowhere)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert tree(workdir) == before
    assert not (tmp_path / "nowhere").exists()


def test_overwrite_replaces_the_base_model(lowshot: RunCommand, workdir: Path) -> None:
    done(lowshot("train-base", *MINI, "--overwrite"))
    assert load(workdir / "base.safetensors").meta.n_base == 3
    assert list(tree(workdir)) == ["base.safetensors"]


@pytest.mark.parametrize(
    "command", [["imprint", "--class=omega"], ["finetune"], ["train-base", *MINI]]
)
def test_a_file_the_user_named_is_not_replaced_unasked(
    lowshot: RunCommand, workdir: Path, tmp_path: Path, command: list[str]
) -> None:
    done(lowshot("imprint", "--class", "omega"))
    mine = tmp_path / "mine.safetensors"
    mine.write_text("precious")
    result = lowshot(*command, "--out", mine)
    assert result.exit_code == 2
    assert str(mine) in result.stderr
    assert "--overwrite" in result.stderr
    assert mine.read_text() == "precious"
    done(lowshot(*command, "--out", mine, "--overwrite"))
    assert load(mine).meta.n_base in (3, 12)
