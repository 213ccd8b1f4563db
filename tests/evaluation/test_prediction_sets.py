"""Sets of classes hold the right one as often as promised, and are no larger than need be."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowshot_cli.api import Model
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.evaluation.predict import describe
from lowshot_cli.evaluation.prediction_sets import (
    conformal_quantile,
    coverage,
    images_needed,
    mass_before,
    set_quantile,
    set_sizes,
)
from lowshot_cli.models.embedder import embed
from tests.conftest import RunCommand, save_images
from tests.tiny_world import tiny_world


def _exchangeable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits `(count, 10)` of a model that is too sure of itself, and classes `(count,)`."""
    lots = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 10, generator=lots)
    classes = torch.multinomial((logits / 3).softmax(1), 1, generator=lots)[:, 0]
    return logits, classes


def _scores_of(logits: Tensor, classes: Tensor) -> Tensor:
    """The probability of all classes that are likelier than the one of each image."""
    chances = logits.double().softmax(1)
    own = chances.gather(1, classes[:, None])
    return chances.where(chances > own, 0).sum(1)


@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.99])
def test_as_many_sets_as_promised_hold_the_right_class(confidence: float) -> None:
    covered, n, m, trials = 0, 200, 100, 50
    for seed in range(trials):
        logits, classes = _exchangeable(n + m, seed)
        scores = _scores_of(logits, classes)
        quantile = conformal_quantile(scores[:n], confidence)
        ranked = logits[n:].sort(1, descending=True)
        sizes = set_sizes(ranked.values, quantile)
        inside = torch.arange(10) < sizes[:, None]
        covered += int((inside & (ranked.indices == classes[n:, None])).sum())
    share, variance = covered / (m * trials), confidence * (1 - confidence)
    spread = math.sqrt(variance / trials * (1 / m + 1 / n))
    assert confidence - 4 * spread < share < confidence + 1 / n + 4 * spread


def test_the_mass_before_a_class_is_that_of_all_likelier_ones() -> None:
    logits, classes = _exchangeable(20, 0)
    ranked = logits.sort(1, descending=True)
    mass = mass_before(ranked.values)
    assert mass.dtype == torch.float64
    assert bool((mass[:, 0] == 0).all())
    own = mass[ranked.indices == classes[:, None]]
    torch.testing.assert_close(own, _scores_of(logits, classes))


def test_classes_after_a_sure_one_still_differ() -> None:
    mass = mass_before(torch.tensor([[60.0, 30.0, 25.0, 0.0]]))[0]
    assert bool((mass.diff() > 0).all())


def test_the_quantile_is_a_score_whose_rank_is_exact() -> None:
    scores = torch.arange(9.0).flip(0)
    assert conformal_quantile(scores, 0.9) == 8  # 10 · 0.9 is 9, the last of nine
    assert conformal_quantile(scores, 0.85) == 8
    assert conformal_quantile(scores, 0.8) == 7
    assert conformal_quantile(scores[:8], 0.9) == math.inf
    assert conformal_quantile(scores[:0], 0.5) == math.inf
    for confidence, needed in ((0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)):
        assert images_needed(confidence) == needed
        assert conformal_quantile(torch.zeros(needed), confidence) == 0
        assert conformal_quantile(torch.zeros(needed - 1), confidence) == math.inf


def _photos(name: str) -> Tensor:
    dataset, _, _ = tiny_world("plain")
    return dataset.test.pixels[dataset.test.of_class(dataset.label(name))]


@pytest.fixture(params=["plain", "linear"])
def model(request: pytest.FixtureRequest) -> Model:
    """A model with a hold-out, or a cross-fitted one, that was taught a class."""
    _, base, network = tiny_world(request.param)
    return Model(base, network).imprint(_photos("h"), "h")


