"""Teaching a checkpoint: imprinting classes into it and fine-tuning them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.config import Config, FinetuneConfig, ImprintConfig
from lowshot_cli.data import Dataset, Images
from lowshot_cli.data.splits import draw_directions, draw_supports, split_holdout
from lowshot_cli.embed import Views, embed
from lowshot_cli.errors import CheckpointError, DataError, UsageError
from lowshot_cli.evaluate import check_dataset
from lowshot_cli.finetune import FullData, finetune_all_rows, finetune_full, finetune_rows
from lowshot_cli.imprint import (
    budget_of,
    calibrated,
    imprint,
    operating_bias,
    whitened,
)
from lowshot_cli.meta import SupportRecord
from lowshot_cli.model import EmbeddingNetwork, relabel, widened
from lowshot_cli.progress import OnProgress, silent


@dataclass(frozen=True)
class Drawn:
    """Support images of one class: indices into the training split and how to name them."""

    name: str
    indices: tuple[int, ...]
    described: tuple[str, ...]


def imprint_classes(
    checkpoint: Checkpoint,
    dataset: Dataset,
    network: EmbeddingNetwork,
    config: Config,
    replace_known: bool = False,
) -> tuple[Checkpoint, list[Drawn]]:
    """Add classes of the dataset from a few of their training images.

    The draw is that of trial 0 of a sweep with the same seed.

    Args:
        checkpoint: the model to add to.
        dataset: the one it was trained on.
        network: the checkpoint's embedding network.
        config: `seed` and `imprint`.
        replace_known: drop a class that the model knows and imprint it anew.

    Raises:
        UsageError: no class named, a known class, more shots than images.
        CheckpointError: another dataset.
        DataError: an unknown class.
    """
    options = config.imprint
    if not options.classes:
        raise UsageError("no class to imprint", "name one with --class")
    check_dataset(checkpoint, dataset)
    labels = {name: dataset.label(name) for name in options.classes}
    drawn = []
    for name, label in labels.items():
        if name in checkpoint.meta.classes:
            if not replace_known:
                raise UsageError(
                    f"the model already knows {name!r}", "add --replace to imprint it anew"
                )
            checkpoint = checkpoint.without_class(name)
        members = dataset.train.of_class(label)
        chosen = draw_supports(config.seed, label, [0], options.shots, len(members))[0]
        indices = members[torch.from_numpy(chosen)]
        row, support = _imprint_one(checkpoint, network, dataset, indices, label, config)
        record = support_record(dataset.train, indices, options.method)
        checkpoint = checkpoint.with_class(name, row, support, record)
        described = tuple(dataset.train.describe(i) for i in record.indices)
        drawn.append(Drawn(name, record.indices, described))
    return set_bias(checkpoint, _shared_budget(checkpoint, options)), drawn


def _shared_budget(checkpoint: Checkpoint, options: ImprintConfig) -> float | None:
    """All novel classes share one bias, so one that needs it keeps it when others are added."""
    needs_bias = checkpoint.head.bias != 0
    return budget_of("whitened" if needs_bias else options.method, options.max_forgetting)


def _imprint_one(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    dataset: Dataset,
    indices: Tensor,
    label: int,
    config: Config,
) -> tuple[Tensor, Tensor]:
    pixels, options = dataset.train.pixels[indices], config.imprint
    support = embed(network, pixels)
    if options.method == "random":
        direction = draw_directions(config.seed, label, [0], checkpoint.meta.embedding_size)[0]
        return widened(direction, checkpoint.head.size), support
    if options.method == "augmented":
        views = embed(network, pixels, views=augmented_views(options, dataset))
        return rows_of("imprint", views, checkpoint), support
    return rows_of(options.method, support, checkpoint), support


def rows_of(method: str, support: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Novel rows `(..., D)` that follow from supports `(..., k, D)` and the base model alone.

    `imprint` and `calibrated` are their papers' methods and read the trained part of embeddings.
    """
    if method == "whitened":
        return whitened(support, *checkpoint.statistics)
    size = checkpoint.meta.embedding_size
    trained, proxies = support[..., :size], checkpoint.head.base.proxies[:, :size]
    rows = imprint(trained) if method == "imprint" else calibrated(trained, proxies)
    return widened(rows, checkpoint.head.size)


