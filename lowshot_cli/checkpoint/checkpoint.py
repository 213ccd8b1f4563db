"""A model with all that is needed to teach it more classes, and how its classes are changed."""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowshot_cli.checkpoint.holdout import Holdout
from lowshot_cli.checkpoint.metadata import Meta, SupportRecord
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import Fit, class_name, normal_name
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.image_files import LISTING
from lowshot_cli.errors import CheckpointError, UsageError, did_you_mean, one_line
from lowshot_cli.methods.background import Background
from lowshot_cli.methods.operating_point import BaseQueries, pooled_margins
from lowshot_cli.models.backbones import build_backbone, load_state
from lowshot_cli.models.embedding import EmbeddingNetwork, Normalisation
from lowshot_cli.models.head import Head, without_proxy
from lowshot_cli.version import __version__

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that is needed to add classes to it.

    Attributes:
        meta: everything that is not a tensor.
        head: the classifier.
        backbone: state dict of the backbone.
        holdout: embeddings of base images that set the bias and shape novel classes.
        centre: `(M,)` fp32 centre of the stages beside the trained part of embeddings.
        supports: for each novel class the embeddings `(k, D)` fp32 of its support images.
        fold_proxies: `(F, W, R)` fp32 proxies of the novel classes as made without the images of
            each fold of the hold-out; None without cross-fitting.
    """

    meta: Meta
    head: Head
    backbone: dict[str, Tensor]
    holdout: Holdout
    centre: Tensor
    supports: tuple[Tensor, ...] = ()
    fold_proxies: Tensor | None = None

    @property
    def novel_classes(self) -> tuple[str, ...]:
        """Names of the novel classes in head order."""
        return self.meta.novel_classes

    @property
    def base_classes(self) -> tuple[str, ...]:
        """Names of the base classes in head order."""
        return self.meta.base_classes

    @property
    def n_background(self) -> int | None:
        """Number of unlabelled photos that an adopted classifier has; None for any other model."""
        return len(self.holdout) if self.meta.adopted else None

    @property
    def base_accuracy(self) -> float | None:
        """Test accuracy of the pristine base model, in percent.

        None if there were no test images, or a base class has been removed since.
        """
        counts = self.meta.base_counts or ()
        total = sum(count for _, count in counts)
        return 100 * sum(right for right, _ in counts) / total if total else None

    @cached_property
    def backgrounds(self) -> tuple[Background, ...]:
        """What novel classes are made from: that of the model, then that of each fold, if any."""
        return self.holdout.backgrounds(self.head, self.meta.embedding_size)

    @cached_property
    def calibration(self) -> tuple[BaseQueries, ...]:
        """Base queries that set the bias of novel classes, fold by fold."""
        return self.holdout.queries(self.backgrounds, changed=self.meta.base_changed)

    @property
    def calibration_heads(self) -> tuple[Head, ...]:
        """For each fold the head that its images are scored by, which none of them shaped."""
        if self.fold_proxies is None:
            return (self.head,)
        parts = zip(self.backgrounds[1:], self.fold_proxies, strict=True)
        return tuple(
            replace(self.head, proxies=torch.cat([background.proxies, novel]))
            for background, novel in parts
        )

    def novel_margins(self) -> Tensor:
        """Margins `(1, n)` of the queries of `calibration` against the novel proxies."""
        novel = [head.novel_proxies[None] for head in self.calibration_heads]
        return pooled_margins(self.calibration, novel)

    @property
    def digest(self) -> str:
        """Hex digest of the weights: backbone, head and scale."""
        digest = hashlib.blake2b(digest_size=16)
        others = (self.head.proxies, torch.tensor(self.head.scale), self.centre)
        for tensor in (*self.backbone.values(), *others):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def network(self, device: torch.device | None = None) -> EmbeddingNetwork:
        """Rebuild the embedding network in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the backbone that is named.
        """
        network = self.blank_network()
        try:
            load_state(network.backbone, self.backbone)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint is inconsistent: {one_line(error)}") from None
        return network.eval().to(device or torch.device("cpu"))

    def blank_network(self) -> EmbeddingNetwork:
        """The embedding network before its weights are loaded.

        Raises:
            LowshotError: an unknown backbone, or one that does not accept these sizes.
        """
        meta = self.meta
        backbone = build_backbone(
            meta.backbone, meta.width, meta.embedding_size, meta.image_size, meta.input_size
        )
        normalisation = Normalisation(meta.mean, meta.std)
        return EmbeddingNetwork(
            backbone, normalisation, self.centre, meta.mirror, unit=not meta.adopted
        )

    def with_bias(self, bias: float, max_forgetting: float | None) -> Checkpoint:
        """Set the bias that all novel classes share, and note the budget it was solved for."""
        return replace(
            self,
            meta=self.meta.model_copy(update={"max_forgetting": max_forgetting}),
            head=replace(self.head, bias=bias),
        )

    def with_class(
        self, name: str, proxies: Tensor, support: Tensor, record: SupportRecord
    ) -> Checkpoint:
        """Append a novel class.

        Args:
            name: the class.
            proxies: `(1 + F, R)`: its proxy, and with cross-fitting that of each fold.
            support: `(k, D)` embeddings of its support images.
            record: where they came from.
        """
        meta = self.meta.model_copy(
            update={
                "classes": (*self.meta.classes, name),
                "supports": (*self.meta.supports, record),
            }
        )
        of_folds = self.fold_proxies
        if of_folds is not None:
            of_folds = torch.cat([of_folds, proxies[1:, None]], 1)
        return replace(
            self,
            meta=meta,
            head=self.head.with_novel(proxies[:1]),
            supports=(*self.supports, support),
            fold_proxies=of_folds,
        )

    def without_class(self, name: str) -> Checkpoint:
        """Remove a class, base or novel, and everything that is kept of it.

        Raises:
            UsageError: no such class, or the last base class.
        """
        position, meta = self.position(name), self.meta
        name = meta.classes[position]
        is_base = position < meta.n_base
        if is_base and meta.n_base == 1:
            raise UsageError(f"{name!r} is the last base class")
        novel = position - meta.n_base
        update: dict[str, Any] = {
            "classes": _without(meta.classes, position),
            "renamed": {new: own for new, own in meta.renamed.items() if new != name},
        }
        supports, holdout, of_folds = self.supports, self.holdout, self.fold_proxies
        if is_base:
            update["n_base"] = meta.n_base - 1
            update["base_counts"] = None
            holdout = holdout.without_class(position, self.head)
        else:
            update["supports"] = _without(meta.supports, novel)
            supports = _without(supports, novel)
            if of_folds is not None:
                of_folds = without_proxy(of_folds, novel)
        proxies = without_proxy(self.head.proxies, position)
        head = replace(self.head, proxies=proxies, n_base=meta.n_base - int(is_base))
        return replace(
            self,
            meta=meta.model_copy(update=update),
            head=head,
            holdout=holdout,
            supports=supports,
            fold_proxies=of_folds,
        )

    def dataset_name(self, name: str) -> str:
        """What the dataset calls a class of the model."""
        return self.meta.renamed.get(name, name)

    def position(self, name: str) -> int:
        """Position of a class in the head.

        Raises:
            UsageError: the model knows no such class; the hint names the nearest.
        """
        name = normal_name(name)
        if name not in self.meta.classes:
            hint = did_you_mean(name, self.meta.classes, "`lowshot classes list` lists them")
            raise UsageError(f"the model knows no class {name!r}", hint)
        return self.meta.classes.index(name)

    def base_labels(self, dataset: Dataset) -> list[int]:
        """Labels that the base classes have in their dataset."""
        return [dataset.label(self.dataset_name(name)) for name in self.base_classes]

    def rename_class(self, old: str, new: str) -> Checkpoint:
        """Rename a class; it still stands for the same class of the dataset.

        Raises:
            UsageError: there is no such class, another one has the new name, or that name is not
                allowed.
        """
        old = self.meta.classes[self.position(old)]
        try:
            new = class_name(new)
        except ValueError as error:
            what = f"{reprlib.repr(new)} cannot be the name of a class, which {error}"
            raise UsageError(what) from None
        if new in self.meta.classes:
            raise UsageError(f"the model already knows a class {new!r}", "choose another name")
        classes = tuple(new if name == old else name for name in self.meta.classes)
        names = {name: own for name, own in self.meta.renamed.items() if name != old}
        if (own := self.dataset_name(old)) != new:
            names[new] = own
        return replace(
            self, meta=self.meta.model_copy(update={"classes": classes, "renamed": names})
        )

    def with_fit(self, fit: Fit | None) -> Checkpoint:
        """The checkpoint with another fit of photos; None leaves it as it is."""
        framing = self.meta.framing.with_fit(fit)
        return replace(self, meta=self.meta.model_copy(update={"framing": framing}))

    def with_history(self, command: str, options: dict[str, Any]) -> Checkpoint:
        """The checkpoint with one more step in its history."""
        step = {"command": command, "options": options}
        history = (*self.meta.history, step)
        return replace(self, meta=self.meta.model_copy(update={"history": history}))

    def with_settings(self, command: str, config: Config) -> Checkpoint:
        """Note the settings that a command made this model with, and the command as a step.

        Settings of earlier commands stay as they were then, whatever the config says about them,
        and so do dataset and image size.
        """
        values = config.portable()
        step = {"command": command, "seed": config.seed, "options": values[command]}
        now = {name: values[name] for name in ("skip_bad", "seed", command)}
        update = {
            "config": {**values, **self.meta.config, **now, "dataset": self.meta.dataset},
            "version": __version__,
            "history": (*self.meta.history, step),
        }
        return replace(self, meta=self.meta.model_copy(update=update))

    def as_child_of(self, parent: str) -> Checkpoint:
        """Note the hash of the file that this model was made from."""
        return replace(self, meta=self.meta.model_copy(update={"parent": parent}))


def _without(items: tuple[_Item, ...], position: int) -> tuple[_Item, ...]:
    return items[:position] + items[position + 1 :]


def check_dataset(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse a dataset that is not the checkpoint's.

    Raises:
        CheckpointError: it is another dataset, or has other content under the same name.
    """
    meta, name = checkpoint.meta, dataset.name
    check_dataset_name(meta, name)
    if meta.dataset_hash == dataset.content_hash:
        return
    if added := added_classes(meta, dataset):
        raise CheckpointError(
            f"the {name} data have a class that the checkpoint was not trained with: "
            f"{', '.join(added)}",
            "move it out of the dataset, and teach it with `lowshot imprint` from its photos",
        )
    own = (checkpoint.dataset_name(known) for known in meta.base_classes)
    if gone := [known for known in own if known not in dataset.labels]:
        raise CheckpointError(
            f"the {name} data lack a class that the checkpoint was trained on: {', '.join(gone)}",
            "check `data_dir`",
        )
    hint = "check `data_dir` and `image_size`"
    if name == "folder" and meta.listing < LISTING:
        hint += (
            "; images of more than 8 bits were read otherwise until 0.2: if it has any, train again"
        )
    raise CheckpointError(f"the {name} data differ from those the checkpoint was trained on", hint)


def added_classes(meta: Meta, dataset: Dataset) -> tuple[str, ...]:
    """The classes without which a dataset would be the one that a model was trained on."""
    known, base = (
        {meta.renamed.get(name, name) for name in names}
        for names in (meta.classes, meta.base_classes)
    )
    unknown = [name for name in dataset.class_names if name not in known]
    no_base = [name for name in dataset.class_names if name not in base]
    # Some may have been there, not used as base classes, and others been taught from photos since.
    for added in (unknown, no_base, *([name] for name in no_base)):
        rest = [label for name, label in dataset.labels.items() if name not in added]
        if rest and dataset.hash_of(rest) == meta.dataset_hash:
            return tuple(added)
    return ()


def check_dataset_name(meta: Meta, name: str) -> None:
    """Refuse a dataset of another name, before it is loaded.

    Raises:
        CheckpointError: it is not the checkpoint's.
    """
    if meta.dataset != name:
        raise CheckpointError(
            f"the checkpoint was trained on {meta.dataset}, not on {name}",
            f"give `dataset={meta.dataset}`, or another `workdir` or `checkpoint`",
        )
