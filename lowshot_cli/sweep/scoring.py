"""The metrics of many trials at once.

A margin is how far a query's best base score lies above its best novel one. If every novel score
is shifted by s, a base query stays right while its margin is above s, and a novel query is right
once its margin is below s; ties count as wrong for both.

Sizes in shapes: T trials, b of them in a block, W novel proxies per trial, C base classes, n base
queries, Q queries of one novel class, P budgets, R the size of a proxy and of embeddings as proxies
read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.evaluation.statistics import FloatArray, MetricName, harmonic_mean
from lowshot_cli.methods.operating_point import BaseQueries, score_base
from lowshot_cli.models.head import as_read, nearest_proxies

# Budgets of `ncr_at_2` and `ncr_at_5`, in points of base accuracy.
NCR_POINTS = (2.0, 5.0)
# Trials to multiply at once.
_BLOCK = 32


@dataclass(frozen=True)
class NovelQueries:
    """Test queries of one novel class.

    Attributes:
        embeddings: `(Q, R)`, as proxies read them.
        best: `(Q,)` largest base score of each.
        nearest: `(Q, C)` fp32 one-hot of the base class that has it.
    """

    embeddings: Tensor
    best: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, proxies: Tensor, embeddings: Tensor) -> NovelQueries:
        """Find the best base class of each embedding `(Q, D)` once for all trials."""
        best, nearest = nearest_proxies(embeddings, proxies)
        return cls(as_read(embeddings, proxies), best, F.one_hot(nearest, len(proxies)).float())


@dataclass(frozen=True)
class Scores:
    """The metrics of a tile of trials.

    Attributes:
        metrics: per name in `METRICS` the values `(T,)`, percent or points.
        confused_percent: `(T, C)` percent of the novel queries that go to each base class.
    """

    metrics: dict[MetricName, FloatArray]
    confused_percent: Tensor


def score_trials(
    proxies: Tensor,
    bias: Tensor,
    units: Tensor,
    base: BaseQueries,
    novel: Mapping[int, NovelQueries],
    *,
    base_accuracy_before: float,
) -> Scores:
    """Score trials without computing the logits of all classes.

    A query's best base score is the same in every trial, so one dot product per query decides.

    Args:
        proxies: `(T, W, R)` novel proxies.
        bias: `(T,)` added to the novel scores.
        units: `(T, W)` int64 label of the novel class of each proxy, on the CPU.
        base: base test queries.
        novel: test queries by label.
        base_accuracy_before: test accuracy of the base model in percent.
    """
    kept, shifts = score_base(proxies, base, bias, NCR_POINTS)  # (T,) and (T, P)
    right = proxies.new_zeros(len(proxies), dtype=torch.float64)
    reached = proxies.new_zeros(len(proxies), len(NCR_POINTS), dtype=torch.float64)
    confused = proxies.new_zeros(len(proxies), next(iter(novel.values())).nearest.shape[1])
    n_novel = torch.zeros(len(proxies), dtype=torch.float64)
    for block in _blocks(proxies, units, novel):
        part, count = block.trials, len(block.trials)
        threshold = bias[block.padded][:, None]  # (b, 1)
        hits = (block.own < threshold).sum(1)  # (b,)
        # A query that no novel proxy wins goes to its nearest base class.
        lost = (block.nearest >= threshold).float() @ block.queries.nearest  # (b, C)
        right[part] += hits[:count]
        reached[part] += _count_reached(block, shifts)[:count]
        confused[part] += lost[:count]
        n_novel[part] += len(block.queries.best)
    right, reached, confused = right.cpu(), reached.cpu(), confused.cpu()
    base_accuracy = kept.cpu().numpy()
    novel_accuracy = (100 * right / n_novel).numpy()
    n_all = base.total + n_novel.numpy()
    ncr = (100 * reached / n_novel[:, None]).numpy()
    total_right = base_accuracy * base.total / 100 + right.numpy()
    confused_percent = 100 * confused / n_novel[:, None].float()
    metrics: dict[MetricName, FloatArray] = {
        "novel_accuracy": novel_accuracy,
        "base_accuracy": base_accuracy,
        "global_accuracy": 100 * total_right / n_all,
        "harmonic_mean": harmonic_mean(base_accuracy, novel_accuracy),
        "forgetting": base_accuracy_before - base_accuracy,
        "ncr_at_2": ncr[:, 0],
        "ncr_at_5": ncr[:, 1],
    }
    # Adding 0 makes -0.0 a plain 0.
    rounded = {name: values.round(4) + 0.0 for name, values in metrics.items()}
    return Scores(rounded, confused_percent)


def novel_recall(
    proxies: Tensor,
    units: Tensor,
    base: BaseQueries,
    novel: Mapping[int, NovelQueries],
    points: tuple[float, ...],
) -> Tensor:
    """NCR at several budgets: `(T, P)` percent of the novel queries of each trial.

    Args:
        proxies: `(T, W, R)` novel proxies.
        units: `(T, W)` int64 label of the novel class of each proxy, on the CPU.
        base: base test queries.
        novel: test queries by label.
        points: P budgets of base accuracy that may be lost, in points, ascending.
    """
    shifts = base.critical_shifts(base.margins(proxies), points)  # (T, P)
    reached, total = proxies.new_zeros(len(proxies), len(points)), torch.zeros(len(proxies), 1)
    for block in _blocks(proxies, units, novel):
        reached[block.trials] += _count_reached(block, shifts)[: len(block.trials)]
        total[block.trials] += len(block.queries.best)
    return 100 * reached.cpu() / total


@dataclass(frozen=True)
class _Block:
    """The queries of one class in up to `_BLOCK` of the trials that add it.

    Attributes:
        queries: the Q test queries of the class.
        trials: positions of the trials, at most b.
        padded: `(b,)` the same, padded to `_BLOCK` with the last.
        own: `(b, Q)` margins to the class's own proxy.
        nearest: `(b, Q)` margins to the nearest novel proxy.
    """

    queries: NovelQueries
    trials: Tensor
    padded: Tensor
    own: Tensor
    nearest: Tensor


def _blocks(proxies: Tensor, units: Tensor, novel: Mapping[int, NovelQueries]) -> Iterator[_Block]:
    """Go through the novel classes and, for each, through blocks of the trials that add it.

    All products of a class have one shape, so the bits of a trial's result do not depend on how
    many other trials add the class.
    """
    for label in units.unique().tolist():
        queries = novel[label]
        members = (units == label).any(1).nonzero().squeeze(1)
        for part in members.split(_BLOCK):
            padded = torch.cat([part, part[-1:].expand(_BLOCK - len(part))])
            own, nearest = _own_margins(proxies[padded], units[padded] == label, queries)
            yield _Block(queries, part, padded, own, nearest)


def _count_reached(block: _Block, shifts: Tensor) -> Tensor:
    """How many queries `(b, P)` are right at the shifts `(T, P)` of all trials."""
    reach = block.own[:, None, :] < shifts[block.padded][:, :, None]  # (b, P, Q)
    return reach.sum(2)


def _own_margins(proxies: Tensor, is_own: Tensor, queries: NovelQueries) -> tuple[Tensor, Tensor]:
    """Margins of the queries of a class in trials that add the class.

    Args:
        proxies: `(b, W, R)` novel proxies.
        is_own: `(b, W)` bool, which of them belong to the class, on the CPU.
        queries: the Q queries of the class.

    Returns:
        Margins `(b, Q)` to the class's own proxy, infinite where another novel proxy is at least as
        near; margins `(b, Q)` to the nearest novel proxy of any class.
    """
    trials, ways, size = proxies.shape
    flat = proxies.reshape(-1, size) @ queries.embeddings.T  # (b·W, Q)
    scores = flat.view(trials, ways, -1)  # (b, W, Q)
    nearest = queries.best - scores.amax(1)  # (b, Q)
    if ways == 1:
        return nearest, nearest
    is_own = is_own.to(proxies.device)
    mine = scores.masked_fill(~is_own[:, :, None], -torch.inf).amax(1)  # (b, Q)
    others = scores.masked_fill(is_own[:, :, None], -torch.inf).amax(1)  # (b, Q)
    return (queries.best - mine).masked_fill(others >= mine, torch.inf), nearest
