"""The one file format: a safetensors file that rebuilds the model and suffices to teach it more."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from lowshot_cli.backbones import build_backbone, load_state
from lowshot_cli.data import Dataset
from lowshot_cli.errors import CheckpointError, LowshotError, UsageError, did_you_mean
from lowshot_cli.files import checked_tensor, ensure_free, file_hash, read_tensors, write_tensors
from lowshot_cli.finetune import BaseSamples
from lowshot_cli.imprint import BaseQueries, class_statistics, shrunk_precision
from lowshot_cli.meta import Meta, SupportRecord
from lowshot_cli.model import EmbeddingNetwork, Head, Normalisation

_MAKERS = {"base": "train-base", "imprinted": "imprint", "finetuned": "finetune"}
_UNIT_TOLERANCE = 1e-3
# What sets the bias must not also shape rows, so the hold-out is halved image by image.
SHAPING, CALIBRATION = slice(0, None, 2), slice(1, None, 2)
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
    """

    meta: Meta
    head: Head
    backbone: dict[str, Tensor]
    holdout: Tensor
    holdout_labels: Tensor
    holdout_right: Tensor
    centre: Tensor
    supports: tuple[Tensor, ...] = ()

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

    def network(self, device: torch.device | None = None) -> EmbeddingNetwork:
        """Rebuild the embedding network in evaluation mode."""
        meta = self.meta
        backbone = build_backbone(
            meta.backbone, meta.width, meta.embedding_size, meta.image_size, meta.input_size
        )
        load_state(backbone, self.backbone)
        normalisation = Normalisation(meta.mean, meta.std)
        network = EmbeddingNetwork(backbone, normalisation, self.centre, meta.mirror)
        return network.eval().to(device or torch.device("cpu"))

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean `(D,)` over base classes and inverse `(D, D)` of the shrunk covariance within them.

        They are taken from images that the backbone was not fitted to, whose embeddings spread as
        those of new classes do.
        """
        mean, within = class_statistics(self.shaping.embeddings, self.shaping.labels)
        return mean, shrunk_precision(within)

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
        return self.calibration_with(self.head.base.proxies, self.holdout[CALIBRATION].float())

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
        head = self.head.with_rows(row[None])
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

    def renamed(self, old: str, new: str) -> Checkpoint:
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

    def noted(self, command: str, options: dict[str, Any]) -> Checkpoint:
        """The checkpoint with one more step in its history."""
        step = {"command": command, "options": options}
        history = (*self.meta.history, step)
        return replace(self, meta=self.meta.model_copy(update={"history": history}))

    def derived(self, parent: str, config: dict[str, Any], command: str) -> Checkpoint:
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


def save(checkpoint: Checkpoint, path: Path) -> str:
    """Write a checkpoint atomically and return its hash.

    Raises:
        UsageError: `path` is a folder.
        CheckpointError: it cannot be written; the file that was there is untouched.
    """
    ensure_free(path, overwrite=True)
    head = checkpoint.head
    tensors = {f"backbone.{name}": tensor for name, tensor in checkpoint.backbone.items()}
    tensors |= {f"support.{i}": tensor for i, tensor in enumerate(checkpoint.supports)}
    tensors |= {
        "head.proxies": head.proxies,
        "head.scale": torch.tensor(head.scale),
        "head.bias": torch.tensor(head.bias),
        "holdout.embeddings": checkpoint.holdout,
        "holdout.labels": checkpoint.holdout_labels,
        "holdout.right": checkpoint.holdout_right,
        "stages.centre": checkpoint.centre,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Versions that did not know of these read files without them as well.
    left_out = {name for name in ("input_size", "renamed") if not getattr(checkpoint.meta, name)}
    text = json.dumps(checkpoint.meta.model_dump(mode="json", exclude=left_out), sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"lowshot": text})
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot write {path}: {reason}", "what was there is intact"
        ) from None
    return file_hash(path)


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: absent, damaged, not lowshot's, or inconsistent.
    """
    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}", how_to_make(path)) from None
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {reason}", how_to_make(path)
        ) from None
    if "lowshot" not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of lowshot's", how_to_make(path)
        )
    try:
        meta = Meta.model_validate_json(metadata["lowshot"])
        return _assemble(meta, tensors)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(
            f"{path} has broken metadata: {where}: {first['msg']}", how_to_make(path)
        ) from None
    except LowshotError as error:
        raise CheckpointError(f"{path}: {error.message}", error.hint) from None
    except (ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is inconsistent: {reason}", how_to_make(path)) from None


def _assemble(meta: Meta, tensors: dict[str, Tensor]) -> Checkpoint:
    n_classes, n_novel = len(meta.classes), len(meta.supports)

    take = partial(checked_tensor, tensors)
    centre = take("stages.centre", (None,))
    size = meta.embedding_size + len(centre)
    proxies = take("head.proxies", (n_classes, size))
    if bool(((proxies.norm(dim=1) - 1).abs() > _UNIT_TOLERANCE).any()):
        raise ValueError("head.proxies has rows that are not of length 1")
    labels = take("holdout.labels", (None,), torch.int64)
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < meta.n_base):
        raise ValueError("holdout.labels name classes that are not base classes")
    prefix = "backbone."
    backbone = {
        name.removeprefix(prefix): take(name, tuple(tensor.shape), tensor.dtype)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    checkpoint = Checkpoint(
        meta=meta,
        head=Head(
            proxies,
            take("head.scale", ()).item(),
            meta.n_base,
            take("head.bias", ()).item(),
        ),
        backbone=backbone,
        holdout=take("holdout.embeddings", (len(labels), size), torch.float16),
        holdout_labels=labels,
        holdout_right=take("holdout.right", (len(labels),), torch.bool),
        centre=centre,
        supports=tuple(take(f"support.{i}", (None, size)) for i in range(n_novel)),
    )
    if checkpoint.network().size(meta.image_size) != size:
        raise ValueError(f"head.proxies is for embeddings of {size} numbers, unlike the network")
    return checkpoint


def how_to_make(path: Path) -> str:
    """The command that makes a checkpoint of this name, as a hint."""
    maker = _MAKERS.get(path.stem)
    return f"`lowshot {maker}` makes it" if maker else "check the path after --checkpoint"
