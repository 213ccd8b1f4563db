"""Teaching a checkpoint: imprinting classes into it and setting their bias."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.config import Config, ImprintConfig
from lowshot_cli.data import Dataset, Images
from lowshot_cli.data.duplicates import leaking
from lowshot_cli.data.photos import Photos
from lowshot_cli.data.sources import as_text
from lowshot_cli.data.splits import draw_directions, draw_supports
from lowshot_cli.embed import Views, embed
from lowshot_cli.errors import CheckpointError, DataError, UsageError
from lowshot_cli.evaluate import check_dataset
from lowshot_cli.imprint import budget_of, calibrated, imprint, operating_bias, whitened
from lowshot_cli.meta import SupportRecord
from lowshot_cli.model import EmbeddingNetwork, widened


@dataclass(frozen=True)
class Drawn:
    """Support images of one class.

    Attributes:
        name: of the class.
        indices: into the training split; none for photos outside the dataset.
        described: how to name each.
        redrawn: how many were drawn anew because they are test images too, or nearly; of photos,
            how many were left out as the same picture as another.
    """

    name: str
    indices: tuple[int, ...]
    described: tuple[str, ...]
    redrawn: int = 0


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
        DataError: an unknown class, or one without a direction of its own.
    """
    options = config.imprint
    if not options.classes:
        raise UsageError("no class to imprint", "name one with --class")
    check_dataset(checkpoint, dataset)
    labels = {name: dataset.label(name) for name in options.classes}
    drawn = []
    for name, label in labels.items():
        checkpoint = _without_known(checkpoint, name, replace_known)
        members = dataset.train.of_class(label)
        avoided, count = leaking(dataset, label), len(members)
        first, chosen = (
            draw_supports(config.seed, label, [0], options.shots, count, avoiding)[0]
            for avoiding in ((), avoided)
        )
        indices = members[torch.from_numpy(chosen)]
        pixels = dataset.train.pixels[indices]
        row, support = _imprint_one(checkpoint, network, pixels, label, config)
        check_row(name, row)
        record = support_record(dataset.train, indices, options.method)
        checkpoint = checkpoint.with_class(name, row, support, record)
        described = tuple(dataset.train.describe(i) for i in record.indices)
        redrawn = int(np.isin(first, avoided).sum())
        drawn.append(Drawn(name, record.indices, described, redrawn))
    return set_bias(checkpoint, _shared_budget(checkpoint, options)), drawn


def imprint_photos(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    photos: Photos,
    config: Config,
    replace_known: bool = False,
) -> tuple[Checkpoint, Drawn]:
    """Add one class from photos outside any dataset; the checkpoint alone is needed.

    All photos are used, or a seeded draw of `shots` where the config names that number. A model
    that was adopted without data learns by the plain mean, with bias 0.

    Args:
        checkpoint: the model to add to.
        network: the checkpoint's embedding network.
        photos: of the class.
        config: `seed` and `imprint`.
        replace_known: drop a class that the model knows and imprint it anew.

    Raises:
        UsageError: not one class named, a known class, more shots than photos.
        DataError: the class has no direction of its own.
    """
    if not can_calibrate(checkpoint):
        plain = config.imprint.model_copy(update={"method": "imprint", "max_forgetting": "none"})
        config = config.model_copy(update={"imprint": plain})
    options, given = config.imprint, len(photos.files)
    photos = _distinct(photos)
    count = len(photos.files)
    if options.classes is None or len(options.classes) != 1:
        raise UsageError("--images are of one class", "name it with one --class")
    (name,) = options.classes
    checkpoint = _without_known(checkpoint, name, replace_known)
    label = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
    shots = options.shots if "shots" in options.model_fields_set else count
    if shots > count:
        raise UsageError(f"--shots {shots}: there are {count} images", f"give up to {count}")
    chosen = torch.from_numpy(draw_supports(config.seed, label, [0], shots, count)[0]).sort().values
    pixels, files = photos.pixels[chosen], [photos.files[i] for i in chosen.tolist()]
    row, support = _imprint_one(checkpoint, network, pixels, label, config)
    check_row(name, row)
    record = SupportRecord(
        method=options.method,
        indices=(),
        files=tuple(as_text(file.name) for file in files),
        pixel_hashes=tuple(pixel_hash(image) for image in pixels),
    )
    taught = checkpoint.with_class(name, row, support, record)
    drawn = Drawn(name, (), tuple(str(file) for file in files), given - count)
    return set_bias(taught, _shared_budget(taught, options)), drawn


def _distinct(photos: Photos) -> Photos:
    """The photos without those that show, pixel for pixel, what an earlier one shows."""
    first: dict[str, int] = {}
    for place, image in enumerate(photos.pixels):
        first.setdefault(pixel_hash(image), place)
    kept = list(first.values())
    return replace(
        photos, pixels=photos.pixels[kept], files=tuple(photos.files[place] for place in kept)
    )


