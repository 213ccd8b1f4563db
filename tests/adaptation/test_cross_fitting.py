"""A frozen network's head: no image sets the bias by a row that it shaped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.adaptation.bias import expected_forgetting, set_bias
from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.methods import BOUND, Supports, make_proxies
from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.holdout import N_FOLDS
from lowshot_cli.config.methods import IMPRINT_METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.supports import draw_directions
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.evaluation.open_set import familiarity, unknown_threshold
from lowshot_cli.methods.background import Background
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.models.embedder import embed
from lowshot_cli.storage.tensors import read_tensors, write_tensors
from tests.tiny_world import cost, tiny_world

FOLD = 2
CONFIG = Config.model_validate({"finetune": {"steps": 20, "prior_shots": 0, "head_lr": 0.05}})


def _model(kind: str = "linear") -> Model:
    _, base, network = tiny_world(kind)
    return Model(base, network)


def _shots(name: str, count: int = 3) -> Tensor:
    dataset, _, _ = tiny_world("linear")
    return dataset.train.pixels[dataset.train.of_class(dataset.label(name))[:count]]


def _taught(**options: object) -> Checkpoint:
    two = _model().imprint(_shots("h"), "h", **options)  # type: ignore[arg-type]
    return two.imprint(_shots("g"), "g", **options).checkpoint  # type: ignore[arg-type]


def _with_other_images(model: Checkpoint, unchanged: str | None = None) -> Checkpoint:
    """The model if the images of one fold had been others, with the same shrinkage and units.

    Args:
        model: a cross-fitted one.
        unchanged: a class whose images stay the same.
    """
    held = model.holdout
    known = held.statistics
    assert known is not None
    assert held.folds is not None
    generator = torch.Generator().manual_seed(0)
    others = F.normalize(torch.randn(held.embeddings.shape, generator=generator), dim=1)
    other = held.folds == FOLD
    if unchanged:
        other &= held.labels != model.position(unchanged)
    embeddings = torch.where(other[:, None], others.half(), held.embeddings)
    found = Statistics.of(embeddings.float(), held.labels, known.shrinkage, known.novel_shrinkage)
    units = {name: getattr(known, name) for name in ("unit", "novel_unit", "round_unit")}
    found = replace(found, **units)
    base = found.base_proxies
    head = replace(model.head, proxies=torch.cat([base, model.head.novel_proxies]))
    insides = [held.folds == number for number in range(N_FOLDS)]
    apart = [found.without(embeddings[inside].float(), held.labels[inside]) for inside in insides]
    return replace(
        model,
        head=head,
        holdout=replace(
            held,
            embeddings=embeddings,
            statistics=found,
            fold_bases=torch.stack([each.base_proxies for each in apart]),
        ),
    )


def _novel(method: str, background: Background) -> Tensor:
    """Proxies `(1, W, R)` of two classes on a background."""
    _, _, network = tiny_world("linear")
    support = torch.stack([embed(network, _shots(name)) for name in "gh"])[None]  # (1, 2, 3, D)
    directions = [draw_directions(0, label, [0], support.shape[-1])[0] for label in (6, 7)]
    supports = Supports(support, lambda: support + 0.01, lambda size: torch.stack(directions)[None])
    return make_proxies(method, supports, background, CONFIG)


@pytest.mark.parametrize("removed", [None, "b"])
@pytest.mark.parametrize("method", BOUND)
def test_no_image_shapes_a_proxy_that_it_is_compared_with(method: str, removed: str | None) -> None:
    model = _model().checkpoint
    pair = [model, _with_other_images(model, unchanged=removed)]
    if removed:
        pair = [each.without_class(removed) for each in pair]
    (own, *folds), (other, *other_folds) = (each.backgrounds for each in pair)
    assert len(folds) == N_FOLDS
    before, after = folds[FOLD], other_folds[FOLD]
    assert torch.allclose(before.proxies, after.proxies, atol=1e-4)
    assert torch.equal(before.samples.embeddings, after.samples.embeddings)
    assert torch.allclose(_novel(method, before), _novel(method, after), atol=1e-4)
    # All other proxies are shaped by these images.
    for one, two in ((own, other), (folds[0], other_folds[0])):
        assert not torch.allclose(one.proxies, two.proxies, atol=1e-2)
        assert not torch.allclose(_novel(method, one), _novel(method, two), atol=1e-3)


def test_base_proxies_of_folds_that_a_file_lacks_are_found_anew(tmp_path: Path) -> None:
    model = _model().checkpoint
    older = replace(model, holdout=replace(model.holdout, fold_bases=None))
    save(older, tmp_path / "older.safetensors")
    again = load(tmp_path / "older.safetensors")
    assert again.holdout.fold_bases is None
    pairs = zip(model.backgrounds[1:], again.backgrounds[1:], strict=True)
    assert all(torch.allclose(one.proxies, two.proxies, atol=1e-5) for one, two in pairs)


def test_fine_tuned_proxies_of_a_fold_know_nothing_of_its_images() -> None:
    taught = _taught()
    options = {"steps": 20, "prior_shots": 0, "head_lr": 0.05}
    network = _model().network
    one, two = (
        Model(each, network).finetune(**options).checkpoint  # type: ignore[arg-type]
        for each in (taught, _with_other_images(taught))
    )
    assert one.fold_proxies is not None
    assert two.fold_proxies is not None
    assert taught.fold_proxies is not None
    assert not torch.allclose(one.fold_proxies[FOLD], taught.fold_proxies[FOLD], atol=1e-2)
    assert torch.allclose(one.fold_proxies[FOLD], two.fold_proxies[FOLD], atol=1e-3)
    assert not torch.allclose(one.fold_proxies[0], two.fold_proxies[0], atol=1e-2)


@pytest.mark.parametrize("method", IMPRINT_METHODS)
@pytest.mark.parametrize("budget", [0, 5])
def test_the_bias_is_the_largest_that_keeps_the_budget_on_all_folds(
    method: str, budget: float
) -> None:
    model = _taught(method=method, max_forgetting=budget)
    bias = model.head.bias
    assert bias != 0
    assert cost(model, bias) == pytest.approx(expected_forgetting(model))
    assert cost(model, bias) <= budget
    assert cost(model, bias + 1e-4) > budget
    # By their own scores, base images are further from novel classes than unseen ones.
    own = replace(model, fold_proxies=None, holdout=replace(model.holdout, folds=None))
    assert set_bias(own, budget).head.bias != bias


def test_the_accuracy_of_the_base_model_is_that_on_images_that_did_not_shape_it() -> None:
    model = _model().checkpoint
    held = model.holdout
    found = []
    for head, embeddings, labels in zip(
        model.calibration_heads, held.parts(held.embeddings), held.parts(held.labels), strict=True
    ):
        found.append(head.predict(embeddings.float()) == labels)
    accuracy = 100 * torch.cat(found).double().mean().item()
    assert held.accuracy == pytest.approx(accuracy)
    own = model.head.predict(held.embeddings.float()) == held.labels
    assert 100 * own.double().mean().item() > accuracy


@pytest.mark.parametrize("kind", ["linear", "uneven"])
def test_a_linear_model_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = _model(kind).imprint(_shots("h"), "h").finetune(steps=3).remove("c").checkpoint
    save(model, tmp_path / "one")
    back = load(tmp_path / "one")
    assert back.meta == model.meta
    assert (back.meta.format, back.meta.head, back.head.is_linear) == (3, "linear", True)
    assert torch.equal(back.head.proxies, model.head.proxies)
    assert back.head.bias == model.head.bias != 0
    known, found = model.holdout.statistics, back.holdout.statistics
    assert known is not None
    assert found is not None
    for name, value in vars(known).items():
        if name != "precision":
            other = getattr(found, name)
            assert torch.equal(other, value) if isinstance(value, Tensor) else other == value, name
    for one, two in zip(model.backgrounds, back.backgrounds, strict=True):
        assert torch.equal(one.statistics.precision, two.statistics.precision)
        assert torch.equal(one.proxies, two.proxies)
    assert torch.equal(back.novel_margins(), model.novel_margins())
    save(back, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"statistics.scatter": None}, "statistics.scatter"),
        ({"statistics.means": torch.zeros(4, 16)}, "statistics.means is"),
        ({"statistics.total": torch.tensor(0)}, "statistics are impossible"),
        ({"statistics.scoring": -torch.ones(5).double()}, "statistics are impossible"),
        ({"head.fold_proxies": None}, "head.fold_proxies"),
        ({"head.fold_proxies": torch.zeros(4, 2, 17)}, "head.fold_proxies is"),
        ({"head.proxies": torch.ones(7, 16)}, "head.proxies is"),
        ({"holdout.folds": torch.full((65,), 5)}, "folds"),
    ],
)
def test_an_inconsistent_linear_model_is_refused(
    changes: dict[str, Tensor | None], complaint: str, tmp_path: Path
) -> None:
    save(_taught(), tmp_path / "model")
    tensors, metadata = read_tensors(tmp_path / "model")
    whole = {**tensors, **changes}
    kept = {name: tensor for name, tensor in whole.items() if tensor is not None}
    write_tensors(tmp_path / "broken", kept, metadata)
    with pytest.raises(CheckpointError, match=complaint):
        load(tmp_path / "broken")


def test_the_threshold_of_unknown_images_is_set_on_images_that_did_not_shape_their_scores() -> None:
    model = _taught()
    held = model.holdout
    parts = zip(model.calibration_heads, held.parts(held.embeddings), strict=True)
    scores = torch.cat([familiarity(head, part.float()) for head, part in parts])
    for rate in (0.0, 10.0, 30.0):
        alarms = 100 * (scores < unknown_threshold(model, rate)).double().mean().item()
        assert rate - 100 / len(scores) <= alarms <= rate


def test_fine_tuning_leaves_the_base_classes_of_a_linear_head() -> None:
    taught = Model(_taught(), _model().network)
    for freeze in ("alternate", "never"):
        with pytest.raises(UsageError, match=f"`freeze_base` {freeze} needs proxies that were"):
            taught.finetune(freeze_base=freeze)  # type: ignore[arg-type]
    whole = Config.model_validate({"finetune": {"scope": "full"}})
    with pytest.raises(UsageError, match="`scope` full needs a network that was trained with its"):
        finetune(taught.checkpoint, whole, tiny_world("linear")[0])
    tuned = taught.finetune(steps=5, head_lr=0.01).checkpoint
    assert torch.equal(tuned.head.base.proxies, taught.checkpoint.head.base.proxies)
    assert not tuned.meta.base_changed
    moved = (tuned.head.novel_proxies - taught.checkpoint.head.novel_proxies).norm(dim=1)
    assert (moved > 1e-3).all()


def test_a_class_that_goes_takes_its_own_proxies_of_all_folds() -> None:
    both = _taught()
    assert both.fold_proxies is not None
    for place, name in enumerate("hg"):
        left = both.without_class(name).fold_proxies
        assert left is not None
        assert torch.equal(left[:, 0], both.fold_proxies[:, 1 - place])
    fewer = both.without_class("b").fold_proxies
    assert fewer is not None
    assert torch.equal(fewer, both.fold_proxies)


def test_classes_of_one_or_two_images_are_in_no_fold_and_stay_known() -> None:
    model = _model("uneven")
    held = model.checkpoint.holdout
    assert held.folds is not None
    alone = held.labels == model.classes.index("b")
    assert held.folds[alone].tolist() == [-1]
    assert int((held.folds == -1).sum()) == 3
    place = model.classes.index("b")
    (proxy,) = {
        tuple(each.statistics.means[place].tolist()) for each in model.checkpoint.backgrounds
    }
    assert torch.tensor(proxy).norm().item() == pytest.approx(1, abs=1e-2)
    # Whatever classes go, the rest can be taught and set a bias as long as there are images.
    model = model.imprint(_shots("h"), "h")
    for name in ("a", "d"):
        model = model.remove(name).imprint(_shots("g"), "g", replace=name != "a")
        assert expected_forgetting(model.checkpoint) == 0
    last = model.remove("e").imprint(_shots("f"), "f").checkpoint
    assert expected_forgetting(last) is None
    assert last.meta.supports[-1].method == "imprint"