def augmented_views(options: ImprintConfig, dataset: Dataset) -> Views:
    """The views that the method `augmented` averages, the same for every image."""
    return Views(options.views, dataset.mirror, seed=0)


def support_record(images: Images, indices: Tensor, method: str) -> SupportRecord:
    """Where support images came from, with a hash of each one's pixels."""
    numbers = tuple(int(i) for i in indices)
    return SupportRecord(
        method=method,
        indices=numbers,
        files=tuple(images.files[i] for i in numbers) if images.files else None,
        pixel_hashes=tuple(pixel_hash(images.pixels[i]) for i in numbers),
    )


def pixel_hash(pixels: Tensor) -> str:
    """Hex digest of one image's pixels."""
    return hashlib.blake2b(pixels.contiguous().numpy().data, digest_size=8).hexdigest()


def set_bias(checkpoint: Checkpoint, max_forgetting: float | None) -> Checkpoint:
    """Set the one bias of all novel classes; None means 0."""
    bias = 0.0
    if max_forgetting is not None and checkpoint.novel_classes:
        novel = checkpoint.head.proxies[checkpoint.meta.n_base :]
        bias = operating_bias(novel[None], checkpoint.calibration, max_forgetting).item()
    return replace(checkpoint, head=replace(checkpoint.head, bias=bias))


def expected_forgetting(checkpoint: Checkpoint) -> float:
    """Points of base accuracy that the novel classes cost, by the half of the hold-out that sets
    the bias.
    """
    if not checkpoint.novel_classes:
        return 0.0
    queries, head = checkpoint.calibration, checkpoint.head
    margins = queries.margins(head.proxies[head.n_base :][None])
    now = queries.accuracy(margins, torch.tensor([head.bias])).item()
    return 100 * int(queries.right_before.sum()) / queries.total - now


def finetune(
    checkpoint: Checkpoint,
    config: Config,
    dataset: Dataset | None = None,
    on_progress: OnProgress = silent,
) -> Checkpoint:
    """Fine-tune the novel classes of a checkpoint from their shots.

    Args:
        checkpoint: a model with novel classes.
        config: `seed` and `finetune`.
        dataset: the checkpoint's; needed for `scope: full` alone, which re-reads the images.
        on_progress: told about the steps of the whole network.

    Raises:
        UsageError: no novel class to fine-tune.
        CheckpointError: another dataset.
        DataError: a support image is gone or has changed.
    """
    options = config.finetune
    if not checkpoint.novel_classes:
        raise UsageError("the checkpoint has no novel class", "`lowshot imprint` adds one first")
    if options.scope == "full":
        if dataset is None:
            raise UsageError("--scope full needs the images", "name them with --data-dir")
        check_dataset(checkpoint, dataset)
        tuned = _finetune_network(checkpoint, dataset, config, on_progress)
    else:
        tuned = _finetune_head(checkpoint, options)
    return set_bias(tuned, budget_of("finetune", options.max_forgetting))


def _finetune_head(checkpoint: Checkpoint, options: FinetuneConfig) -> Checkpoint:
    """Fine-tune from the best start that the shots alone give, however they were imprinted."""
    head, n_base = checkpoint.head, checkpoint.meta.n_base
    support = torch.cat(checkpoint.supports)
    shots = torch.tensor([len(embeddings) for embeddings in checkpoint.supports])
    targets = torch.arange(len(shots)).repeat_interleave(shots)
    start = [rows_of("whitened", part, checkpoint) for part in checkpoint.supports]
    base_rows, rows = head.proxies[:n_base], torch.stack(start)
    if options.freezing == "always":
        rows = finetune_rows(rows[None], support[None], targets, checkpoint.shaping, options)[0]
    else:
        base_rows, rows = finetune_all_rows(rows, support, targets, checkpoint.shaping, options)
    return replace(checkpoint, head=replace(head, proxies=torch.cat([base_rows, rows])))


