"""Collects what a report shows beyond its numbers: curves, confusions, a map, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.evaluation.statistics import FloatArray
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.sweep.embeddings import SweepEmbeddings
from lowshot_cli.sweep.plan import Plan
from lowshot_cli.sweep.run import SweepResult
from lowshot_cli.sweep.scoring import NovelQueries, novel_recall
from lowshot_cli.sweep.summary import ClassResult
from lowshot_cli.sweep.tiles import Tile, draw_tile
from lowshot_cli.sweep.trials import make_novel_proxies

# Points of base accuracy that may be lost, at each point of the trade-off curve.
BUDGETS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)
_MAPPED_CLASSES, _MAPPED_QUERIES = 6, 60
_SHOWN_CLASSES, _FEW_SHOTS = 6, 5


@dataclass(frozen=True)
class TradeOff:
    """NCR in percent at each of `BUDGETS`: mean over novel classes, one trial each."""

    method: str
    shots: int
    recall: tuple[float, ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings in the two directions in which class means differ most.

    Attributes:
        base: `(C, 2)` means of base classes.
        names: of the novel classes.
        queries: positions `(q, 2)` of the test images of each novel class.
        proxies: `(n, 2)` positions of their proxies.
        method: the method that made the proxies.
        shots: support images that made each proxy.
    """

    base: FloatArray
    names: tuple[str, ...]
    queries: tuple[FloatArray, ...]
    proxies: FloatArray
    method: str
    shots: int


@dataclass(frozen=True)
class SupportImages:
    """Support images of the best and worst trial of a class, `(k, 3, H, W)` uint8 each.

    `ncr_at_2` is the mean over its trials, in percent.
    """

    name: str
    ncr_at_2: float
    best: Tensor
    worst: Tensor


@dataclass(frozen=True)
class ReportData:
    """Content of the report of a sweep.

    Attributes:
        trade_offs: one per method, with the most shots.
        novel_names: of the groups of novel classes.
        base_names: of the base classes.
        confused_percent: `(G, C)` percent of each group's test images that each base class takes,
            with the last method and the most shots.
        map: of the embeddings, with the last method that leaves the base model unchanged.
        supports: of the hardest and the easiest classes.
        supports_of: method and number of shots of `supports`.
    """

    trade_offs: tuple[TradeOff, ...]
    novel_names: tuple[str, ...]
    base_names: tuple[str, ...]
    confused_percent: FloatArray
    map: EmbeddingMap | None
    supports: tuple[SupportImages, ...]
    supports_of: tuple[str, int]


@dataclass(frozen=True)
class ModelReportData:
    """Content of the report of a model.

    Attributes:
        names: of its classes in head order.
        trade_off: of its novel classes together; None if none of them has test images.
        map: of the embeddings; None in the same case.
        supports: support images `(k, 3, H, W)` uint8 of each novel class learnt from the dataset.
        budget: points of base accuracy that the novel bias may cost; None without a bias.
    """

    names: tuple[str, ...]
    trade_off: TradeOff | None
    map: EmbeddingMap | None
    supports: Mapping[str, Tensor]
    budget: float | None


def collect(result: SweepResult, config: Config) -> ReportData:
    """Collect what the report of a sweep shows; curves and map are empty for a sequence.

    Args:
        result: of the sweep.
        config: its `seed` and `finetune` are read.
    """
    plan, embedded = result.plan, result.embedded
    last, most = plan.methods[-1], max(plan.shots)
    methods = [m for m in plan.methods if METHODS[m].curve and not plan.sequence]
    trade_offs, proxies, tile = [], None, None
    for method in methods:
        tile = _one_trial_each(method, most, plan, embedded)
        proxies = make_novel_proxies(tile, embedded, config)[0]  # (G, W, R)
        units = torch.from_numpy(tile.units)  # (G, W)
        reached = novel_recall(proxies, units, embedded.base, embedded.novel, BUDGETS)  # (G, P)
        trade_offs.append(TradeOff(method, most, tuple(reached.mean(0).tolist())))
    few = max((s for s in plan.shots if s <= _FEW_SHOTS), default=min(plan.shots))
    drawn = [one for one in result.summary.classes if (one.method, one.shots) == (last, few)]
    return ReportData(
        trade_offs=tuple(trade_offs),
        novel_names=plan.names,
        base_names=embedded.checkpoint.base_classes,
        confused_percent=result.totals.confused_percent(last, most),
        map=_map(tile, proxies, plan, embedded) if tile and proxies is not None else None,
        supports=_supports(drawn, embedded),
        supports_of=(last, few),
    )


def _one_trial_each(method: str, shots: int, plan: Plan, embedded: SweepEmbeddings) -> Tile:
    groups = np.arange(len(plan.groups))
    nothing = np.zeros_like(groups)
    return draw_tile(
        plan,
        embedded.available,
        embedded.avoided,
        method=method,
        shots=shots,
        groups=groups,
        trials=nothing,
    )