def test_sets_begin_with_the_predicted_class_and_grow_with_the_confidence(model: Model) -> None:
    pixels = tiny_world("plain")[0].test.pixels
    before = [one.top[:1] for one in model.predict(pixels, top=1)]
    sets = {}
    for confidence in (0.01, 0.5, 0.7, 0.9, 0.95):
        found = model.predict(pixels, top=1, confidence=confidence)
        assert [one.top for one in found] == before
        sets[confidence] = [one.prediction_set or () for one in found]
        assert all(
            one.name == chosen[0] for one, chosen in zip(found, sets[confidence], strict=True)
        )
    each = list(sets.values())
    for smaller, larger in pairwise(each):
        assert all(b[: len(a)] == a for a, b in zip(smaller, larger, strict=True))
    assert {len(one) for one in each[0]} == {1}
    assert sum(map(len, each[-1])) > sum(map(len, each[0]))


def _by_hand(checkpoint: Checkpoint, confidence: float) -> float:
    """The quantile, from one image at a time."""
    held, scores = checkpoint.holdout, []
    parts = zip(held.parts(held.embeddings), held.parts(held.labels), strict=True)
    for head, (embeddings, labels) in zip(checkpoint.calibration_heads, parts, strict=True):
        for row, label in zip(embeddings.float(), labels.tolist(), strict=True):
            chances = (head.scale * head.scores(row[None])[0]).double().softmax(0).tolist()
            scores.append(sum(chance for chance in chances if chance > chances[label]))
    return sorted(scores)[math.ceil((len(scores) + 1) * confidence - 1e-9) - 1]


def test_calibration_images_are_scored_by_heads_that_none_of_them_shaped(model: Model) -> None:
    for confidence in (0.5, 0.8, 0.95):
        quantile = set_quantile(model.checkpoint, confidence)
        assert quantile == pytest.approx(_by_hand(model.checkpoint, confidence), rel=1e-5)


def test_the_delivered_proxies_say_nothing_of_the_images_that_shaped_them() -> None:
    _, base, network = tiny_world("linear")
    taught = Model(base, network).imprint(_photos("h"), "h").checkpoint
    turned = replace(taught, head=replace(taught.head, proxies=-taught.head.proxies))
    assert set_quantile(turned, 0.8) == set_quantile(taught, 0.8)
    assert taught.fold_proxies is not None
    moved = replace(taught, fold_proxies=-taught.fold_proxies)
    assert set_quantile(moved, 0.8) != set_quantile(taught, 0.8)


def test_teaching_a_class_calibrates_anew(model: Model) -> None:
    before = set_quantile(model.checkpoint, 0.9)
    taught = model.imprint(_photos("g"), "g")
    assert set_quantile(taught.checkpoint, 0.9) != before
    assert set_quantile(taught.remove("g").checkpoint, 0.9) == before


def test_chunks_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tiny_world("plain")[0].test.pixels
    whole, embeddings = model.predict(pixels, confidence=0.9), model.embed(pixels)
    monkeypatch.setattr("lowshot_cli.models.head._MOST_SCORES", 150)
    quantile = set_quantile(model.checkpoint, 0.9)
    images = [str(number) for number in range(len(pixels))]
    parts = describe(model.checkpoint, embeddings, images, 3, quantile=quantile)
    assert [one.prediction_set for one in parts] == [one.prediction_set for one in whole]


def test_coverage_and_size_are_counted_on_base_and_novel_images_apart(model: Model) -> None:
    names = ("a", "b", "c", "h")
    embedded = {name: model.embed(_photos(name)) for name in names}
    quantile = set_quantile(model.checkpoint, 0.7)
    assert quantile is not None
    found = coverage(model.checkpoint, embedded.items(), quantile)
    sets = {name: model.predict(_photos(name), confidence=0.7) for name in names}
    inside = {n: [one.prediction_set or () for one in each] for n, each in sets.items()}
    base = [(name in one, len(one)) for name in "abc" for one in inside[name]]
    novel = [("h" in one, len(one)) for one in inside["h"]]
    assert found.base_coverage == 100 * sum(right for right, _ in base) / len(base)
    assert found.base_size == sum(size for _, size in base) / len(base)
    assert found.novel_coverage == 100 * sum(right for right, _ in novel) / len(novel)
    assert found.novel_size == sum(size for _, size in novel) / len(novel)
    alone = coverage(model.checkpoint, [("h", embedded["h"])], quantile)
    assert (alone.base_coverage, alone.base_size) == (None, None)


