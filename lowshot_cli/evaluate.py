"""Evaluation of one model on its test images, and of many trials at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.data import Dataset
from lowshot_cli.embed import Embedder
from lowshot_cli.errors import CheckpointError
from lowshot_cli.imprint import BaseQueries
from lowshot_cli.metrics import FloatArray, harmonic_mean
from lowshot_cli.model import at_once, nearest_rows

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
class ClassAccuracy:
    """Accuracy of one class in percent over its `n` test images, None where there are none."""

    name: str
    accuracy: float | None
    n: int
    is_base: bool


@dataclass(frozen=True)
class Confusion:
    """`n` test images of class `truth` that were taken for `taken_for`."""

    truth: str
    taken_for: str
    n: int


@dataclass(frozen=True)
class Evaluation:
    """A model on its test images; accuracies over all classes of the head, in percent.

    Base, novel accuracy and harmonic mean are None where there are no images of such classes.
    `counts` `(K, 3)` int64 has a row for each pair of classes that occurs, in ascending order:
    position of the class, position of the class that its images are taken for, how many are.
    """

    n_base: int
    n_novel: int
    base_accuracy: float | None
    novel_accuracy: float | None
    global_accuracy: float
    harmonic_mean: float | None
    forgetting: float | None
    per_class: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    counts: Tensor


def check_dataset(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse a dataset that is not the checkpoint's.

    Raises:
        CheckpointError: another dataset, or another content under the same name.
    """
    meta = checkpoint.meta
    if meta.dataset != dataset.name:
        raise CheckpointError(
            f"the checkpoint was trained on {meta.dataset}, not on {dataset.name}",
            f"add --dataset {meta.dataset}, or name another --workdir or --checkpoint",
        )
    if meta.dataset_hash != dataset.content_hash:
        raise CheckpointError(
            f"the {dataset.name} data differ from those the checkpoint was trained on",
            "check --data-dir and --image-size",
        )


def evaluate(checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder) -> Evaluation:
    """Classify the test images of every class the model knows.

    Classes that were learnt from photos outside the dataset have no test images in it.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: of the checkpoint's network.

    Raises:
        CheckpointError: another dataset.
    """
    check_dataset(checkpoint, dataset)
    names = checkpoint.meta.classes
    inside = {n: own for n in names if (own := checkpoint.dataset_name(n)) in dataset.labels}
    made = embedder.each(dataset.test, [dataset.label(own) for own in inside.values()])
    return tally(checkpoint, zip(inside, made, strict=True))


def tally(
    checkpoint: Checkpoint, found: Iterable[tuple[str, Tensor]], beside_base: bool = True
) -> Evaluation:
    """Count how often a model is right.

    Args:
        checkpoint: the model.
        found: classes with embeddings `(n, D)` of their images, which need not be in memory all at
            once.
        beside_base: whether the images of base classes are those that the pristine base model was
            measured on, so that forgetting can be told.
    """
    names, n_base = checkpoint.meta.classes, checkpoint.meta.n_base
    positions = {name: position for position, name in enumerate(names)}
    order, sizes = [], [0] * len(names)

    def embeddings() -> Iterator[Tensor]:
        for name, part in found:
            order.append(positions[name])
            sizes[positions[name]] = len(part)
            yield part

    blocks = together(embeddings(), at_once(max(len(names), checkpoint.head.size)))
    none = torch.empty(0, dtype=torch.int64)
    predicted = torch.cat([none, *(checkpoint.head.predict(block) for block in blocks)])
    truth = torch.cat([none, *(none.new_full((sizes[place],), place) for place in order)])
    right = torch.bincount(truth[predicted == truth], minlength=len(names))
    cells, times = torch.stack([truth, predicted]).unique(dim=1, return_counts=True)
    table = torch.cat([cells, times[None]]).T

    def accuracy(part: slice) -> float | None:
        count = sum(sizes[part])
        return 100 * int(right[part].sum()) / count if count else None

    base, novel = accuracy(slice(n_base)), accuracy(slice(n_base, None))
    harmonic = None
    if base is not None and novel is not None:
        harmonic = harmonic_mean(np.array([base]), np.array([novel])).item()
    return Evaluation(
        n_base=n_base,
        n_novel=len(names) - n_base,
        base_accuracy=base,
        novel_accuracy=novel,
        global_accuracy=accuracy(slice(None)) or 0.0,
        harmonic_mean=harmonic,
        forgetting=None if base is None or not beside_base else checkpoint.base_accuracy - base,
        per_class=tuple(
            ClassAccuracy(name, accuracy(slice(i, i + 1)), size, i < n_base)
            for i, (name, size) in enumerate(zip(names, sizes, strict=True))
        ),
        confusions=_worst_confusions(table, names),
        counts=table,
    )


def together(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The same rows in fewer tensors, each of at least `rows` rows but the last."""
    waiting: list[Tensor] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= rows:
            yield torch.cat(waiting)
            waiting, count = [], 0
    if waiting:
        yield torch.cat(waiting)


def _worst_confusions(table: Tensor, names: Sequence[str], most: int = 5) -> tuple[Confusion, ...]:
    truth, taken, times = table.unbind(1)
    wrong = (truth != taken).nonzero().squeeze(1)
    worst = wrong[times[wrong].argsort(descending=True, stable=True)[:most]].tolist()
    return tuple(
        Confusion(names[int(truth[cell])], names[int(taken[cell])], int(times[cell]))
        for cell in worst
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
        best, nearest = nearest_rows(embeddings, proxies)
        return cls(embeddings, best, F.one_hot(nearest, len(proxies)).float())


@dataclass(frozen=True)
class Scores:
    """What a tile of trials reaches.

    Attributes:
        metrics: per name in `METRICS` the values `(T,)`, percent or points.
        swallowed: `(T, C)` percent of the novel queries that each base class took.
    """

    metrics: dict[str, FloatArray]
    swallowed: Tensor


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
    shifts = base.turning_points(margins, NCR_POINTS)
    right = rows.new_zeros(len(rows), dtype=torch.float64)
    reached = rows.new_zeros(len(rows), len(NCR_POINTS), dtype=torch.float64)
    swallowed = rows.new_zeros(len(rows), next(iter(novel.values())).nearest.shape[1])
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
            swallowed[part] += lost[: len(part)]
        n_novel[members] += len(queries.best)
    right, reached, swallowed = right.cpu(), reached.cpu(), swallowed.cpu()
    novel_accuracy = (100 * right / n_novel).numpy()
    n_all = base.total + n_novel.numpy()
    ncr = (100 * reached / n_novel[:, None]).numpy()
    total_right = base_accuracy * base.total / 100 + right.numpy()
    share = 100 * swallowed / n_novel[:, None].float()
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
    shifts = base.turning_points(base.margins(rows), points)
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