def _without_known(checkpoint: Checkpoint, name: str, replace_known: bool) -> Checkpoint:
    """The checkpoint without a class that is to be imprinted anew.

    Raises:
        UsageError: the model knows it and it is not to be replaced.
    """
    if name not in checkpoint.meta.classes:
        return checkpoint
    if not replace_known:
        raise UsageError(f"the model already knows {name!r}", "add --replace to imprint it anew")
    return checkpoint.without_class(name)


def _shared_budget(checkpoint: Checkpoint, options: ImprintConfig) -> float | None:
    """All novel classes share one bias, so one that needs it keeps it when others are added."""
    needs_bias = checkpoint.head.bias != 0
    return budget_of("whitened" if needs_bias else options.method, options.max_forgetting)


def _imprint_one(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    pixels: Tensor,
    label: int,
    config: Config,
) -> tuple[Tensor, Tensor]:
    options = config.imprint
    support = embed(network, pixels)
    if options.method == "random":
        direction = draw_directions(config.seed, label, [0], checkpoint.meta.embedding_size)[0]
        return widened(direction, checkpoint.head.size), support
    if options.method == "augmented":
        views = embed(network, pixels, views=augmented_views(options, checkpoint.meta.mirror))
        return rows_of("imprint", views, checkpoint), support
    return rows_of(options.method, support, checkpoint), support


def check_row(name: str, row: Tensor) -> None:
    """A class whose images differ in nothing from the others has no direction of its own.

    Raises:
        DataError: it is one.
    """
    if not bool(row.any()):
        raise DataError(
            f"the images of {name!r} have no direction of their own: to the model they are what "
            "the base classes are on average",
            "look at them, or try another --method",
        )


def rows_of(method: str, support: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Novel rows `(..., D)` that follow from supports `(..., k, D)` and the base model alone."""
    return _ROWS[method](support, checkpoint)


def _imprint(support: Tensor, model: Checkpoint) -> Tensor:
    """The paper's method, which reads the trained part of embeddings."""
    return widened(imprint(support[..., : model.meta.embedding_size]), model.head.size)


def _calibrated(support: Tensor, model: Checkpoint) -> Tensor:
    """TEEN's method, which reads the trained part of embeddings."""
    size = model.meta.embedding_size
    rows = calibrated(support[..., :size], model.head.base.proxies[:, :size])
    return widened(rows, model.head.size)


_ROWS: dict[str, Callable[[Tensor, Checkpoint], Tensor]] = {
    "whitened": lambda support, model: whitened(support, *model.statistics),
    "imprint": _imprint,
    "calibrated": _calibrated,
}


def augmented_views(options: ImprintConfig, mirror: bool) -> Views:
    """The views that the method `augmented` averages, the same for every image."""
    return Views(options.views, mirror, seed=0)


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


def can_calibrate(checkpoint: Checkpoint) -> bool:
    """Whether there are hold-out images to set a bias on; a model adopted without data has none."""
    return len(checkpoint.holdout) > 0


def repeats_of(checkpoint: Checkpoint, name: str, pixels: Tensor) -> int:
    """How many of the images `(N, 3, S, S)` uint8 are supports of a class, pixel for pixel."""
    if name not in checkpoint.novel_classes:
        return 0
    record = checkpoint.meta.supports[checkpoint.novel_classes.index(name)]
    return sum(pixel_hash(image) in record.pixel_hashes for image in pixels)


def set_bias(checkpoint: Checkpoint, max_forgetting: float | None) -> Checkpoint:
    """Set the one bias of all novel classes; None means 0."""
    bias = 0.0
    if max_forgetting is not None and checkpoint.novel_classes:
        novel = checkpoint.head.proxies[checkpoint.meta.n_base :]
        bias = operating_bias(novel[None], checkpoint.calibration, max_forgetting).item()
    return replace(checkpoint, head=replace(checkpoint.head, bias=bias))


def without_class(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Remove a class and solve the bias of the remaining novel ones anew, if they had one.

    Raises:
        UsageError: the last base class.
    """
    return set_bias(checkpoint.without_class(name), budget_in_use(checkpoint))


def budget_in_use(checkpoint: Checkpoint) -> float | None:
    """Points of forgetting for which the bias of a model was last solved; None if it has none."""
    if checkpoint.head.bias == 0:
        return None
    budgets = [
        step["options"]["max_forgetting"]
        for step in checkpoint.meta.history
        if "max_forgetting" in step["options"]
    ]
    return budget_of("whitened", budgets[-1] if budgets else None)


def expected_accuracy(checkpoint: Checkpoint) -> float:
    """Base accuracy of the pristine model in percent, on the half of the hold-out that sets the
    bias.
    """
    queries = checkpoint.calibration
    return 100 * int(queries.right_before.sum()) / queries.total


def expected_forgetting(checkpoint: Checkpoint) -> float:
    """Points of base accuracy that the novel classes cost, on the same half of the hold-out."""
    if not checkpoint.novel_classes:
        return 0.0
    queries, head = checkpoint.calibration, checkpoint.head
    margins = queries.margins(head.proxies[head.n_base :][None])
    return (
        expected_accuracy(checkpoint) - queries.accuracy(margins, torch.tensor([head.bias])).item()
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
