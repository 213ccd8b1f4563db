"""Metrics against scikit-learn, scipy and calculations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.evaluation.statistics import harmonic_mean, summarise, t_interval
from lowshot_cli.methods.operating_point import BaseQueries, allowed_losses, critical_shifts
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.sweep.scoring import NovelQueries, score_trials

SIZE, N_BASE, N_QUERIES = 12, 6, 300


def _unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _noisy_queries(rows: torch.Tensor, each: int, seed: int) -> torch.Tensor:
    repeated = rows.repeat_interleave(each, 0)
    noise = torch.randn(repeated.shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(repeated + 0.35 * noise, dim=1)


def test_harmonic_mean_is_the_f1_of_the_two_and_zero_at_zero() -> None:
    base, novel = np.array([80.0, 0.0, 50.0]), np.array([40.0, 0.0, 0.0])
    assert harmonic_mean(base, novel) == pytest.approx([stats.hmean([80, 40]), 0, 0])


@pytest.mark.parametrize(
    ("points", "n", "expected"),
    [(2, 4000, 80), (2, 4049, 80), (5, 99, 4), (2.3, 1000, 23), (0, 50, 0)],
)
def test_a_budget_is_the_floor_of_its_share(points: float, n: int, expected: int) -> None:
    assert allowed_losses(points, n) == expected


def test_turning_points_are_order_statistics() -> None:
    margins = torch.tensor([[0.5, 0.1, 0.3, 0.2], [9.0, 7.0, 8.0, 6.0]])
    found = critical_shifts(margins, [0, 2, 4])
    assert torch.equal(found[:, :2], torch.tensor([[0.1, 0.3], [6.0, 8.0]]))
    assert found[:, 2].isinf().all()


def _brute_force_ncr(
    base_cos: np.ndarray,
    truth: np.ndarray,
    novel_base: np.ndarray,
    base_new: np.ndarray,
    novel_new: np.ndarray,
    own: np.ndarray,
    points: float,
) -> float:
    """Try every shift that matters and keep the best recall within the budget."""
    right_before = base_cos.argmax(1) == truth
    budget = int(points * len(truth) / 100 + 1e-9)
    best = 0.0
    margins = np.sort((base_cos.max(1, keepdims=True) - base_new).ravel())
    candidates = np.concatenate([margins - 1e-7, margins + 1e-7, [-3.0, 3.0]])
    for shift in candidates:
        now = np.concatenate([base_cos, base_new + shift], 1)
        lost = int((right_before & (now.argmax(1) != truth)).sum())
        if lost <= budget:
            scores = np.concatenate([novel_base, novel_new + shift], 1)
            best = max(best, 100 * float((scores.argmax(1) == own).mean()))
    return best


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("points", [2.0, 5.0])
def test_ncr_is_the_best_recall_over_all_shifts_within_the_budget(ways: int, points: float) -> None:
    proxies, rows = _unit(N_BASE, SIZE, seed=1), _unit(ways, SIZE, seed=2)
    base_q = _noisy_queries(proxies, N_QUERIES // N_BASE, seed=3)
    truth = torch.arange(N_BASE).repeat_interleave(N_QUERIES // N_BASE)
    novel_q = _noisy_queries(rows, 40, seed=4)
    scores = score_trials(
        rows[None],
        torch.zeros(1),
        torch.arange(ways)[None],
        BaseQueries.of(proxies, base_q, truth),
        {way: NovelQueries.of(proxies, novel_q[way * 40 : (way + 1) * 40]) for way in range(ways)},
        base_accuracy_before=0.0,
    )
    expected = _brute_force_ncr(
        (base_q @ proxies.T).numpy(), truth.numpy(), (novel_q @ proxies.T).numpy(),
        (base_q @ rows.T).numpy(), (novel_q @ rows.T).numpy(),
        N_BASE + np.arange(ways).repeat(40), points,
    )  # fmt: skip
    assert 5 < expected < 100
    assert scores.metrics[f"ncr_at_{points:.0f}"][0] == pytest.approx(expected, abs=1e-3)


def test_trial_scores_equal_scikit_learns_on_full_logits() -> None:
    proxies, rows, bias = _unit(N_BASE, SIZE, seed=5), _unit(4, 2, SIZE, seed=6), 0.15
    base_q = _noisy_queries(proxies, 50, seed=7)
    truth = torch.arange(N_BASE).repeat_interleave(50)
    novel = {way: _noisy_queries(rows[:, way].mean(0)[None], 30, seed=8 + way) for way in range(2)}
    scores = score_trials(
        rows,
        torch.full((4,), bias),
        torch.tensor([[0, 1]] * 4),
        BaseQueries.of(proxies, base_q, truth),
        {way: NovelQueries.of(proxies, queries) for way, queries in novel.items()},
        base_accuracy_before=90.0,
    )
    queries = torch.cat([base_q, *novel.values()])
    labels = torch.cat([truth, torch.full((30,), N_BASE), torch.full((30,), N_BASE + 1)]).numpy()
    for trial in range(4):
        logits = torch.cat([queries @ proxies.T, queries @ rows[trial].T + bias], 1)
        predicted = logits.argmax(1).numpy()
        is_base = labels < N_BASE
        base = 100 * accuracy_score(labels[is_base], predicted[is_base])
        novel_accuracy = 100 * accuracy_score(labels[~is_base], predicted[~is_base])
        found = {name: values[trial] for name, values in scores.metrics.items()}
        assert found["base_accuracy"] == pytest.approx(base, abs=1e-3)
        assert found["novel_accuracy"] == pytest.approx(novel_accuracy, abs=1e-3)
        assert found["global_accuracy"] == pytest.approx(
            100 * accuracy_score(labels, predicted), abs=1e-3
        )
        assert found["forgetting"] == pytest.approx(90 - base, abs=1e-3)
        confused_percent = (predicted[~is_base][:, None] == np.arange(N_BASE)).sum(0)
        assert scores.confused_percent[trial].numpy() == pytest.approx(
            100 * confused_percent / 60, abs=1e-3
        )


def test_evaluation_equals_scikit_learns(
    base: Checkpoint, glyphs: Dataset, embedder: Embedder
) -> None:
    found = evaluate(base, glyphs, embedder)
    labels = [glyphs.label(name) for name in base.meta.classes]
    embeddings = torch.cat(embedder.classes(glyphs.test, labels))
    truth = np.repeat(np.arange(len(labels)), 50)
    predicted = (embeddings @ base.head.proxies.T).argmax(1).numpy()
    assert found.base_accuracy == pytest.approx(100 * accuracy_score(truth, predicted))
    recalls = 100 * recall_score(truth, predicted, average=None)
    assert [row.accuracy for row in found.per_class] == pytest.approx(list(recalls))
    assert found.forgetting == pytest.approx(0)
    table = confusion_matrix(truth, predicted)
    np.fill_diagonal(table, 0)
    assert found.confusions[0].n == table.max()


def test_f1_and_harmonic_mean_agree_on_a_binary_task() -> None:
    truth, guess = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    precision, recall = 2 / 3, 2 / 3
    assert f1_score(truth, guess) == pytest.approx(
        harmonic_mean(np.array([precision]), np.array([recall]))[0]
    )


def test_the_interval_is_students_over_class_means() -> None:
    means = np.array([60.0, 65.0, 80.0])
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert t_interval(means) == pytest.approx((low, high))
    assert t_interval(means[:1]) is None


def test_a_summary_from_sums_equals_one_from_all_values() -> None:
    values = [
        np.array([50.0, 60.0, 70.0]),
        np.array([80.0, 90.0, 85.0]),
        np.array([10.0, 20.0, 30.0]),
    ]
    summary = summarise(
        np.array([3.0, 3.0, 3.0]),
        np.array([v.sum() for v in values]),
        np.array([(v**2).sum() for v in values]),
    )
    means = np.array([v.mean() for v in values])
    assert summary.mean == pytest.approx(means.mean())
    assert summary.std_between == pytest.approx(means.std(ddof=1))
    assert summary.std_within == pytest.approx(np.sqrt(np.mean([v.var(ddof=1) for v in values])))
    assert summary.ci95 == pytest.approx(t_interval(means))


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """2,000 sweeps whose trials are correlated within a class, as real ones are."""
    rng, truth, covered = np.random.default_rng(0), 60.0, 0
    for _ in range(2000):
        difficulty = rng.normal(truth, 15, 30)
        values = difficulty[:, None] + rng.normal(0, 8, (30, 20))
        found = summarise(np.full(30, 20.0), values.sum(1), (values**2).sum(1)).ci95
        assert found is not None
        covered += found[0] <= truth <= found[1]
    assert 93 <= 100 * covered / 2000 <= 97
