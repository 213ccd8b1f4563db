"""Budgets hold, whatever was done to a model before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowshot_cli.adaptation.bias import (
    can_calibrate,
    expected_accuracy,
    expected_forgetting,
    set_bias,
    without_class,
)
from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.config.schema import Config
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.export.model_card import model_card
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.storage.tensors import read_tensors
from tests.tiny_world import N_BASE, make_base, make_dataset, tiny_world


def _model(kind: str = "plain") -> Model:
    _, base, network = tiny_world(kind)
    return Model(base, network)


def _shots(name: str, count: int = 3) -> torch.Tensor:
    dataset, _, _ = tiny_world("plain")
    return dataset.train.pixels[dataset.train.of_class(dataset.label(name))[:count]]


def _verdicts(model: Checkpoint) -> torch.Tensor:
    """Whether the base classes alone get each hold-out image right."""
    held = model.holdout
    return model.head.base.predict(held.embeddings.float()) == held.labels


@pytest.mark.parametrize("removed", [("c",), ("b", "d"), ("e", "c", "a")])
@pytest.mark.parametrize("budget", [0, 5, 20])
def test_a_budget_holds_after_base_classes_were_removed(
    removed: tuple[str, ...], budget: float
) -> None:
    model = _model()
    gone = torch.tensor([model.classes.index(name) for name in removed])
    whole = model.checkpoint.holdout
    for name in removed:
        model = model.remove(name)
    right = model.checkpoint.holdout.right
    assert torch.equal(right, _verdicts(model.checkpoint))
    mended = right & ~whole.right[~torch.isin(whole.labels, gone)]
    assert mended.any(), "no image was taken for a class that is gone"
    taught = model.imprint(_shots("h"), "h", max_forgetting=budget).checkpoint
    cost = expected_forgetting(taught)
    assert cost is not None
    assert 0 <= cost <= budget
    smaller = without_class(taught, taught.base_classes[0])
    cost = expected_forgetting(smaller)
    assert cost is not None
    assert 0 <= cost <= budget


def test_rounding_of_the_stored_embeddings_is_no_cost() -> None:
    model = _model()
    held = model.checkpoint.holdout
    # As an earlier version wrote it, which judged images before it rounded their embeddings.
    other = replace(model.checkpoint, holdout=replace(held, right=~held.right))
    taught = Model(other, model.network).imprint(_shots("h"), "h", max_forgetting=0).checkpoint
    assert taught.head.bias != 0
    assert expected_forgetting(taught) == 0


def test_a_model_whose_base_rows_changed_is_judged_by_what_was_right_before() -> None:
    taught = _model().imprint(_shots("f"), "f")
    tuned = taught.finetune(freeze_base="never", prior_shots=0, steps=60, head_lr=0.1).checkpoint
    held = tuned.holdout
    before = held.calibrating(held.right)
    assert not torch.equal(held.right, _verdicts(tuned))
    expected = expected_accuracy(tuned)
    assert expected is not None
    assert expected[0] == pytest.approx(100 * before.double().mean().item())
    now = tuned.head.predict(held.calibrating(held.embeddings).float()) == held.calibrating(
        held.labels
    )
    assert expected[1] == pytest.approx(100 * now.double().mean().item())
    assert expected_forgetting(tuned) == expected[0] - expected[1] != 0


def test_what_removing_a_class_mends_was_right_before_also_where_base_rows_changed() -> None:
    tuned = _model().imprint(_shots("h"), "h").finetune(freeze_base="never", prior_shots=0)
    before, after = tuned.checkpoint, tuned.remove("c").checkpoint
    kept = before.holdout.labels != before.position("c")
    mended = _verdicts(after) & ~_verdicts(before)[kept]
    assert mended.any()
    assert torch.equal(after.holdout.right, before.holdout.right[kept] | mended)


def test_each_hold_out_image_keeps_its_half(tmp_path: Path) -> None:
    model = _model().checkpoint  # nine hold-out images a class, so the halves of the rest shift
    held = model.holdout
    shaping = {tuple(row) for row in held.fitting(held.embeddings).tolist()}
    for name in ("a", "d"):
        model = model.without_class(name)
    held = model.holdout
    assert {tuple(row) for row in held.fitting(held.embeddings).tolist()} < shaping
    assert not shaping & {tuple(row) for row in held.calibrating(held.embeddings).tolist()}
    assert len(held.fitting(held.labels)) + len(held.calibrating(held.labels)) == len(held) == 27
    save(model, tmp_path / "model")
    back = load(tmp_path / "model").holdout
    assert torch.equal(back.calibrating(back.embeddings), held.calibrating(held.embeddings))


def test_the_halves_are_written_only_where_they_are_not_every_second_image(tmp_path: Path) -> None:
    base = make_base(make_dataset(4, spread=80), 4)
    for number, model in enumerate((base, base.without_class(base.base_classes[3]))):
        save(model, tmp_path / str(number))
        assert "holdout.calibrates" not in read_tensors(tmp_path / str(number))[0]
    save(_model().checkpoint.without_class("a"), tmp_path / "odd")
    assert "holdout.calibrates" in read_tensors(tmp_path / "odd")[0]


def test_forgetting_is_against_the_base_model_without_the_removed_classes() -> None:
    dataset, _, network = tiny_world("plain")
    embedder = Embedder(network)
    smaller = _model().remove("a").remove("c")
    assert smaller.checkpoint.base_accuracy is None
    taught = smaller.imprint(_shots("f"), "f", max_forgetting=25)
    alone = evaluate(smaller.checkpoint, dataset, embedder)
    found = evaluate(taught.checkpoint, dataset, embedder)
    assert alone.forgetting == 0
    assert alone.base_accuracy is not None
    assert found.base_accuracy is not None
    assert found.forgetting == alone.base_accuracy - found.base_accuracy > 0
    renamed = taught.rename("b", "B").checkpoint
    assert evaluate(renamed, dataset, embedder).forgetting == found.forgetting
    assert "not known, as base classes have been removed" in model_card(renamed, "torch")
    tuned = taught.finetune(freeze_base="never").checkpoint
    assert evaluate(tuned, dataset, embedder).forgetting is None
    frozen = taught.finetune().checkpoint
    assert evaluate(frozen, dataset, embedder).forgetting is not None


def test_forgetting_stays_known_where_base_rows_changed_but_no_class_was_removed() -> None:
    dataset, base, network = tiny_world("plain")
    tuned = _model().imprint(_shots("h"), "h").finetune(freeze_base="never").checkpoint
    found = evaluate(tuned, dataset, Embedder(network))
    assert base.base_accuracy is not None
    assert found.base_accuracy is not None
    assert found.forgetting == base.base_accuracy - found.base_accuracy


@pytest.mark.parametrize("method", ["imprint", "whitened"])
def test_replacing_the_only_novel_class_is_removing_it_and_adding_it_again(method: str) -> None:
    taught = _model().imprint(_shots("h"), "h", max_forgetting=20)
    replaced = taught.imprint(_shots("g"), "h", method=method, replace=True).checkpoint
    again = taught.remove("h").imprint(_shots("g"), "h", method=method).checkpoint
    assert replaced.head.bias == again.head.bias
    assert replaced.meta.max_forgetting == again.meta.max_forgetting


def test_a_budget_that_no_bias_exceeds_stays_in_force_with_the_largest_bias() -> None:
    taught, smaller = (
        _model().imprint(_shots("h"), "h", max_forgetting=budget).checkpoint for budget in (100, 50)
    )
    assert taught.meta.max_forgetting == 100
    assert taught.head.bias >= smaller.head.bias > 0
    assert taught.head.bias == pytest.approx(taught.novel_margins().max().item(), abs=1e-4)
    assert without_class(taught, "h").meta.max_forgetting is None


def test_a_model_left_without_hold_out_images_learns_by_the_plain_mean() -> None:
    dataset, base, network = tiny_world("sparse")  # one image a class, in one half or the other
    model = Model(base, network)
    for name in ("b", "d"):
        assert can_calibrate(model.checkpoint)
        model = model.remove(name)
    assert len(model.checkpoint.holdout) == 3
    assert not can_calibrate(model.checkpoint)
    config = Config.model_validate({"imprint": {"classes": ["h"], "shots": 2}})
    taught, _ = imprint_classes(model.checkpoint, dataset, network, config)
    assert (taught.meta.supports[0].method, taught.head.bias) == ("imprint", 0)
    assert taught.meta.history[-1]["options"]["max_forgetting"] == "none"
    assert expected_forgetting(taught) is None
    with pytest.raises(UsageError, match="without hold-out images"):
        Model(taught, network).finetune()


def test_a_bias_is_set_as_long_as_there_are_images_to_set_it_on() -> None:
    _, base, network = tiny_world("sparse")
    model = Model(base, network).imprint(_shots("h"), "h", max_forgetting=0)
    for name in ("a", "c", "e"):  # those whose image may shape proxies
        model = model.remove(name)
    assert not can_calibrate(model.checkpoint)
    assert model.checkpoint.meta.max_forgetting == 0
    taught = model.imprint(_shots("g"), "g", max_forgetting=0).checkpoint
    assert taught.meta.supports[-1].method == "imprint"
    assert taught.meta.max_forgetting == 0
    assert expected_forgetting(taught) == 0
    assert without_class(taught, "g").head.bias == model.checkpoint.head.bias


def test_a_base_class_without_hold_out_images_keeps_its_row() -> None:
    _, base, network = tiny_world("sparse")
    taught = Model(base, network).imprint(_shots("h"), "h")
    tuned = taught.finetune(freeze_base="never", prior_shots=0).checkpoint
    seen = set(base.holdout.fitting(base.holdout.labels).tolist())
    for place in range(N_BASE):
        same = torch.allclose(tuned.head.proxies[place], base.head.proxies[place], atol=1e-6)
        assert same == (place not in seen)


def test_ties_count_as_lost_and_are_avoided() -> None:
    _, base, network = tiny_world("twins")
    taught = Model(base, network).imprint(_shots("h"), "h").checkpoint
    rows = base.head.proxies.clone()
    rows[1] = rows[0]  # of the twins, which rounding may part
    same = replace(taught, head=replace(taught.head, proxies=torch.cat([rows, rows[:1]])))
    tied = set_bias(same, 0)
    assert tied.head.bias < 0
    held = tied.holdout
    labels = held.calibrating(held.labels)
    queries = held.calibrating(held.embeddings).float()
    alone = tied.head.base.predict(queries) == labels
    assert torch.equal(tied.head.predict(queries) == labels, alone)
