"""What a report shows beyond its numbers: curves, confusions, a map, support images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from lowshot_cli.sweep.tiles import Tile, draw_tile
from lowshot_cli.sweep.trials import novel_rows

# Points of base accuracy that may be lost, along the trade-off curve.
BUDGETS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0)


_MAPPED_CLASSES, _MAPPED_QUERIES = 6, 60


_SHOWN_CLASSES, _FEW_SHOTS = 6, 5


@dataclass(frozen=True)
class TradeOff:
    """NCR in percent at each of `BUDGETS`, mean over novel classes with one trial each."""

    method: str
    shots: int
    recall: tuple[float, ...]


@dataclass(frozen=True)
class EmbeddingMap:
    """Embeddings in the two directions in which class means differ most.

    Attributes:
        base: `(C, 2)` means of base classes.
        names: of the novel classes.
        queries: per novel class the places `(q, 2)` of its test images.
        proxies: `(n, 2)` places of their rows.
        method: that made the rows.
        shots: that they were made of.
    """

    base: FloatArray
    names: tuple[str, ...]
    queries: tuple[FloatArray, ...]
    proxies: FloatArray
    method: str
    shots: int


@dataclass(frozen=True)
class SupportImages:
    """The draws with which a class did best and worst, each with its NCR@2 in percent.

    `best` and `worst` are `(k, 3, H, W)` uint8.
    """

    name: str
    ncr_at_2: float
    best: Tensor
    worst: Tensor


@dataclass(frozen=True)
class ReportData:
    """Material of a report.

    Attributes:
        trade_offs: per method, with the most shots.
        novel_names: of the groups of novel classes.
        base_names: of the base classes.
        confused_percent: `(G, C)` percent of each group's test images that each base class takes,
            with the last method and the most shots.
        map: of the embeddings, with the last method that leaves the base model as it is.
        supports: of the hardest and of the easiest classes.
        supports_of: method and number of shots of these.
    """

    trade_offs: tuple[TradeOff, ...]
    novel_names: tuple[str, ...]
    base_names: tuple[str, ...]
    confused_percent: FloatArray
    map: EmbeddingMap | None
    supports: tuple[SupportImages, ...]
    supports_of: tuple[str, int]


def collect(result: SweepResult, config: Config) -> ReportData:
    """Collect what a report shows; of a sequence of sessions, nothing but its names.

    Args:
        result: of the sweep.
        config: `seed` and `finetune`.
    """
    plan, embedded, classes = result.plan, result.embedded, result.summary.get("classes", [])
    last, most = plan.methods[-1], max(plan.shots)
    methods = [m for m in plan.methods if METHODS[m].curve and not plan.sequence]
    trade_offs, rows, tile = [], None, None
    for method in methods:
        tile = _one_trial_each(method, most, plan, embedded)
        rows = novel_rows(tile, embedded, config)
        units = torch.from_numpy(tile.units)
        reached = novel_recall(rows, units, embedded.base, embedded.novel, BUDGETS)
        trade_offs.append(TradeOff(method, most, tuple(reached.mean(0).tolist())))
    few = max((s for s in plan.shots if s <= _FEW_SHOTS), default=min(plan.shots))
    drawn = [c for c in classes if (c["method"], c["shots"]) == (last, few)]
    return ReportData(
        trade_offs=tuple(trade_offs),
        novel_names=plan.names,
        base_names=embedded.checkpoint.base_classes,
        confused_percent=result.totals.confused_percent(last, most),
        map=_map(tile, rows, plan, embedded) if tile and rows is not None else None,
        supports=_supports(drawn, embedded),
        supports_of=(last, few),
    )


def _one_trial_each(method: str, shots: int, plan: Plan, embedded: SweepEmbeddings) -> Tile:
    groups = np.arange(len(plan.groups))
    nothing = np.zeros_like(groups)
    available, avoided = embedded.available, embedded.avoided
    return draw_tile(method, shots, groups, nothing, plan, available, avoided)


def _map(tile: Tile, rows: Tensor, plan: Plan, embedded: SweepEmbeddings) -> EmbeddingMap | None:
    """None where the base model is right about no test image, which leaves nothing to place."""
    if not len(embedded.base.embeddings):
        return None
    chosen = np.unique(np.linspace(0, len(plan.groups) - 1, _MAPPED_CLASSES).round().astype(int))
    labels = [plan.groups[group][0] for group in chosen]
    return place_on_map(
        compute_class_means(embedded.base.embeddings, embedded.base_truth[embedded.base_right]),
        {embedded.dataset.class_names[lab]: embedded.novel[lab].embeddings for lab in labels},
        rows[torch.from_numpy(chosen), 0],
        tile.method,
        tile.shots,
    )


def compute_class_means(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Normalised mean `(C, D)` of the embeddings `(N, D)` of each label `(N,)` that occurs."""
    found, place = labels.unique(return_inverse=True)
    sums = torch.zeros(len(found), embeddings.shape[1]).index_add_(0, place, embeddings)
    return F.normalize(sums, dim=1)


