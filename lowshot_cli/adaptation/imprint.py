"""Imprint classes into a checkpoint, from a dataset or from photos, and set their bias."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.adaptation.bias import can_calibrate, set_bias, shared_budget, without_class
from lowshot_cli.adaptation.methods import check_proxy, imprint_each
from lowshot_cli.adaptation.supports import (
    distinct,
    pixel_hash,
    refuse_shared,
    support_record,
)
from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.config.values import DEFAULT_SHOTS
from lowshot_cli.config.yaml_file import make_section
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.duplicates import supports_seen_in_test
from lowshot_cli.data.image_files import as_text
from lowshot_cli.data.photos import Photos
from lowshot_cli.data.supports import draw_supports
from lowshot_cli.errors import DataError, UsageError
from lowshot_cli.methods.operating_point import budget_setting
from lowshot_cli.models.embedding import EmbeddingNetwork


@dataclass(frozen=True)
class SupportDraw:
    """Support images of one class.

    Attributes:
        name: the class.
        indices: positions in the training split; empty for photos outside the dataset.
        described: what to call each image in a message.
        n_replaced: number of images drawn again because they are test images too, or nearly.
        n_duplicates: number of photos left out because they show the same picture as another.
    """

    name: str
    indices: tuple[int, ...]
    described: tuple[str, ...]
    n_replaced: int = 0
    n_duplicates: int = 0


def imprint_classes(
    checkpoint: Checkpoint,
    dataset: Dataset,
    network: EmbeddingNetwork,
    config: Config,
    *,
    replace_known: bool = False,
) -> tuple[Checkpoint, list[SupportDraw]]:
    """Add classes of the dataset from a few of their training images.

    The draw is that of trial 0 of a sweep with the same seed. A model without hold-out images
    learns by the plain mean, with bias 0. The returned model records the settings as used, and this
    step in its history.

    Args:
        checkpoint: the model to add to.
        dataset: the dataset it was trained on.
        network: the checkpoint's embedding network.
        config: `seed` and `imprint`.
        replace_known: imprint again a class that the model already knows.

    Raises:
        UsageError: no class is named, the dataset has no such class, the model knows it already,
            or there are fewer images than shots.
        CheckpointError: it is another dataset.
        DataError: the images of a class have no direction of their own.
    """
    names = ensure_classes(config.imprint)
    check_dataset(checkpoint, dataset)
    labels = {name: dataset.label(name) for name in names}
    for name in labels:
        checkpoint = _without_known(checkpoint, name, replace_known)
    config = _usable(config, checkpoint)
    options = config.imprint
    shots, drawn, records, pixels = options.shots or DEFAULT_SHOTS, [], [], []
    for name, label in labels.items():
        members = dataset.train.of_class(label)
        avoided, count = supports_seen_in_test(dataset, label), len(members)
        first, chosen = (
            draw_supports(config.seed, label, [0], shots, count, avoided=avoiding)[0]
            for avoiding in ((), avoided)
        )
        indices = members[torch.from_numpy(chosen)]
        record = support_record(dataset.train, indices, options.method)
        described = tuple(dataset.train.describe(i) for i in record.indices)
        n_replaced = int(np.isin(first, avoided).sum())
        drawn.append(SupportDraw(name, record.indices, described, n_replaced))
        records.append(record)
        pixels.append(dataset.train.pixels[indices])
    made = imprint_each(checkpoint, network, pixels, list(labels.values()), config)
    taught = _with_classes(checkpoint, names, made, records)
    taught, used = _with_bias(taught, config.with_settings("imprint", shots=shots))
    return taught.with_settings("imprint", used), drawn


def ensure_classes(options: ImprintConfig) -> tuple[str, ...]:
    """The classes to imprint; a command checks them before it reads any image.

    Raises:
        UsageError: there are none.
    """
    if not options.classes:
        raise UsageError("no class to imprint", "name one in `classes`")
    return options.classes


def imprint_photos(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    photos: Mapping[str, Photos],
    config: Config,
    *,
    replace_known: bool = False,
) -> tuple[Checkpoint, list[SupportDraw]]:
    """Add classes from photos outside any dataset; the checkpoint alone is needed.

    Classes are added in the order of their names. All photos are used, or a seeded draw of `shots`
    of each class if the config sets that number. A model without hold-out images learns by the
    plain mean, with bias 0. The returned model records the settings as used, and this step in its
    history; `shots` is left unset where classes have different numbers of photos.

    Args:
        checkpoint: the model to add to.
        network: the checkpoint's embedding network.
        photos: photos of each class, by its name.
        config: `seed` and `imprint`, except `classes`.
        replace_known: imprint again a class that the model already knows.

    Raises:
        UsageError: there is no class, a name is not allowed, the model knows a class already, or
            one has fewer photos than shots.
        DataError: the photos of a class have no direction of their own, two classes share a
            picture, or some photos repeat others with `strict`.
    """
    named = make_section(ImprintConfig, classes=tuple(photos)).classes or ()
    given = dict(sorted(zip(named, photos.values(), strict=True), key=itemgetter(0)))
    kept = _distinct(given, strict=config.strict)
    for name in kept:
        checkpoint = _without_known(checkpoint, name, replace_known)
    config = _usable(config, checkpoint)
    options, labels = config.imprint, {name: _label(name) for name in kept}
    _ensure_enough(kept, options.shots)
    drawn = {n: _draw(kept[n], options.shots, config.seed, labels[n]) for n in kept}
    pixels = [each.pixels for each in drawn.values()]
    made = imprint_each(checkpoint, network, pixels, list(labels.values()), config)
    records = [_photo_record(each, options.method) for each in drawn.values()]
    taught = _with_classes(checkpoint, tuple(drawn), made, records)
    counts = {len(each.files) for each in drawn.values()}
    shots = counts.pop() if len(counts) == 1 else None
    used = config.with_settings("imprint", classes=tuple(drawn), shots=shots)
    taught, used = _with_bias(taught, used)
    draws = [
        SupportDraw(
            name,
            (),
            tuple(map(str, each.files)),
            n_duplicates=len(given[name].files) - len(kept[name].files),
        )
        for name, each in drawn.items()
    ]
    return taught.with_settings("imprint", used), draws


def _distinct(classes: Mapping[str, Photos], *, strict: bool) -> dict[str, Photos]:
    """The photos of each class without those that repeat another one of it.

    Raises:
        DataError: two classes share a picture, or some photos repeat others with `strict`.
    """
    kept = {name: distinct(photos) for name, photos in classes.items()}
    given, left = (sum(len(p.files) for p in each.values()) for each in (classes, kept))
    if strict and left < given:
        raise DataError(
            f"{given - left} of {given} images repeat another one",
            "move them away, or omit `strict=True`",
        )
    refuse_shared(kept)
    return kept


def _label(name: str) -> int:
    """A number for a class outside the dataset, on which its draw depends."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")


