"""Fine-tuning a checkpoint's novel classes: their proxies alone, or with the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lowshot_cli.adaptation.bias import can_calibrate, set_bias
from lowshot_cli.adaptation.methods import check_proxy, make_whitened
from lowshot_cli.adaptation.supports import pixel_hash
from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.config.schema import Config, FinetuneConfig
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.splits import relabel, split_holdout
from lowshot_cli.errors import DataError, UsageError
from lowshot_cli.methods.finetuning import (
    finetune_all_proxies,
    finetune_proxies,
    learning_rate,
)
from lowshot_cli.methods.operating_point import budget_setting, resolve_budget
from lowshot_cli.models.backbones import detached_state
from lowshot_cli.models.embedder import embed
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.finetune_network import NetworkData, finetune_network
from lowshot_cli.training.precision import pick_precision


def finetune(
    checkpoint: Checkpoint,
    config: Config,
    dataset: Dataset | None = None,
    *,
    context: RunContext = DEFAULT_CONTEXT,
) -> Checkpoint:
    """Fine-tune the novel classes of a checkpoint from their shots.

    The returned model records the settings, and this step in its history.

    Args:
        checkpoint: a model with novel classes.
        config: `seed` and `finetune`.
        dataset: the checkpoint's; only `scope: full` needs it, to read the images again.
        context: used by `scope: full`.

    Raises:
        NotLeader: the network is fine-tuned, and another rank makes the checkpoint.
        UsageError: there is no novel class, no hold-out, no dataset for `scope: full`, or base
            classes of a linear head would change.
        CheckpointError: it is another dataset.
        DataError: a support image is gone or has changed, or a class has no direction of its own.
    """
    options = config.finetune
    if not checkpoint.novel_classes:
        raise UsageError("the checkpoint has no novel class", "`lowshot imprint` adds one first")
    if not can_calibrate(checkpoint):
        raise UsageError(
            "nothing keeps novel proxies off the base classes of a model without hold-out images",
            "train or adopt one with images of its base classes, as `dataset` folder",
        )
    _refuse_unheld(checkpoint, options)
    if options.scope == "full":
        if dataset is None:
            raise UsageError(
                "`scope` full needs the images of the dataset", "`scope` head needs none"
            )
        check_dataset(checkpoint, dataset)
        precision = pick_precision(options.precision, context.device, context.ranks)
        config = config.with_settings("finetune", precision=precision)
        tuned = _finetune_network(checkpoint, dataset, config, context)
    else:
        tuned = _finetune_head(checkpoint, options)
    tuned = replace(tuned, holdout=tuned.holdout.with_nearest_cached(tuned.head))
    budget = resolve_budget(options.max_forgetting)
    used = config.with_settings(
        "finetune",
        freeze_base=options.freezing,
        head_lr=learning_rate(options, is_linear=checkpoint.head.is_linear),
        max_forgetting=budget_setting(budget),
    )
    # First the history, which tells whether the base model is still unchanged.
    return set_bias(tuned.with_settings("finetune", used), budget)


def _finetune_head(checkpoint: Checkpoint, options: FinetuneConfig) -> Checkpoint:
    """Fine-tune from the whitened proxies of the shots, however these were imprinted."""
    support = torch.cat(checkpoint.supports)  # (n, D)
    shots = torch.tensor([len(embeddings) for embeddings in checkpoint.supports])  # (W,)
    targets = torch.arange(len(shots)).repeat_interleave(shots)  # (n,)
    head, holdout, trained = checkpoint.head, checkpoint.holdout, list[Tensor]()
    for background in checkpoint.backgrounds:
        start = [make_whitened(part, background) for part in checkpoint.supports]
        for name, proxy in zip(checkpoint.novel_classes, start, strict=True):
            check_proxy(name, proxy)
        base, novel, samples = head.base.proxies, torch.stack(start), background.samples  # (W, R)
        if options.freezing == "always":
            novel = finetune_proxies(novel[None], support[None], targets, samples, options)[0]
        else:
            base, novel = finetune_all_proxies(novel, support, targets, samples, options)
            holdout = replace(holdout, nearest=None)
        trained.append(novel)
    return replace(
        checkpoint,
        head=replace(head, proxies=torch.cat([base, trained[0]])),
        holdout=holdout,
        fold_proxies=torch.stack(trained[1:]) if trained[1:] else None,
    )


def _refuse_unheld(checkpoint: Checkpoint, options: FinetuneConfig) -> None:
    """Refuse to change what a linear head was made of, which nothing would set the bias on.

    Raises:
        UsageError: the whole network or base proxies would change.
    """
    if not checkpoint.head.is_linear:
        return
    if options.scope == "full":
        raise UsageError(
            "`scope` full needs a network that was trained with its head, not a pretrained one",
            "`scope` head fine-tunes the novel classes",
        )
    if options.freezing != "always":
        raise UsageError(
            f"`freeze_base` {options.freezing} needs proxies that were trained, not a linear head",
            "omit it",
        )


def full_data(
    checkpoint: Checkpoint, dataset: Dataset, supports: Sequence[Sequence[int]]
) -> NetworkData:
    """The fit images of the base classes and the support images of each novel class."""
    labels = checkpoint.base_labels(dataset)
    fit, _ = split_holdout(dataset.train, labels, checkpoint.meta.holdout_per_class)
    shots = torch.tensor([len(indices) for indices in supports])
    support = torch.tensor([index for indices in supports for index in indices])
    return NetworkData(
        base_pixels=dataset.train.picked(fit),
        base_labels=relabel(dataset.train.labels[fit], labels),
        support_pixels=dataset.train.pixels[support],
        support_labels=torch.arange(len(shots)).repeat_interleave(shots) + len(labels),
        flip=dataset.mirror,
    )


def _finetune_network(
    checkpoint: Checkpoint, dataset: Dataset, config: Config, context: RunContext
) -> Checkpoint:
    for name, record in zip(checkpoint.novel_classes, checkpoint.meta.supports, strict=True):
        _check_support(name, record, dataset)
    data = full_data(checkpoint, dataset, [record.indices for record in checkpoint.meta.supports])
    network, head = checkpoint.network(context.device), checkpoint.head
    proxies = finetune_network(
        network, head, data, config.finetune, seed=config.seed, context=context
    )
    context.ranks.require_leader()
    labels = checkpoint.base_labels(dataset)
    _, holdout = split_holdout(dataset.train, labels, checkpoint.meta.holdout_per_class)
    embeddings = embed(network, dataset.train.picked(holdout)).half()
    supports = embed(network, data.support_pixels)
    return replace(
        checkpoint,
        head=replace(head, proxies=proxies),
        backbone=detached_state(network.backbone),
        holdout=replace(checkpoint.holdout, embeddings=embeddings, nearest=None),
        supports=tuple(supports.split([len(s) for s in checkpoint.supports])),
    )


def _check_support(name: str, record: SupportRecord, dataset: Dataset) -> None:
    """Check that the support images of a class are still those that it was imprinted from.

    Raises:
        DataError: they are not, or never were in the dataset.
    """
    if not record.indices:
        raise DataError(
            f"{name!r} was learnt from photos outside the dataset", "finetune it with `scope` head"
        )
    for index, expected in zip(record.indices, record.pixel_hashes, strict=True):
        if index >= len(dataset.train.labels):
            raise DataError(f"support image #{index} of {name!r} is gone from the dataset")
        if pixel_hash(dataset.train.pixels[index]) != expected:
            raise DataError(
                f"support image #{index} of {name!r} has changed since it was imprinted"
            )
