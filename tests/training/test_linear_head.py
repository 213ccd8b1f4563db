"""Linear heads from embeddings: folds, shrinkage and scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.holdout import N_FOLDS
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.models.head import as_read
from lowshot_cli.training.linear_head import (
    NOVEL_SHRINKAGE,
    SHRINKAGES,
    cross_fitted,
    draw_folds,
    fitted_scale,
    held_out,
)


def _images(counts: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), 10, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(len(labels), 10, generator=generator)
    return F.normalize(centres[labels] + noise, dim=1).half().float(), labels


def test_the_scale_is_the_likeliest() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (400,), generator=generator)
    noise = torch.randn(400, 5, generator=generator)
    scores = 0.1 * (F.one_hot(labels, 5) + noise)
    scale = fitted_scale(scores, labels)
    losses = [F.cross_entropy(s * scores, labels).item() for s in (scale / 1.2, scale, scale * 1.2)]
    assert losses[1] == min(losses)
    assert scale == pytest.approx(10, rel=0.3)


def test_folds_share_the_images_of_each_class_evenly() -> None:
    counts = [1, 2, 7, 50, 300]
    folds = draw_folds(counts)
    assert [len(fold) for fold in folds] == counts
    assert (folds[0].tolist(), folds[1].tolist()) == ([-1], [-1, -1])
    for fold, shares in zip(folds[2:], ([2, 2, 1, 1, 1], [10] * 5, [20] * 5), strict=True):
        assert torch.bincount(fold[fold >= 0]).tolist() == shares
    assert all(map(torch.equal, folds, draw_folds(counts)))
    assert not torch.equal(folds[3][:10], torch.arange(10) % N_FOLDS), "drawn, not in order"


def test_a_checkpoint_carries_fewer_images_of_each_of_many_classes() -> None:
    for n_classes, carried in ((10, 100), (100, 50), (2000, 5)):
        (fold, *_) = draw_folds([120] * n_classes)
        assert int((fold >= 0).sum()) == carried


def test_shrinkage_and_scale_make_unseen_images_likeliest() -> None:
    embeddings, labels = _images([30] * 6)
    folds = torch.cat(draw_folds([30] * 6))
    head, holdout = cross_fitted(embeddings, labels, folds)

    def unseen(proxies_of: Callable[[Statistics], Tensor], shrinkage: float) -> Tensor:
        """Scores `(N, C)` of the images of each fold by what the others say."""
        scores = torch.zeros(len(labels), 6)
        for number in range(N_FOLDS):
            inside = folds == number
            others = Statistics.of(embeddings[~inside], labels[~inside], shrinkage)
            proxies = proxies_of(others)
            scores[inside] = as_read(embeddings[inside], proxies) @ proxies.T
        return scores

    base = {each: unseen(lambda others: others.base_proxies, each) for each in SHRINKAGES}
    scales = {each: fitted_scale(scores, labels) for each, scores in base.items()}
    losses = {
        each: F.cross_entropy(scales[each] * scores, labels).item() for each, scores in base.items()
    }
    best = min(losses, key=lambda each: losses[each])
    known = holdout.statistics
    assert known is not None
    assert (known.shrinkage, known.novel_shrinkage) == (best, NOVEL_SHRINKAGE)
    weights = Statistics.of(embeddings, labels, best).base_proxies[:, :-1]
    assert known.unit == pytest.approx(weights.norm(dim=1).mean().item(), rel=1e-3)
    assert head.scale == pytest.approx(scales[best] * known.unit, rel=1e-2)
    right = base[best].argmax(1) == labels
    assert torch.equal(holdout.right, right)
    assert holdout.accuracy == pytest.approx(100 * right.double().mean().item())
    # In its unit, the same scale is the likeliest for every kind of score.
    novel = unseen(lambda others: others.base_proxies, NOVEL_SHRINKAGE) / known.novel_unit
    assert fitted_scale(novel, labels) == pytest.approx(head.scale, rel=2e-2)
    alike = unseen(lambda others: others.round_proxies(others.means), 1.0)
    assert fitted_scale(alike / known.round_unit, labels) == pytest.approx(head.scale, rel=2e-2)


def test_a_held_out_image_shapes_no_proxy() -> None:
    fit, fit_labels = _images([40] * 6)
    held, held_labels = _images([12] * 6, seed=1)
    head, holdout = held_out(fit, fit_labels, held, held_labels)
    known = holdout.statistics
    assert known is not None
    expected = Statistics.of(fit, fit_labels, known.shrinkage).base_proxies
    assert torch.allclose(head.proxies * known.unit, expected, atol=1e-4)
    assert torch.equal(holdout.calibrating(holdout.embeddings), held.half())
    assert torch.bincount(holdout.fitting(holdout.labels)).tolist() == [25] * 6
    right = head.predict(held) == held_labels
    assert holdout.accuracy == pytest.approx(100 * right.double().mean().item())
    (background,) = holdout.backgrounds(head, 10)
    assert background.statistics is known
    assert set(map(tuple, background.samples.embeddings.tolist())) <= set(map(tuple, fit.tolist()))


def test_classes_of_one_image_each_leave_nothing_to_set_a_bias_on() -> None:
    embeddings, labels = _images([1] * 4)
    head, holdout = cross_fitted(embeddings, labels, torch.cat(draw_folds([1] * 4)))
    assert holdout.accuracy is None
    assert not holdout.suffices
    assert torch.equal(head.predict(embeddings), labels)


def test_images_that_are_all_right_leave_scale_and_units_within_reason() -> None:
    generator = torch.Generator().manual_seed(0)
    means = F.normalize(torch.randn(3, 64, generator=generator), dim=1)
    labels = torch.arange(3).repeat_interleave(20)
    noise = 0.02 * torch.randn(60, 64, generator=generator)
    embeddings = F.normalize(means[labels] + noise, dim=1)
    head, holdout = cross_fitted(embeddings, labels, torch.cat(draw_folds([20] * 3)))
    known = holdout.statistics
    assert known is not None
    assert bool(holdout.right.all())
    assert 0.25 <= known.novel_unit / known.unit <= 4
    assert 0.01 <= known.round_unit / known.unit <= 100
    assert head.probabilities(embeddings).max() < 0.9999


def test_one_base_class_has_a_scale_of_one() -> None:
    assert fitted_scale(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)) == 1