def _ensure_enough(classes: Mapping[str, Photos], shots: int | None) -> None:
    """Check that no class has fewer photos than shots.

    Raises:
        UsageError: one has.
    """
    name, least = min(
        ((name, len(photos.files)) for name, photos in classes.items()), key=itemgetter(1)
    )
    if shots and shots > least:
        images = "is 1 image" if least == 1 else f"are {least} images"
        raise UsageError(f"`shots` is {shots}, there {images} of {name!r}", f"give up to {least}")


def _draw(photos: Photos, shots: int | None, seed: int, label: int) -> Photos:
    """A draw of `shots` photos, in their order; all of them for None."""
    count = len(photos.files)
    drawn = torch.from_numpy(draw_supports(seed, label, [0], shots or count, count)[0])
    chosen = drawn.sort().values
    files = tuple(photos.files[i] for i in chosen.tolist())
    return replace(photos, pixels=photos.pixels[chosen], files=files)


def _photo_record(photos: Photos, method: str) -> SupportRecord:
    return SupportRecord(
        method=method,
        indices=(),
        files=tuple(as_text(file.name) for file in photos.files),
        pixel_hashes=tuple(pixel_hash(image) for image in photos.pixels),
    )


def _with_classes(
    checkpoint: Checkpoint,
    names: Sequence[str],
    made: Sequence[tuple[Tensor, Tensor]],
    records: Sequence[SupportRecord],
) -> Checkpoint:
    """Append novel classes, each with its proxies and the embeddings of its support images.

    Raises:
        DataError: the images of one have no direction of their own.
    """
    for name, (proxies, support), record in zip(names, made, records, strict=True):
        check_proxy(name, proxies[0])
        checkpoint = checkpoint.with_class(name, proxies, support, record)
    return checkpoint


def _with_bias(taught: Checkpoint, config: Config) -> tuple[Checkpoint, Config]:
    """Set the bias of a model that was taught a class; the config then names the budget."""
    budget = shared_budget(taught, config.imprint)
    used = config.with_settings("imprint", max_forgetting=budget_setting(budget))
    return set_bias(taught, budget), used


def _usable(config: Config, checkpoint: Checkpoint) -> Config:
    """The config, with the plain mean for a model without hold-out images in one of the halves.

    Where none are left to set a bias on, it is 0.

    Raises:
        UsageError: the method needs images of base classes, which an adopted classifier lacks.
    """
    if checkpoint.meta.adopted and config.imprint.method == "teen":
        raise UsageError(
            "`teen` needs images of base classes, which an adopted classifier lacks",
            "try `whitened`",
        )
    if can_calibrate(checkpoint):
        return config
    config = config.with_settings("imprint", method="imprint")
    if len(checkpoint.holdout.calibrating(checkpoint.holdout.labels)):
        return config
    return config.with_settings("imprint", max_forgetting="none")


def known_as(checkpoint: Checkpoint, name: str) -> str | None:
    """What the model calls a class that it was taught by this name, or None if it knows none."""
    classes = checkpoint.meta.classes
    own = {checkpoint.dataset_name(known): known for known in classes}
    return name if name in classes else own.get(name)


def _without_known(checkpoint: Checkpoint, name: str, replace_known: bool) -> Checkpoint:
    """The checkpoint without a class that is to be imprinted again, whatever it is called now.

    Raises:
        UsageError: the model knows the class, and it is not to be replaced.
    """
    called = known_as(checkpoint, name)
    if called is None:
        return checkpoint
    if not replace_known:
        now = "" if called == name else f", as {called!r}"
        raise UsageError(
            f"the model already knows {name!r}{now}", "`replace=True` imprints it again"
        )
    return without_class(checkpoint, called)
