"""Datasets of a few random images and base models of them, made in a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.checkpoint.photos import no_photos, with_photos
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.models.backbones import build_backbone, load_state
from lowshot_cli.models.efficientnet_lite import NORMALISATION
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import Head
from lowshot_cli.training.adopt import adopt
from lowshot_cli.training.result import make_cosine_checkpoint
from lowshot_cli.training.task import BaseTask, build_network, make_task

SIDE, N_BASE = 8, 5
CLASSES = tuple("abcdefgh")
# Kinds of `tiny_world` whose models are cross-fitted.
LINEAR = ("linear", "uneven")
# Those whose models are classifiers as they were found.
ADOPTED = ("bare", "photos")


def make_dataset(holdout: int, spread: float, *, twins: bool = False) -> Dataset:
    """Eight classes of four coarse squares each, blurred by noise.

    Args:
        holdout: hold-out images per base class.
        spread: standard deviation of the noise, in levels of 255.
        twins: whether the first two classes have the same images, so that nothing tells them apart.
    """
    lots = torch.Generator().manual_seed(0)
    squares = 255 * torch.rand(len(CLASSES), 3, 2, 2, generator=lots)
    centres = squares.repeat_interleave(SIDE // 2, 2).repeat_interleave(SIDE // 2, 3)

    def draw(per_class: int) -> Images:
        noise = torch.randn(len(CLASSES), per_class, 3, SIDE, SIDE, generator=lots)
        pixels = (centres[:, None] + spread * noise).clamp(0, 255).to(torch.uint8)
        if twins:
            pixels[1] = pixels[0]
        labels = torch.arange(len(CLASSES)).repeat_interleave(per_class)
        return Images(pixels.flatten(0, 1), labels)

    train, test = draw(holdout + 4), draw(4)
    return Dataset("tiny", CLASSES, train, test, mirror=False, default_classes=None)


def make_base(dataset: Dataset, holdout: int) -> Checkpoint:
    """A base model of the first classes: class means on a network with random weights, cosines."""
    config, task, network = _start(dataset, epochs=1, holdout=holdout)
    with torch.inference_mode():
        images = task.normalisation.apply(task.fit[:], torch.device("cpu"))
        means = Statistics.of(network.trained(images), task.fit_labels, 0).means  # (C, E)
    proxies = F.normalize(means, dim=1)
    return make_cosine_checkpoint(
        config, dataset, task, network, proxies, scale=1.0, precision="fp32"
    )


def make_linear_base(dataset: Dataset) -> Checkpoint:
    """A cross-fitted base model of the first classes, on a network with random weights."""
    config, task, network = _start(dataset, epochs=0)
    return adopt(config, dataset, task, network).checkpoint


def _start(
    dataset: Dataset, *, epochs: int, holdout: int = 1
) -> tuple[Config, BaseTask, EmbeddingNetwork]:
    options = {"classes": N_BASE, "epochs": epochs, "width": 1, "embedding_size": 4}
    options |= {"backbone": "resnet9", "holdout": holdout, "split": "alphabetical"}
    config = Config.model_validate({"dataset": "folder", "train_base": options})
    task = make_task(config.train_base, dataset)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, _, _ = build_network(config.train_base, task, with_weights=False)
        torch.manual_seed(0)
        plain = build_backbone("resnet9", 1, 4, SIDE)
    load_state(network.backbone, plain.state_dict())  # its first layer is random too
    return config, task, network.eval()


@cache
def tiny_world(kind: str) -> tuple[Dataset, Checkpoint, EmbeddingNetwork]:
    """A dataset, its base model and the network of that, ready for use.

    Args:
        kind: `plain`; `sparse` with a single hold-out image per class, so that some classes have
            none that sets the bias; `twins` with two classes that nothing tells apart; `adopted`
            without any hold-out image; `linear` with a cross-fitted head; `uneven` with such a head
            for classes of 9, 1, 2, 7 and 3 images; `bare`, a classifier as it was found, without
            images; `photos`, the same with unlabelled photos.
    """
    sizes = {"sparse": 1, "twins": 5, "adopted": 3, "uneven": 5}
    holdout = sizes.get(kind, 9)
    dataset = make_dataset(holdout, spread=80, twins=kind == "twins")
    if kind in LINEAR:
        counts = (9, 1, 2, 7, 3, 9, 9, 9) if kind == "uneven" else (13,) * len(CLASSES)
        dataset = replace(dataset, train=_first(dataset.train, counts))
        base = make_linear_base(dataset)
        return dataset, base, fused(base.network())
    base = make_base(dataset, holdout)
    if kind == "adopted":
        base = replace(base, holdout=_nothing(base.holdout))
    if kind in ADOPTED:
        base = _as_found(base, dataset)
        if kind == "photos":
            network = fused(base.network())
            base = with_photos(base, embed(network, dataset.train.pixels[:60]))
    return dataset, base, fused(base.network())


def cost(model: Checkpoint, bias: float) -> float:
    """Points of base accuracy that novel classes with a bias cost, on the images that set it.

    Each image is scored by the head of its fold.
    """
    held, lost, total = model.holdout, 0, 0
    for head, embeddings, labels in zip(
        model.calibration_heads, held.parts(held.embeddings), held.parts(held.labels), strict=True
    ):
        right = head.base.predict(embeddings.float()) == labels
        still = replace(head, bias=bias).predict(embeddings.float()) == labels
        lost, total = lost + int((right & ~still).sum()), total + len(labels)
    return 100 * lost / total


def _first(images: Images, counts: Sequence[int]) -> Images:
    """The first images of each class."""
    numbers = zip(map(images.of_class, range(len(counts))), counts, strict=True)
    kept = torch.cat([members[:count] for members, count in numbers])
    return Images(images.pixels[kept], images.labels[kept])


def _as_found(base: Checkpoint, dataset: Dataset) -> Checkpoint:
    """A classifier with random rows on the network of a base model."""
    network = EmbeddingNetwork(base.network().backbone, NORMALISATION, unit=False)
    size = network.trained_size
    lots = torch.Generator().manual_seed(1)
    rows = 3 * torch.randn(N_BASE, size + 1, generator=lots)
    head = Head(rows, 1.0, N_BASE, is_linear=True)
    known = [dataset.test.pixels[dataset.test.of_class(label)] for label in range(N_BASE)]
    right = [head.predict(embed(network.eval(), part)) == i for i, part in enumerate(known)]
    update = {"format": 4, "adopted": True, "head": "linear", "mirror": False}
    update["base_counts"] = tuple((int(part.sum()), len(part)) for part in right)
    return Checkpoint(
        meta=Meta.model_validate({**base.meta.model_dump(), **update}),
        head=head,
        backbone=base.backbone,
        holdout=no_photos(size),
        centre=torch.empty(0),
    )


def _nothing(holdout: Holdout) -> Holdout:
    def none(tensor: Tensor) -> Tensor:
        return tensor[:0]

    return Holdout(none(holdout.embeddings), none(holdout.labels), none(holdout.right))