def _map(tile: Tile, proxies: Tensor, plan: Plan, embedded: SweepEmbeddings) -> EmbeddingMap | None:
    """Return None if the base model gets no test image right, as there is nothing to place."""
    if not len(embedded.base.embeddings):
        return None
    chosen = np.unique(np.linspace(0, len(plan.groups) - 1, _MAPPED_CLASSES).round().astype(int))
    labels = [plan.groups[group][0] for group in chosen]
    return place_on_map(
        compute_class_means(embedded.base.embeddings, embedded.base_truth[embedded.base_right]),
        {embedded.dataset.class_names[lab]: embedded.novel[lab].embeddings for lab in labels},
        proxies[torch.from_numpy(chosen), 0],
        tile.method,
        tile.shots,
    )


def compute_class_means(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Normalised mean `(C, D)` of the embeddings `(N, D)` of each label `(N,)` that occurs."""
    found, place = labels.unique(return_inverse=True)  # (C,) and (N,)
    sums = torch.zeros(len(found), embeddings.shape[1]).index_add_(0, place, embeddings)
    return F.normalize(sums, dim=1)


def place_on_map(
    base: Tensor, queries: Mapping[str, Tensor], proxies: Tensor, method: str, shots: int
) -> EmbeddingMap:
    """Place embeddings on the plane in which class means differ most (principal components).

    Args:
        base: `(C, D)` means of base classes.
        queries: embeddings `(q, D)` of the test images of each novel class.
        proxies: `(n, R)` proxies of the same classes; their direction is shown.
        method: the method that made the proxies.
        shots: support images that made each proxy.
    """
    means = torch.cat([base, torch.stack([found.mean(0) for found in queries.values()])])  # (M, D)
    centre = means.mean(0)  # (D,)
    directions = torch.linalg.svd(means - centre, full_matrices=False).Vh[:2]  # (2, D)

    def place(embeddings: Tensor) -> FloatArray:
        found: FloatArray = ((embeddings - centre) @ directions.T).double().numpy()
        return found

    return EmbeddingMap(
        base=place(base),
        names=tuple(queries),
        queries=tuple(place(found[:_MAPPED_QUERIES]) for found in queries.values()),
        proxies=place(F.normalize(proxies[:, : base.shape[1]], dim=1)),
        method=method,
        shots=shots,
    )


def collect_for_model(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder
) -> ModelReportData:
    """Collect what the report of a model shows.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: with the checkpoint's network.
    """
    records = dict(zip(checkpoint.novel_classes, checkpoint.meta.supports, strict=True))
    trade_off, shown = _novel_classes(checkpoint, dataset, embedder)
    return ModelReportData(
        names=checkpoint.meta.classes,
        trade_off=trade_off,
        map=shown,
        supports={
            name: dataset.train.pixels[torch.tensor(record.indices)]
            for name, record in records.items()
            if record.indices
        },
        budget=checkpoint.meta.max_forgetting,
    )


def _novel_classes(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder
) -> tuple[TradeOff | None, EmbeddingMap | None]:
    """The trade-off of a model's novel classes together, and the map of its embeddings.

    Both are None if no novel class has test images.
    """
    own = {name: checkpoint.dataset_name(name) for name in checkpoint.novel_classes}
    tested = {n: label for n, label in dataset.labels.items() if len(dataset.test.of_class(label))}
    inside = [name for name in checkpoint.novel_classes if own[name] in tested]
    if not inside:
        return None, None
    labels = checkpoint.base_labels(dataset)
    novel_labels = [tested[own[name]] for name in inside]
    made = embedder.classes(dataset.test, [*labels, *novel_labels])
    base, novel = made[: len(labels)], made[len(labels) :]
    truth = torch.arange(len(base)).repeat_interleave(torch.tensor([len(b) for b in base]))  # (N,)
    queries, base_proxies = torch.cat(base), checkpoint.head.base.proxies  # (N, D), (C, D)
    proxies = checkpoint.head.proxies[[checkpoint.position(name) for name in inside]]  # (W, D)
    recall = novel_recall(
        proxies[None],
        torch.arange(len(inside))[None],
        BaseQueries.of(base_proxies, queries, truth),
        {number: NovelQueries.of(base_proxies, each) for number, each in enumerate(novel)},
        BUDGETS,
    )
    records = dict(zip(checkpoint.novel_classes, checkpoint.meta.supports, strict=True))
    method, shots = records[inside[0]].method, len(records[inside[0]].pixel_hashes)
    few = dict(list(zip(inside, novel, strict=True))[:_MAPPED_CLASSES])
    means = compute_class_means(queries, truth)
    shown = place_on_map(means, few, proxies[: len(few)], method, shots)
    return TradeOff(method, shots, tuple(recall[0].tolist())), shown


def _supports(
    classes: Sequence[ClassResult], embedded: SweepEmbeddings
) -> tuple[SupportImages, ...]:
    ordered = sorted(classes, key=lambda one: one.metrics["ncr_at_2"])
    hardest = ordered[: _SHOWN_CLASSES - 2]
    easiest = [one for one in ordered[-2:] if one not in hardest]
    pixels = embedded.dataset.train.pixels
    return tuple(
        SupportImages(
            one.name,
            one.metrics["ncr_at_2"],
            pixels[torch.tensor(one.best_support[0])],
            pixels[torch.tensor(one.worst_support[0])],
        )
        for one in (*hardest, *easiest)
    )
