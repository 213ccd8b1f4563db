"""Classes taught beside a classifier that was adopted as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowshot_cli.adaptation.background import give_photos
from lowshot_cli.adaptation.bias import expected_forgetting, without_class
from lowshot_cli.adaptation.imprint import imprint_photos
from lowshot_cli.adaptation.review import review_classes, weakened_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.config.schema import Config
from lowshot_cli.data.photos import Photos
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.evaluation.open_set import unknown_threshold
from lowshot_cli.evaluation.prediction_sets import set_quantile
from lowshot_cli.methods.adopted import cautious_proxies, statistics_of_photos
from lowshot_cli.methods.operating_point import allowed_losses
from lowshot_cli.models.embedder import embed
from tests.tiny_world import CLASSES, N_BASE, tiny_world

SHOTS = 4


def _photos(label: int, count: int = SHOTS, start: int = 0) -> Photos:
    images = tiny_world("bare")[0].train
    chosen = images.of_class(label)[start : start + count]
    files = tuple(Path(f"{number}.png") for number in chosen.tolist())
    return Photos(images.pixels[chosen], files)


def _ordinary(count: int) -> Photos:
    """Photos of base classes, a few of each."""
    parts = [_photos(label, count // N_BASE + 1) for label in range(N_BASE)]
    pixels = torch.cat([part.pixels for part in parts])[:count]
    return Photos(pixels, tuple(Path(f"{i}.png") for i in range(count)))


def _taught(kind: str, label: int = 6, **settings: object) -> Checkpoint:
    _, base, network = tiny_world(kind)
    config = Config.model_validate({"imprint": settings})
    taught, _ = imprint_photos(base, network, {CLASSES[label]: _photos(label)}, config)
    return taught


def _seen(kind: str = "photos") -> Tensor:
    dataset, _, network = tiny_world(kind)
    return embed(network, dataset.test.pixels)


@pytest.mark.parametrize("kind", ["bare", "photos"])
def test_old_logits_stay_bit_for_bit(kind: str) -> None:
    base, taught = tiny_world(kind)[1], _taught(kind)
    assert torch.equal(taught.head.scores(_seen())[:, :N_BASE], base.head.scores(_seen()))


def test_no_more_decisions_change_than_the_budget_allows() -> None:
    for budget in (0, 2, 10, 50):
        taught = _taught("photos", max_forgetting=budget)
        changed = 0
        parts = taught.holdout.parts(taught.holdout.embeddings)
        for head, part in zip(taught.calibration_heads, parts, strict=True):
            features = part.float()
            changed += int((head.predict(features) != head.base.predict(features)).sum())
        assert changed <= allowed_losses(budget, len(taught.holdout))
        assert expected_forgetting(taught) == pytest.approx(100 * changed / len(taught.holdout))


def test_a_constant_in_all_rows_changes_no_decision() -> None:
    _, base, network = tiny_world("photos")
    constant = torch.linspace(-1, 2, base.head.size + 1)
    moved = replace(base.head, proxies=base.head.proxies + constant)
    config = Config()
    other = replace(base, head=moved)
    photos = {"new": _photos(6)}
    one, two = (imprint_photos(b, network, photos, config)[0] for b in (base, other))
    assert torch.equal(one.head.predict(_seen()), two.head.predict(_seen()))
    assert one.head.bias == pytest.approx(two.head.bias, abs=1e-4)


def test_novel_scores_scale_with_the_logits_of_the_classifier() -> None:
    base = tiny_world("photos")[1]
    features = base.holdout.embeddings.float()
    rows, mean = base.head.proxies, base.supports[0].mean(0) if base.supports else features[0]
    once, twice = (statistics_of_photos(features, factor * rows) for factor in (1, 2))
    for made in ("novel_proxies", "round_proxies"):
        first, second = (getattr(each, made)(mean) for each in (once, twice))
        torch.testing.assert_close(second, 2 * first)


def test_without_photos_a_class_wins_only_what_is_like_its_supports() -> None:
    _, base, network = tiny_world("bare")
    taught = _taught("bare")
    assert (taught.head.bias, taught.meta.max_forgetting) == (0, None)
    assert taught.meta.supports[0].method == "imprint"
    # A single support is taken for its own class, whatever the base classes say.
    support = embed(network, _photos(6, 1).pixels)
    row = cautious_proxies(support, base.head.proxies)
    assert base.head.with_novel(row[None]).predict(support).item() == N_BASE


def test_photos_make_anew_what_was_taught_before() -> None:
    _, base, network = tiny_world("bare")
    later = give_photos(_taught("bare"), network, _ordinary(40))
    known = give_photos(base, network, _ordinary(40))
    before, _ = imprint_photos(known, network, {CLASSES[6]: _photos(6)}, Config())
    assert torch.equal(later.head.proxies, before.head.proxies)
    assert later.head.bias == before.head.bias
    assert later.meta.max_forgetting == 2
    assert later.meta.supports == before.meta.supports


def test_photos_travel_with_the_model(tmp_path: Path) -> None:
    save(_taught("photos"), tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    network = tiny_world("photos")[2]
    more, _ = imprint_photos(loaded, network, {"h": _photos(7)}, Config())
    again, _ = imprint_photos(_taught("photos"), network, {"h": _photos(7)}, Config())
    assert torch.equal(more.head.proxies, again.head.proxies)
    assert more.head.bias == again.head.bias


def test_a_class_that_goes_leaves_its_photos_to_the_others() -> None:
    taught = without_class(_taught("photos"), CLASSES[1])
    features = taught.holdout.embeddings.float()
    assert len(features) == len(tiny_world("photos")[1].holdout)
    assert torch.equal(taught.holdout.labels, taught.head.base.predict(features))


def test_the_bias_decides_whether_a_class_gets_its_own_supports() -> None:
    taught, name = _taught("photos"), CLASSES[6]
    for bias, won in ((-1000.0, 0), (1000.0, SHOTS)):
        assert review_classes(taught.with_bias(bias, 2), [name])[0].supports_won == won
    assert review_classes(_taught("bare"), [name])[0].supports_won is None


def test_supports_that_another_novel_class_gets_are_not_lost_to_the_background() -> None:
    _, known, network = tiny_world("photos")
    one = _photos(6)
    other = replace(one, pixels=one.pixels ^ 1)
    taught, _ = imprint_photos(known, network, {"one": one, "other": other}, Config())
    review, _ = review_classes(taught.with_bias(1000.0, 2), ["one", "other"])
    assert ("other", SHOTS) in [(each.name, each.won) for each in review.confused]
    assert review.supports_won == SHOTS


def test_an_earlier_class_that_gets_fewer_of_its_supports_is_named() -> None:
    before = _taught("photos", max_forgetting=100)
    after = before.with_bias(before.head.bias - 100, 0)
    (found,) = weakened_classes(before, after)
    assert (found.name, found.after, found.n_support) == (CLASSES[6], 0, SHOTS)
    assert found.before > 0
    assert weakened_classes(before, before) == []
    assert weakened_classes(tiny_world("photos")[1], before) == []


def test_what_photos_cannot_do_is_refused() -> None:
    _, base, network = tiny_world("bare")
    with pytest.raises(UsageError, match="too few photos for a background: 9"):
        give_photos(base, network, _ordinary(9))
    _, trained, own = tiny_world("plain")
    with pytest.raises(UsageError, match="trained on images of its own"):
        give_photos(trained, own, _ordinary(40))
    with pytest.raises(CheckpointError, match="no images with labels"):
        set_quantile(_taught("photos"), 0.9)
    with pytest.raises(UsageError, match="`teen` needs images of base classes"):
        _taught("photos", method="teen")
    assert unknown_threshold(_taught("photos"), 5) > -float("inf")