def test_with_too_few_images_every_set_holds_every_class() -> None:
    _, base, network = tiny_world("plain")
    assert set_quantile(base, 0.99) == math.inf
    found = Model(base, network).predict(_photos("a"), confidence=0.99)
    assert [set(one.prediction_set or ()) for one in found] == [set(base.meta.classes)] * 4


def test_what_cannot_be_promised_is_refused() -> None:
    _, base, network = tiny_world("adopted")
    with pytest.raises(CheckpointError, match="no hold-out, which `confidence` needs"):
        Model(base, network).predict(_photos("a"), confidence=0.9)
    _, base, network = tiny_world("plain")
    for confidence in (0, 1, 90, -0.1, math.nan):
        with pytest.raises(UsageError, match=f"`confidence` is {confidence}"):
            Model(base, network).predict(_photos("a"), confidence=confidence)


@pytest.fixture
def two(glyphs: Dataset, base: Checkpoint, tmp_path: Path) -> Path:
    """Two test images of a base class."""
    members = glyphs.test.of_class(glyphs.label(base.base_classes[0]))[:2]
    save_images(glyphs.test.pixels[members], tmp_path / "two")
    return tmp_path / "two"


def test_predict_lists_the_set_of_each_image(
    lowshot: RunCommand, workdir: Path, two: Path, base: Checkpoint, glyphs: Dataset
) -> None:
    result = lowshot("predict", two, "--confidence", 0.9, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    quantile = set_quantile(base, 0.9)
    pixels = glyphs.test.pixels[glyphs.test.of_class(glyphs.label(base.base_classes[0]))[:2]]
    expected = describe(base, embed(base.network(), pixels), ["", ""], 3, quantile=quantile)
    sets = [list(one.prediction_set or ()) for one in expected]
    assert [one["set"] for one in found] == sets
    lines = lowshot("predict", two, "--confidence", 0.9).stdout.splitlines()
    assert [line.partition("{")[2] for line in lines] == [f"{', '.join(one)}}}" for one in sets]
    text = lowshot("predict", two, "--confidence", 0.9, "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [next(csv.reader([row["set"]])) for row in rows] == sets
    plain = lowshot("predict", two, "--csv").stdout
    assert "set" not in plain.splitlines()[0]
    assert "set" not in json.loads(lowshot("predict", two, "--json").stdout)[0]


def test_evaluate_measures_sets_on_test_images_and_photos(
    lowshot: RunCommand, workdir: Path, two: Path, base: Checkpoint
) -> None:
    result = lowshot("evaluate", "--confidence", 0.9, "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)
    assert 80 < one["sets"]["base_coverage"] < 97
    assert 1 < one["sets"]["base_size"] < 12
    assert one["sets"]["novel_coverage"] is None
    typed = ("--images", f"{base.base_classes[0]}={two}", "--confidence", 0.9)
    photos = lowshot("evaluate", *typed, "--json")
    assert json.loads(photos.stdout)[0]["sets"]["base_coverage"] in (0, 50, 100)
    assert "sets of classes with a confidence of 0.9" in lowshot("evaluate", *typed).stdout


def test_a_confidence_that_the_images_do_not_allow_is_told(
    lowshot: RunCommand, workdir: Path, two: Path, base: Checkpoint
) -> None:
    result = lowshot("predict", two, "--confidence", 0.9999)
    assert result.exit_code == 0
    count = len(base.holdout.calibrating(base.holdout.labels))
    needed = f"a confidence of 0.9999 needs 9,999 hold-out images, and the model has {count}"
    assert needed in result.stderr
    assert result.stdout.count("and 2 more}") == 2
    result = lowshot("predict", two, "--confidence", 90)
    assert result.exit_code == 2
    assert "--confidence is 90" in result.stderr