def place_on_map(
    base: Tensor, queries: Mapping[str, Tensor], rows: Tensor, method: str, shots: int
) -> EmbeddingMap:
    """Place embeddings on the plane in which class means differ most (principal components).

    Args:
        base: `(C, D)` means of base classes.
        queries: per novel class the embeddings `(q, D)` of its test images.
        rows: `(n, D)` of the same classes.
        method: that made the rows.
        shots: that they were made of.
    """
    means = torch.cat([base, torch.stack([found.mean(0) for found in queries.values()])])
    centre = means.mean(0)
    directions = torch.linalg.svd(means - centre, full_matrices=False).Vh[:2]

    def place(embeddings: Tensor) -> FloatArray:
        found: FloatArray = ((embeddings - centre) @ directions.T).double().numpy()
        return found

    return EmbeddingMap(
        base=place(base),
        names=tuple(queries),
        queries=tuple(place(found[:_MAPPED_QUERIES]) for found in queries.values()),
        proxies=place(rows),
        method=method,
        shots=shots,
    )


def collect_for_model(
    checkpoint: Checkpoint, dataset: Dataset, embedder: Embedder
) -> tuple[TradeOff | None, EmbeddingMap | None]:
    """What the novel classes of a model cost together, and where they lie.

    None where no novel class has test images.

    Args:
        checkpoint: the model.
        dataset: the one it was trained on.
        embedder: of the checkpoint's network.
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
    truth = torch.arange(len(base)).repeat_interleave(torch.tensor([len(b) for b in base]))
    queries, proxies = torch.cat(base), checkpoint.head.base.proxies
    rows = checkpoint.head.proxies[[checkpoint.position(name) for name in inside]]
    recall = novel_recall(
        rows[None],
        torch.arange(len(inside))[None],
        BaseQueries.of(proxies, queries, truth),
        {number: NovelQueries.of(proxies, embeddings) for number, embeddings in enumerate(novel)},
        BUDGETS,
    )
    records = dict(zip(checkpoint.novel_classes, checkpoint.meta.supports, strict=True))
    method, shots = records[inside[0]].method, len(records[inside[0]].pixel_hashes)
    few = dict(list(zip(inside, novel, strict=True))[:_MAPPED_CLASSES])
    shown = place_on_map(compute_class_means(queries, truth), few, rows[: len(few)], method, shots)
    return TradeOff(method, shots, tuple(recall[0].tolist())), shown


def _supports(
    classes: Sequence[dict[str, Any]], embedded: SweepEmbeddings
) -> tuple[SupportImages, ...]:
    ordered = sorted(classes, key=lambda entry: entry["ncr_at_2"])
    hardest = ordered[: _SHOWN_CLASSES - 2]
    easiest = [entry for entry in ordered[-2:] if entry not in hardest]
    pixels = embedded.dataset.train.pixels
    return tuple(
        SupportImages(
            entry["class"],
            entry["ncr_at_2"],
            pixels[torch.tensor(entry["best_support"][0])],
            pixels[torch.tensor(entry["worst_support"][0])],
        )
        for entry in (*hardest, *easiest)
    )
