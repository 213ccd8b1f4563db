"""A model with what it takes to teach it more, and how its classes are changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowshot_cli.checkpoint.holdout import _MANY_COSINES, CALIBRATION, SHAPING
from lowshot_cli.checkpoint.metadata import Meta, SupportRecord
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError, UsageError, did_you_mean
from lowshot_cli.methods.finetuning import BaseSamples
from lowshot_cli.methods.imprinting import class_statistics, shrunk_precision
from lowshot_cli.methods.operating_point import BaseQueries
from lowshot_cli.models.backbones import build_backbone, load_state
from lowshot_cli.models.embedding import EmbeddingNetwork, Normalisation
from lowshot_cli.models.head import Head, nearest_proxies

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Checkpoint:
    """A model with what it takes to add classes to it.

    Attributes:
        meta: everything that is not a tensor.
        head: the cosine classifier.
        backbone: state dict of the backbone.
        holdout: `(N, D)` fp16 embeddings of the base hold-out images.
        holdout_labels: `(N,)` int64 positions in `meta.classes`.
        holdout_right: `(N,)` bool, whether the pristine base model gets the image right.
        centre: `(M,)` fp32 centre of the stages beside the trained part of embeddings.
        supports: per novel class the embeddings `(k, D)` fp32 of its support images.
        nearest: `nearest_proxies` of the calibrating half of the hold-out and the base rows,
            kept where many classes make it slow to find; who changes either must drop it.
    """

    meta: Meta
    head: Head
    backbone: dict[str, Tensor]
    holdout: Tensor
    holdout_labels: Tensor
    holdout_right: Tensor
    centre: Tensor
    supports: tuple[Tensor, ...] = ()
    nearest: tuple[Tensor, Tensor] | None = None

    @property
    def novel_classes(self) -> tuple[str, ...]:
        """Names of the novel classes in head order."""
        return self.meta.classes[self.meta.n_base :]

    @property
    def base_classes(self) -> tuple[str, ...]:
        """Names of the base classes in head order."""
        return self.meta.classes[: self.meta.n_base]

    @property
    def base_accuracy(self) -> float:
        """Base test accuracy of the pristine base model, percent, over today's base classes."""
        right, total = (sum(column) for column in zip(*self.meta.base_counts, strict=True))
        return 100 * right / total if total else 0.0

    @property
    def digest(self) -> str:
        """Hex digest of the weights: backbone, head and scale."""
        digest = hashlib.blake2b(digest_size=16)
        others = (self.head.proxies, torch.tensor(self.head.scale), self.centre)
        for tensor in (*self.backbone.values(), *others):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where head and hold-out lie."""
        return self.holdout.device

    def network(self, device: torch.device | None = None) -> EmbeddingNetwork:
        """Rebuild the embedding network in evaluation mode.

        Raises:
            CheckpointError: the weights are not of the backbone that is named.
        """
        network = self.blank_network()
        try:
            load_state(network.backbone, self.backbone)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"the checkpoint is inconsistent: {reason}") from None
        return network.eval().to(device or torch.device("cpu"))

    def to(self, device: torch.device) -> Checkpoint:
        """The same with head and hold-out on a device, for rows to be made there."""
        return replace(
            self,
            head=replace(self.head, proxies=self.head.proxies.to(device)),
            holdout=self.holdout.to(device),
            holdout_labels=self.holdout_labels.to(device),
            holdout_right=self.holdout_right.to(device),
            nearest=self.nearest and (self.nearest[0].to(device), self.nearest[1].to(device)),
        )

    def blank_network(self) -> EmbeddingNetwork:
        """The embedding network before its weights are loaded.

        Raises:
            LowshotError: an unknown backbone, or one that cannot take these sizes.
        """
        meta = self.meta
        backbone = build_backbone(
            meta.backbone, meta.width, meta.embedding_size, meta.image_size, meta.input_size
        )
        normalisation = Normalisation(meta.mean, meta.std)
        return EmbeddingNetwork(backbone, normalisation, self.centre, meta.mirror)

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean `(D,)` over base classes and inverse `(D, D)` of the shrunk covariance within them.

        They are taken from images that the backbone was not fitted to, whose embeddings spread as
        those of new classes do.
        """
        shaping = self.shaping
        # On the processor, as a GPU adds up in another order each time.
        mean, within = class_statistics(shaping.embeddings.cpu(), shaping.labels.cpu())
        return mean.to(self.device), shrunk_precision(within).to(self.device)

    @property
    def shaping(self) -> BaseSamples:
        """Half of the hold-out, for methods whose rows need base embeddings."""
        return BaseSamples(
            self.holdout[SHAPING].float(),
            self.holdout_labels[SHAPING],
            self.head.base.proxies,
            self.head.scale,
        )

    @property
    def calibration(self) -> BaseQueries:
        """The other half of the hold-out, which sets the bias and shapes no row."""
        return BaseQueries.of(
            self.head.base.proxies,
            self.holdout[CALIBRATION].float(),
            self.holdout_labels[CALIBRATION],
            self.holdout_right[CALIBRATION],
            self.nearest,
        )

    def with_nearest_cached(self) -> Checkpoint:
        """The same model, with `nearest` found where it would be slow to find again and again."""
        held = self.holdout[CALIBRATION]
        if self.nearest or len(held) * self.meta.n_base < _MANY_COSINES:
            return self
        return replace(self, nearest=nearest_proxies(held.float(), self.head.base.proxies))

    def calibration_with(self, proxies: Tensor, embeddings: Tensor) -> BaseQueries:
        """The same half under changed base rows `(C, D)` and its embeddings `(N, D)` under them."""
        return BaseQueries.of(
            proxies,
            embeddings,
            self.holdout_labels[CALIBRATION],
            self.holdout_right[CALIBRATION],
        )

    def with_class(
        self, name: str, row: Tensor, support: Tensor, record: SupportRecord
    ) -> Checkpoint:
        """Append a novel class: its proxy `(D,)` and support embeddings `(k, D)`."""
        meta = self.meta.model_copy(
            update={
                "classes": (*self.meta.classes, name),
                "supports": (*self.meta.supports, record),
            }
        )
        head = self.head.with_novel(row[None])
        return replace(self, meta=meta, head=head, supports=(*self.supports, support))

    def without_class(self, name: str) -> Checkpoint:
        """Remove a class, base or novel, with everything that is kept of it.

        Raises:
            UsageError: no such class, or the last base class.
        """
        position, meta = self.position(name), self.meta
        is_base = position < meta.n_base
        if is_base and meta.n_base == 1:
            raise UsageError(f"{name!r} is the last base class")
        novel = position - meta.n_base
        keep = [i for i in range(len(meta.classes)) if i != position]
        update: dict[str, Any] = {
            "classes": tuple(meta.classes[i] for i in keep),
            "renamed": {new: own for new, own in meta.renamed.items() if new != name},
        }
        supports, kept = self.supports, self.holdout_labels != position
        labels = self.holdout_labels[kept]
        if is_base:
            update["n_base"] = meta.n_base - 1
            update["base_counts"] = _without(meta.base_counts, position)
            labels = labels - (labels > position).to(labels.dtype)
        else:
            update["supports"] = _without(meta.supports, novel)
            supports = _without(supports, novel)
        head = replace(
            self.head, proxies=self.head.proxies[keep], n_base=meta.n_base - int(is_base)
        )
        return replace(
            self,
            meta=meta.model_copy(update=update),
            head=head,
            supports=supports,
            holdout=self.holdout[kept],
            holdout_labels=labels,
            holdout_right=self.holdout_right[kept],
            nearest=None if is_base else self.nearest,
        )

    def dataset_name(self, name: str) -> str:
        """What the dataset calls a class of the model."""
        return self.meta.renamed.get(name, name)

    def position(self, name: str) -> int:
        """Row of a class in the head.

        Raises:
            UsageError: the model knows no such class; the hint names the nearest.
        """
        if name not in self.meta.classes:
            hint = did_you_mean(name, self.meta.classes, "`lowshot classes list` lists them")
            raise UsageError(f"the model knows no class {name!r}", hint)
        return self.meta.classes.index(name)

    def base_labels(self, dataset: Dataset) -> list[int]:
        """Labels that the base classes have in their dataset."""
        return [dataset.label(self.dataset_name(name)) for name in self.base_classes]

    def rename_class(self, old: str, new: str) -> Checkpoint:
        """Call a class otherwise; it remains the dataset's class that it was.

        Raises:
            UsageError: no such class, or another one has that name.
        """
        self.position(old)
        if new in self.meta.classes:
            raise UsageError(f"the model already knows a class {new!r}", "choose another name")
        classes = tuple(new if name == old else name for name in self.meta.classes)
        names = {name: own for name, own in self.meta.renamed.items() if name != old}
        if (own := self.dataset_name(old)) != new:
            names[new] = own
        return replace(
            self, meta=self.meta.model_copy(update={"classes": classes, "renamed": names})
        )

    def with_history(self, command: str, options: dict[str, Any]) -> Checkpoint:
        """The checkpoint with one more step in its history."""
        step = {"command": command, "options": options}
        history = (*self.meta.history, step)
        return replace(self, meta=self.meta.model_copy(update={"history": history}))

    def as_child_of(self, parent: str, config: dict[str, Any], command: str) -> Checkpoint:
        """Note which checkpoint this one was made from, and how."""
        from lowshot_cli.version import __version__

        step = {"command": command, "seed": config["seed"], "options": config[command]}
        update = {
            "parent": parent,
            "config": {**config, "train_base": self.meta.config["train_base"]},
            "version": __version__,
            "history": (*self.meta.history, step),
        }
        return replace(self, meta=self.meta.model_copy(update=update))


def _without(items: tuple[_Item, ...], position: int) -> tuple[_Item, ...]:
    return items[:position] + items[position + 1 :]


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
