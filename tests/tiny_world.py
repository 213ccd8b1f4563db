"""Datasets of a few random images and base models of them, made in a fraction of a second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.models.embedder import fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.training.adopt import adopt
from lowshot_cli.training.task import build_network, make_task

SIDE, N_BASE = 8, 5
CLASSES = tuple("abcdefgh")


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
    """A base model of the first classes, by imprinting on a network with random weights."""
    options = {"classes": N_BASE, "epochs": 0, "width": 1, "embedding_size": 4}
    options |= {"holdout": holdout, "split": "alphabetical"}
    config = Config.model_validate({"dataset": "folder", "train_base": options})
    task = make_task(config.train_base, dataset)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, _, _ = build_network(config.train_base, task, with_weights=False)
    return adopt(config, dataset, task, network.eval()).checkpoint


@cache
def tiny_world(kind: str) -> tuple[Dataset, Checkpoint, EmbeddingNetwork]:
    """A dataset, its base model and the network of that, ready for use.

    Args:
        kind: `plain`; `sparse` with a single hold-out image per class, so that some classes have
            none that sets the bias; `twins` with two classes that nothing tells apart; `adopted`
            without any hold-out image.
    """
    holdout = {"plain": 9, "sparse": 1, "twins": 5, "adopted": 3}[kind]
    dataset = make_dataset(holdout, spread=80, twins=kind == "twins")
    base = make_base(dataset, holdout)
    if kind == "adopted":
        base = replace(base, holdout=_nothing(base.holdout))
    return dataset, base, fused(base.network())


def _nothing(holdout: Holdout) -> Holdout:
    def none(tensor: Tensor) -> Tensor:
        return tensor[:0]

    return Holdout(none(holdout.embeddings), none(holdout.labels), none(holdout.right))
