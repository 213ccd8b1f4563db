"""The maths of imprinting against calculations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowshot_cli.config.methods import METHODS
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.methods.imprinting import (
    cluster_means,
    imprint,
    reading_stages,
    shrinkage,
    teen,
    whitened,
)
from lowshot_cli.methods.operating_point import BaseQueries, operating_bias, resolve_budget


def test_the_proxy_is_the_normalised_mean_of_the_supports() -> None:
    support = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    half = math.sqrt(0.5)
    assert torch.allclose(imprint(support), torch.tensor([half, half]))


def test_one_shot_is_its_own_proxy() -> None:
    support = F.normalize(torch.tensor([[3.0, 4.0, 12.0]]), dim=1)
    assert torch.allclose(imprint(support), support[0])


def _statistics(within: torch.Tensor, shrinkage: float) -> Statistics:
    """Those of classes whose embeddings have this covariance."""
    nothing = torch.zeros(1, len(within))
    return Statistics(nothing[0], 1, nothing, torch.ones(1), within, 1, shrinkage, shrinkage)


def test_whitening_is_fishers_discriminant() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(6, 6, generator=generator)
    within, mean = spread @ spread.T, torch.randn(6, generator=generator)
    support = torch.randn(3, 6, generator=generator)
    ridge = 0.5 * np.trace(within.numpy()) / 6 * np.eye(6)
    direction = np.linalg.solve(within.numpy() + ridge, (support.mean(0) - mean).numpy())
    expected = direction / np.linalg.norm(direction)
    found = whitened(support, mean, _statistics(within, 0.5).whiten)
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_wider_embeddings_are_shrunk_more() -> None:
    assert shrinkage(448) == 0.5
    assert shrinkage(2 * 448) == 1.0


def test_strong_shrinkage_leaves_the_centred_mean() -> None:
    support = F.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    found = whitened(support, torch.zeros(5), _statistics(torch.eye(5), 1e6).whiten)
    assert torch.allclose(found, imprint(support), atol=1e-5)


def test_a_base_proxy_reads_the_stages_through_a_share_of_its_whitened_proxy() -> None:
    trained, by_mean = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    found = reading_stages(trained, by_mean)
    assert found.tolist()[0] == pytest.approx(np.array([1, 0, 0.3]) / math.hypot(1, 0.3))


def test_calibration_draws_a_prototype_towards_the_base_classes_it_resembles() -> None:
    proxies = torch.eye(4)[:3]
    support = F.normalize(torch.tensor([[0.8, 0.0, 0.0, 0.6]]), dim=1)
    weights = np.exp([16 * 0.8, 0, 0]) / np.exp([16 * 0.8, 0, 0]).sum()
    expected = 0.5 * support[0].numpy() + 0.5 * np.append(weights, 0)
    found = teen(support, proxies)
    assert found.numpy() == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    assert torch.allclose(teen(support, proxies, share=0), support[0])


def test_statistics_are_taken_within_classes() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 4.0], [10.0, 8.0]])
    found = Statistics.of(embeddings, torch.tensor([0, 0, 1, 1]), shrinkage=0)
    assert found.centre.tolist() == [6, 3]
    assert found.means.tolist() == [[2, 0], [10, 6]]
    assert (found.scatter / found.total).tolist() == [[0.5, 0], [0, 2]]


def test_statistics_of_one_image_a_class_still_whiten() -> None:
    embeddings = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    statistics = Statistics.of(embeddings, torch.arange(5), shrinkage(4))
    found = whitened(embeddings[:2], statistics.centre, statistics.whiten)
    expected = F.normalize(embeddings[:2].mean(0) - statistics.centre, dim=0)
    assert torch.allclose(found, expected, atol=1e-4)


def test_clusters_of_supports_have_a_mean_each() -> None:
    near, far = torch.tensor([[1.0, 0.0], [0.8, 0.2]]), torch.tensor([[-1.0, 0.0], [-0.6, 0.0]])
    support = torch.stack([near[0], far[0], near[1], far[1]])
    means = cluster_means(support.expand(3, 2, 4, 2), 2)
    assert means.shape == (3, 2, 2, 2)
    assert torch.allclose(means[1, 1], torch.stack([near.mean(0), far.mean(0)]))
    assert torch.equal(cluster_means(support[:1], 2), support[:1])


def test_a_cluster_that_loses_its_supports_keeps_its_place() -> None:
    same = torch.tensor([[0.6, 0.8]]).expand(3, 2)
    assert torch.allclose(cluster_means(same, 2), same[:2])


def test_trials_are_imprinted_independently() -> None:
    support = F.normalize(
        torch.randn(6, 2, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    together = imprint(support)
    assert together.shape == (6, 2, 8)
    assert torch.equal(together[3, 1], imprint(support[3, 1]))


def _four_queries() -> BaseQueries:
    """Base rows e1 and e2; queries on the arc between them, one of them wrong."""
    degrees = torch.tensor([0.0, 10.0, 20.0, 80.0]) * math.pi / 180
    embeddings = torch.stack([degrees.cos(), degrees.sin(), torch.zeros(4)], 1)
    labels = torch.tensor([0, 0, 0, 0])
    return BaseQueries.of(torch.eye(3)[:2], embeddings, labels)


def test_wrong_base_queries_bear_on_nothing_but_the_total() -> None:
    queries = _four_queries()
    assert queries.total == 4
    assert len(queries.embeddings) == 3


def test_the_operating_bias_is_the_largest_that_keeps_the_budget() -> None:
    queries = _four_queries()
    row = torch.tensor([[[0.0, 0.0, 1.0]]])
    # The novel row is orthogonal to all queries, so margins are their best base cosines.
    margins = sorted(math.cos(math.radians(angle)) for angle in (0, 10, 20))
    for budget, expected in ((0, margins[0]), (25, margins[1]), (50, margins[2])):
        bias = operating_bias(queries.margins(row), queries, budget)
        assert bias.item() == pytest.approx(expected, abs=1e-5)
        assert bias.item() < expected
        kept = queries.accuracy(queries.margins(row), bias).item()
        assert kept == 75 - budget


def test_a_larger_budget_never_makes_the_bias_smaller_up_to_one_that_gives_all_away() -> None:
    queries = _four_queries()
    margins = queries.margins(torch.tensor([[[0.0, 0.0, 1.0]]]))
    biases = [operating_bias(margins, queries, budget).item() for budget in (0, 25, 50, 75, 100)]
    assert biases == sorted(biases)
    assert biases[-1] == pytest.approx(margins.max().item(), abs=1e-5)


def test_the_budget_holds_for_scores_of_any_size() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    embeddings = torch.tensor([[41.7, 0.0], [60.3, 0.0], [80.9, 0.0], [99.1, 0.0]])
    queries = BaseQueries.of(torch.eye(2)[:1], embeddings, labels)
    margins = queries.margins(torch.tensor([[[0.0, 1.0]]]))
    for budget in (0, 25, 50, 75):
        bias = operating_bias(margins, queries, budget)
        assert queries.accuracy(margins, bias).item() == 100 - budget


def test_the_budget_holds_where_large_scores_differ_by_little() -> None:
    novel = torch.tensor([1000.0, 2000.0, 3000.0])
    base = novel + torch.tensor([0.25, 0.5, 1.0])
    queries = BaseQueries.of(
        torch.tensor([[1.0, 0.0]]), torch.stack([base, novel], 1), torch.zeros(3, dtype=torch.int64)
    )
    bias = operating_bias(queries.margins(torch.tensor([[[0.0, 1.0]]])), queries, 0)
    assert bool((novel + bias < base).all())


def test_queries_already_lost_count_against_the_budget() -> None:
    embeddings = F.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    proxies = torch.eye(8)
    labels = (embeddings @ proxies.T).argmax(1)
    changed = F.normalize(
        proxies + 0.2 * torch.randn(8, 8, generator=torch.Generator().manual_seed(2)), dim=1
    )
    row = F.normalize(torch.ones(1, 1, 8), dim=-1)
    pristine = torch.ones(200, dtype=torch.bool)
    queries = BaseQueries.of(changed, embeddings, labels, pristine)
    lost = int((~queries.right_now).sum())
    assert 0 < lost < 100
    points = 100 * (lost + 10) / 200
    bias = operating_bias(queries.margins(row), queries, points)
    right = (queries.margins(row)[0] > bias) & queries.right_now
    assert int(right.sum()) == 200 - lost - 10


def test_a_budget_below_the_loss_leaves_no_bias_that_keeps_it() -> None:
    queries = BaseQueries.of(
        torch.eye(2), torch.eye(2), torch.tensor([1, 0]), torch.tensor([True, True])
    )
    margins = queries.margins(torch.tensor([[[1.0, 0.0]]]))
    assert operating_bias(margins, queries, 0).item() == 0


def test_a_budget_that_changed_base_rows_have_used_up_lets_a_class_cost_nothing_more() -> None:
    embeddings = F.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    labels = (embeddings @ torch.eye(8).T).argmax(1)
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    changed = F.normalize(torch.eye(8) + 0.2 * noise, dim=1)
    queries = BaseQueries.of(changed, embeddings, labels, torch.ones(200, dtype=torch.bool))
    row = F.normalize(torch.ones(1, 1, 8), dim=-1)
    bias = operating_bias(queries.margins(row), queries, 0)
    assert bias.item() != 0
    margins = queries.margins(row)[0, queries.right_now]
    assert bool((margins > bias).all())
    assert not bool((margins > bias + 1e-4).all()), "a larger bias costs more"


def test_several_novel_rows_share_the_bias_of_the_nearest() -> None:
    queries = _four_queries()
    near, far = torch.tensor([0.6, 0.0, 0.8]), torch.tensor([0.0, 0.0, 1.0])
    both = queries.margins(torch.stack([far, near])[None])
    assert torch.allclose(both, queries.margins(near[None, None]))


def test_the_papers_methods_have_no_bias_unless_asked() -> None:
    assert not METHODS["imprint"].biased
    assert not METHODS["random"].biased
    assert METHODS["whitened"].biased
    assert resolve_budget(None, biased=False) is None
    assert resolve_budget(None) == 2
    assert resolve_budget(3.5, biased=False) == 3.5
    assert resolve_budget("none") is None
