"""What trials reach, many at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.evaluation.statistics import FloatArray, harmonic_mean
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.models.head import nearest_proxies

NCR_POINTS = (2.0, 5.0)


_BLOCK = 32


METRICS = (
    "novel_accuracy",
    "base_accuracy",
    "global_accuracy",
    "harmonic_mean",
    "forgetting",
    "ncr_at_2",
    "ncr_at_5",
)


@dataclass(frozen=True)
class NovelQueries:
    """Test queries of one novel class.

    Attributes:
        embeddings: `(Q, D)` unit embeddings.
        best: `(Q,)` largest base cosine of each.
        nearest: `(Q, C)` fp32 one-hot of the base class that has it.
    """

    embeddings: Tensor
    best: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, proxies: Tensor, embeddings: Tensor) -> NovelQueries:
        """Find the best base class of each query once for all trials."""
        best, nearest = nearest_proxies(embeddings, proxies)
        return cls(embeddings, best, F.one_hot(nearest, len(proxies)).float())


@dataclass(frozen=True)
class Scores:
    """What a tile of trials reaches.

    Attributes:
        metrics: per name in `METRICS` the values `(T,)`, percent or points.
        confused_percent: `(T, C)` percent of the novel queries that each base class took.
    """

    metrics: dict[str, FloatArray]
    confused_percent: Tensor


def score_trials(
    rows: Tensor,
    bias: Tensor,
    units: Tensor,
    base: BaseQueries,
    novel: Mapping[int, NovelQueries],
    base_accuracy_before: float,
) -> Scores:
    """Score trials without ever forming the logits of all classes.

    A query's best base cosine is the same in every trial, so one cosine per query decides.

    Args:
        rows: `(T, W, D)` unit novel rows.
        bias: `(T,)` added to the novel cosines.
        units: `(T, W)` int64 label of the novel class of each row, on the processor.
        base: base test queries.
        novel: test queries by label.
        base_accuracy_before: pristine base accuracy in percent.
    """
    margins = base.margins(rows)
    base_accuracy = base.accuracy(margins, bias).cpu().numpy()
    shifts = base.critical_shifts(margins, NCR_POINTS)
    right = rows.new_zeros(len(rows), dtype=torch.float64)
    reached = rows.new_zeros(len(rows), len(NCR_POINTS), dtype=torch.float64)
    confused_percent = rows.new_zeros(len(rows), next(iter(novel.values())).nearest.shape[1])
    n_novel = torch.zeros(len(rows), dtype=torch.float64)
    for label in units.unique().tolist():
        queries, members = novel[label], (units == label).any(1).nonzero().squeeze(1)
        for part, chosen in _blocks(members):
            own, nearest = _own_margins(rows[chosen], units[chosen] == label, queries)
            threshold = bias[chosen][:, None]
            hits = (own < threshold).sum(1)
            reach = (own[:, None, :] < shifts[chosen][:, :, None]).sum(2)
            lost = (nearest >= threshold).float() @ queries.nearest
            right[part] += hits[: len(part)]
            reached[part] += reach[: len(part)]
            confused_percent[part] += lost[: len(part)]
        n_novel[members] += len(queries.best)
    right, reached, confused_percent = right.cpu(), reached.cpu(), confused_percent.cpu()
    novel_accuracy = (100 * right / n_novel).numpy()
    n_all = base.total + n_novel.numpy()
    ncr = (100 * reached / n_novel[:, None]).numpy()
    total_right = base_accuracy * base.total / 100 + right.numpy()
    share = 100 * confused_percent / n_novel[:, None].float()
    metrics = {
        "novel_accuracy": novel_accuracy,
        "base_accuracy": base_accuracy,
        "global_accuracy": 100 * total_right / n_all,
        "harmonic_mean": harmonic_mean(base_accuracy, novel_accuracy),
        "forgetting": base_accuracy_before - base_accuracy,
        "ncr_at_2": ncr[:, 0],
        "ncr_at_5": ncr[:, 1],
    }
    return Scores({name: values.round(4) + 0.0 for name, values in metrics.items()}, share)


def novel_recall(
    rows: Tensor,
    units: Tensor,
    base: BaseQueries,
    novel: Mapping[int, NovelQueries],
    points: tuple[float, ...],
) -> Tensor:
    """NCR at several budgets: `(T, len(points))` percent of the novel queries of each trial.

    Args:
        rows: `(T, W, D)` unit novel rows.
        units: `(T, W)` int64 label of the novel class of each row, on the processor.
        base: base test queries.
        novel: test queries by label.
        points: of base accuracy that may be lost, ascending.
    """
    shifts = base.critical_shifts(base.margins(rows), points)
    reached, total = rows.new_zeros(len(rows), len(points)), torch.zeros(len(rows), 1)
    for label in units.unique().tolist():
        queries, members = novel[label], (units == label).any(1).nonzero().squeeze(1)
        for part, chosen in _blocks(members):
            own, _ = _own_margins(rows[chosen], units[chosen] == label, queries)
            reach = (own[:, None, :] < shifts[chosen][:, :, None]).sum(2)
            reached[part] += reach[: len(part)]
        total[members] += len(queries.best)
    return 100 * reached.cpu() / total


def _blocks(members: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of trials `(b,)`, and each padded to `_BLOCK` by repeating its last.

    With one shape for all products a row does not depend on how many other trials share its class.
    """
    for part in members.split(_BLOCK):
        yield part, torch.cat([part, part[-1:].expand(_BLOCK - len(part))])


def _own_margins(rows: Tensor, is_own: Tensor, queries: NovelQueries) -> tuple[Tensor, Tensor]:
    """How the queries of a class fare in trials that have the class.

    Args:
        rows: `(b, W, D)` novel rows.
        is_own: `(b, W)` bool, which of them is the class's, on the processor.
        queries: `Q` of them.

    Returns:
        Margins `(b, Q)` to the class's own row, infinite where another novel row is at least as
        near; margins `(b, Q)` to the nearest novel row, whichever it is.
    """
    trials, ways, size = rows.shape
    cosines = (rows.reshape(-1, size) @ queries.embeddings.T).view(trials, ways, -1)
    nearest = queries.best - cosines.amax(1)
    if ways == 1:
        return nearest, nearest
    is_own = is_own.to(rows.device)
    mine = cosines.masked_fill(~is_own[:, :, None], -torch.inf).amax(1)
    others = cosines.masked_fill(is_own[:, :, None], -torch.inf).amax(1)
    return (queries.best - mine).masked_fill(others >= mine, torch.inf), nearest
