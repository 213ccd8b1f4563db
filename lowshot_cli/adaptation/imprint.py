"""Imprint classes into a checkpoint, from a dataset or from photos, and set their bias."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from lowshot_cli.adaptation.bias import can_calibrate, set_bias, shared_budget, without_class
from lowshot_cli.adaptation.methods import check_proxy, imprint_one
from lowshot_cli.adaptation.supports import distinct, pixel_hash, support_record
from lowshot_cli.checkpoint.checkpoint import Checkpoint, check_dataset
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.config.values import DEFAULT_SHOTS
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
    shots, drawn = options.shots or DEFAULT_SHOTS, []
    for name, label in labels.items():
        members = dataset.train.of_class(label)
        avoided, count = supports_seen_in_test(dataset, label), len(members)
        first, chosen = (
            draw_supports(config.seed, label, [0], shots, count, avoided=avoiding)[0]
            for avoiding in ((), avoided)
        )
        indices = members[torch.from_numpy(chosen)]
        pixels = dataset.train.pixels[indices]
        proxies, support = imprint_one(checkpoint, network, pixels, label, config)
        check_proxy(name, proxies[0])
        record = support_record(dataset.train, indices, options.method)
        checkpoint = checkpoint.with_class(name, proxies, support, record)
        described = tuple(dataset.train.describe(i) for i in record.indices)
        n_replaced = int(np.isin(first, avoided).sum())
        drawn.append(SupportDraw(name, record.indices, described, n_replaced))
    taught, used = _with_bias(checkpoint, config.with_settings("imprint", shots=shots))
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
    photos: Photos,
    config: Config,
    *,
    replace_known: bool = False,
) -> tuple[Checkpoint, SupportDraw]:
    """Add one class from photos outside any dataset; the checkpoint alone is needed.

    All photos are used, or a seeded draw of `shots` of them if the config sets that number. A model
    without hold-out images learns by the plain mean, with bias 0. The returned model records the
    settings as used, and this step in its history.

    Args:
        checkpoint: the model to add to.
        network: the checkpoint's embedding network.
        photos: photos of the class.
        config: `seed` and `imprint`.
        replace_known: imprint again a class that the model already knows.

    Raises:
        UsageError: not exactly one class is named, the model knows it already, or there are fewer
            photos than shots.
        DataError: the photos have no direction of their own, or some repeat others with `strict`.
    """
    given = len(photos.files)
    photos = distinct(photos)
    count = len(photos.files)
    if config.strict and count < given:
        raise DataError(
            f"{given - count} of {given} images repeat another one",
            "move them away, or omit `strict=True`",
        )
    if config.imprint.classes is None or len(config.imprint.classes) != 1:
        raise UsageError("`images` must be of one class", "name just one in `classes`")
    (name,) = config.imprint.classes
    checkpoint = _without_known(checkpoint, name, replace_known)
    config = _usable(config, checkpoint)
    options = config.imprint
    label = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    shots = options.shots or count
    if shots > count:
        raise UsageError(f"`shots` is {shots}, there are {count} images", f"give up to {count}")
    chosen = torch.from_numpy(draw_supports(config.seed, label, [0], shots, count)[0]).sort().values
    pixels, files = photos.pixels[chosen], [photos.files[i] for i in chosen.tolist()]
    proxies, support = imprint_one(checkpoint, network, pixels, label, config)
    check_proxy(name, proxies[0])
    record = SupportRecord(
        method=options.method,
        indices=(),
        files=tuple(as_text(file.name) for file in files),
        pixel_hashes=tuple(pixel_hash(image) for image in pixels),
    )
    taught = checkpoint.with_class(name, proxies, support, record)
    taught, used = _with_bias(taught, config.with_settings("imprint", shots=shots))
    drawn = SupportDraw(name, (), tuple(str(file) for file in files), n_duplicates=given - count)
    return taught.with_settings("imprint", used), drawn


def _with_bias(taught: Checkpoint, config: Config) -> tuple[Checkpoint, Config]:
    """Set the bias of a model that was taught a class; the config then names the budget."""
    budget = shared_budget(taught, config.imprint)
    used = config.with_settings("imprint", max_forgetting=budget_setting(budget))
    return set_bias(taught, budget), used


def _usable(config: Config, checkpoint: Checkpoint) -> Config:
    """The config, with the plain mean for a model without hold-out images in one of the halves.

    Where none are left to set a bias on, it is 0.
    """
    if can_calibrate(checkpoint):
        return config
    config = config.with_settings("imprint", method="imprint")
    if len(checkpoint.holdout.calibrating(checkpoint.holdout.labels)):
        return config
    return config.with_settings("imprint", max_forgetting="none")


def _without_known(checkpoint: Checkpoint, name: str, replace_known: bool) -> Checkpoint:
    """The checkpoint without a class that is to be imprinted again, whatever it is called now.

    Raises:
        UsageError: the model knows the class, and it is not to be replaced.
    """
    classes = checkpoint.meta.classes
    own = {checkpoint.dataset_name(known): known for known in classes}
    called = name if name in classes else own.get(name)
    if called is None:
        return checkpoint
    if not replace_known:
        now = "" if called == name else f", as {called!r}"
        raise UsageError(
            f"the model already knows {name!r}{now}", "`replace=True` imprints it again"
        )
    return without_class(checkpoint, called)
