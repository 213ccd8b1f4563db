"""Linear discriminants against textbook formulas and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from lowshot_cli.adaptation.methods import Supports, make_proxies
from lowshot_cli.config.schema import Config
from lowshot_cli.methods.background import Background
from lowshot_cli.methods.discriminant import Statistics, shrunk_mean
from lowshot_cli.methods.finetuning import BaseSamples
from lowshot_cli.models.head import Head, as_read

SIZE, CLASSES, EACH = 12, 6, 20


def _images(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit embeddings of classes that overlap, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    centres = torch.randn(CLASSES, SIZE, generator=generator)
    stretch = torch.linspace(0.3, 2, SIZE)
    noise = stretch * torch.randn(len(labels), SIZE, generator=generator)
    return F.normalize(centres[labels] + noise + 1, dim=1), labels


def _head(statistics: Statistics) -> Head:
    proxies = statistics.base_proxies
    return Head(proxies, 1.0, len(proxies), is_linear=True)


def _background() -> tuple[Background, Statistics]:
    embeddings, labels = _images()
    units = {"unit": 2.0, "novel_unit": 3.0, "round_unit": 5.0}
    statistics = replace(Statistics.of(embeddings, labels, 0.5, novel_shrinkage=1.0), **units)
    samples = BaseSamples(embeddings, labels, statistics.base_proxies, 1.0)
    return Background(samples, statistics, SIZE, is_linear=True), statistics


def _made(method: str, support: Tensor, background: Background) -> Tensor:
    """The proxy `(D + 1,)` of one class."""
    supports = Supports(support, lambda: support, torch.ones)
    return make_proxies(method, supports, background, Config())


def _assert_close(one: Statistics, other: Statistics) -> None:
    for name in ("centre", "means", "scatter"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-4), name
    assert torch.equal(one.counts, other.counts)
    assert one.total == other.total
    assert one.variance == pytest.approx(other.variance, abs=1e-5)


def test_without_some_images_the_statistics_are_those_of_the_others() -> None:
    embeddings, labels = _images()
    gone = torch.arange(len(labels)) % 3 == 0
    gone[labels == 2] = False  # a class that keeps all of its images
    left = Statistics.of(embeddings, labels, 1.0).without(embeddings[gone], labels[gone])
    _assert_close(left, Statistics.of(embeddings[~gone], labels[~gone], 1.0))
    nothing = left.without(embeddings[:0], labels[:0])
    _assert_close(nothing, left)


def test_images_are_forgotten_as_well_once_a_class_is_gone() -> None:
    embeddings, labels = _images()
    gone = (torch.arange(len(labels)) % 4 == 1) & (labels != 1)
    whole = Statistics.of(embeddings, labels, 1.0)
    after = labels[gone] - (labels[gone] > 1).long()
    found = whole.without_class(1).without(embeddings[gone], after)
    _assert_close(found, whole.without(embeddings[gone], labels[gone]).without_class(1))


@pytest.mark.parametrize("shrinkage", [0.5, 2.0])
def test_base_proxies_are_a_textbook_discriminant_analysis(shrinkage: float) -> None:
    embeddings, labels = _images()
    statistics = Statistics.of(embeddings, labels, shrinkage)
    # scikit-learn takes a mean of covariance and identity, of which ours is a multiple.
    textbook = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage / (1 + shrinkage))
    textbook.fit(embeddings.double().numpy(), labels.numpy())
    queries = F.normalize(embeddings + 0.1, dim=1)
    expected = textbook.decision_function(queries.double().numpy()) / (1 + shrinkage)
    found = _head(statistics).scores(queries).numpy()
    assert (found.argmax(1) == textbook.predict(queries.double().numpy())).all()
    # Scores of all classes may differ by the same amount.
    apart = found - expected
    assert apart - apart.mean(1, keepdims=True) == pytest.approx(0, abs=1e-3)
    in_other_unit = replace(statistics, unit=4.0).base_proxies
    assert torch.allclose(4 * in_other_unit, statistics.base_proxies, atol=1e-5)


@pytest.mark.parametrize("shots", [1, 4])
def test_a_novel_class_is_a_discriminant_of_its_shrunk_mean(shots: int) -> None:
    embeddings, labels = _images()
    background, statistics = _background()
    support, queries = _images(seed=1)[0][:shots], embeddings[::7]
    proxy = _made("whitened", support, background)
    head = Head(background.proxies, 1.0, CLASSES, bias=0.25, is_linear=True).with_novel(proxy[None])

    x, mu = queries.double().numpy(), statistics.centre.double().numpy()
    around = (embeddings - statistics.means[labels]).double().numpy()
    covariance = around.T @ around / len(around)
    inverse = np.linalg.inv(covariance + np.trace(covariance) / SIZE * np.eye(SIZE))
    mean = mu + shots / (shots + 1) * (support.double().numpy().mean(0) - mu)
    expected = (x - mu) @ inverse @ (mean - mu) - (mean - mu) @ inverse @ (mean - mu) / 2
    found = head.scores(queries)[:, CLASSES].numpy()
    assert found == pytest.approx(expected / statistics.novel_unit + 0.25, abs=1e-3)
    assert torch.allclose(shrunk_mean(support, statistics.centre), torch.tensor(mean).float())


def test_the_plain_mean_is_scored_by_distance_in_units_of_base_classes() -> None:
    background, statistics = _background()
    support, queries = _images(seed=1)[0][:3], _images()[0][::7]
    mu, mean = statistics.centre, support.mean(0)
    near = (queries - mu).square().sum(1) - (queries - mean).square().sum(1)
    expected = near / (2 * statistics.variance * statistics.round_unit)
    proxy = _made("imprint", support, background)
    assert torch.allclose(as_read(queries, proxy) @ proxy, expected, atol=1e-3)


def test_a_mean_drawn_towards_base_classes_keeps_its_distance_from_the_centre() -> None:
    background, statistics = _background()
    support = _images(seed=1)[0][:3]
    mu, away = statistics.centre, support.mean(0) - statistics.centre
    proxy = _made("teen", support, background)
    mean = proxy[:-1] * statistics.variance * statistics.round_unit  # weights are in its direction
    assert mean.norm().item() == pytest.approx(away.norm().item(), rel=1e-4)
    # Its own score is half the squared distance, as that of any class.
    own = as_read(mu + mean, proxy) @ proxy
    half = mean.square().sum() / (2 * statistics.variance * statistics.round_unit)
    assert own.item() == pytest.approx(half.item(), rel=1e-3)
    resembled = F.normalize(statistics.means - mu, dim=1)
    closeness = (F.normalize(mean, dim=0) @ resembled.T).max()
    assert closeness > (F.normalize(away, dim=0) @ resembled.T).max()


def test_a_random_direction_scores_the_centre_as_base_classes_do_on_average() -> None:
    background, statistics = _background()
    proxy = _made("random", _images(seed=1)[0][:3], background)
    assert torch.equal(proxy[:-1], torch.ones(SIZE))
    centre = as_read(statistics.centre, proxy)
    usual = (background.proxies @ centre).mean().item()
    assert (centre @ proxy).item() == pytest.approx(usual, abs=1e-5)


@pytest.mark.parametrize("shape", [(SIZE,), (2, SIZE), (2, 3, SIZE)])
def test_proxies_are_the_same_with_the_inverse_and_without(shape: tuple[int, ...]) -> None:
    _, solving = _background()
    inverting = replace(solving)
    assert inverting.precision.shape == (SIZE, SIZE)
    means = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = solving.novel_proxies(means)
    assert found.shape == (*shape[:-1], SIZE + 1)
    assert "precision" not in vars(solving)
    assert torch.allclose(found, inverting.novel_proxies(means), rtol=1e-3, atol=1e-4)


def test_scores_of_a_linear_head_add_offsets_and_the_bias_of_novel_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, offsets = torch.randn(4, 3, generator=generator), torch.tensor([1.0, -2.0, 0.5, 0.0])
    head = Head(torch.cat([weights, offsets[:, None]], 1), 2.0, 3, bias=0.75, is_linear=True)
    queries = F.normalize(torch.randn(5, 3, generator=generator), dim=1)
    expected = queries @ weights.T + offsets + torch.tensor([0, 0, 0, 0.75])
    assert head.size == 3
    assert torch.allclose(head.scores(queries), expected, atol=1e-6)
    assert torch.allclose(head.probabilities(queries), (2 * expected).softmax(1), atol=1e-6)
    assert torch.equal(head.predict(queries), expected.argmax(1))
    assert torch.allclose(head.base.scores(queries), expected[:, :3], atol=1e-6)