def full_data(
    checkpoint: Checkpoint, dataset: Dataset, supports: Sequence[Sequence[int]]
) -> FullData:
    """The fit images of the base classes and the support images of each novel class."""
    labels = [dataset.label(name) for name in checkpoint.base_classes]
    fit, _ = split_holdout(dataset.train, labels, checkpoint.meta.holdout_per_class)
    shots = torch.tensor([len(indices) for indices in supports])
    support = torch.tensor([index for indices in supports for index in indices])
    return FullData(
        base_pixels=dataset.train.pixels[fit],
        base_labels=relabel(dataset.train.labels[fit], labels),
        support_pixels=dataset.train.pixels[support],
        support_labels=torch.arange(len(shots)).repeat_interleave(shots) + len(labels),
        flip=dataset.mirror,
    )


def _finetune_network(
    checkpoint: Checkpoint, dataset: Dataset, config: Config, on_progress: OnProgress
) -> Checkpoint:
    for name, record in zip(checkpoint.novel_classes, checkpoint.meta.supports, strict=True):
        _check_support(name, record, dataset)
    data = full_data(checkpoint, dataset, [record.indices for record in checkpoint.meta.supports])
    network, head = checkpoint.network(), checkpoint.head
    proxies = finetune_full(
        network, head.proxies, head.scale, data, config.finetune, config.seed, on_progress
    )
    labels = [dataset.label(name) for name in checkpoint.base_classes]
    _, holdout = split_holdout(dataset.train, labels, checkpoint.meta.holdout_per_class)
    supports = embed(network, data.support_pixels)
    return replace(
        checkpoint,
        head=replace(head, proxies=proxies),
        backbone={name: t.detach().cpu() for name, t in network.backbone.state_dict().items()},
        holdout=embed(network, dataset.train.pixels[holdout]).half(),
        supports=tuple(supports.split([len(s) for s in checkpoint.supports])),
    )


def _check_support(name: str, record: SupportRecord, dataset: Dataset) -> None:
    for index, expected in zip(record.indices, record.pixel_hashes, strict=True):
        if index >= len(dataset.train.labels):
            raise DataError(f"support image #{index} of {name!r} is gone from the dataset")
        if pixel_hash(dataset.train.pixels[index]) != expected:
            raise DataError(
                f"support image #{index} of {name!r} has changed since it was imprinted"
            )


def from_trial(
    checkpoint: Checkpoint,
    dataset: Dataset,
    network: EmbeddingNetwork,
    names: Sequence[str],
    rows: Tensor,
    bias: float,
    indices: Sequence[Tensor],
    method: str,
) -> Checkpoint:
    """Rebuild the model of one trial of a sweep.

    Args:
        checkpoint: the base model that the sweep started from.
        dataset: the one it was trained on.
        network: the checkpoint's embedding network.
        names: the trial's novel classes.
        rows: `(W, D)` their rows.
        bias: of the trial.
        indices: per class the indices `(k,)` of its support images.
        method: of the trial.

    Raises:
        CheckpointError: another dataset, or a base model of another embedding size.
    """
    check_dataset(checkpoint, dataset)
    if rows.shape[1] != checkpoint.head.size:
        raise CheckpointError("the run's rows do not fit this base model")
    for name, row, chosen in zip(names, rows, indices, strict=True):
        support = embed(network, dataset.train.pixels[chosen])
        record = support_record(dataset.train, chosen, method)
        checkpoint = checkpoint.with_class(name, row, support, record)
    return replace(checkpoint, head=replace(checkpoint.head, bias=bias))
