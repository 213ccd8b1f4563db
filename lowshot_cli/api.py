"""The Python interface: a checkpoint as an object that learns and predicts.

>>> import lowshot_cli as lowshot
>>> model = lowshot.load("base.safetensors")
>>> model
Model(resnet9, 12 base + 0 novel classes, cpu)
>>> model = model.imprint(["mug1.jpg", "mug2.jpg", "mug3.jpg"], "my mug")
>>> "my mug" in model.classes
True
>>> prediction = model("mug4.jpg")
>>> 0 <= prediction.probability <= 1
True
>>> [prediction.image for prediction in model(["mug4.jpg", "mug5.jpg"])]
['mug4.jpg', 'mug5.jpg']
>>> model.save("with-mug.safetensors")

An image is a path, a PIL image, an array `(H, W, 3)` or `(H, W)`, or a tensor `(3, H, W)`; arrays
and tensors hold uint8, or floats from 0 to 1. Many images are a list of these, a folder, or one
array `(B, H, W, 3)` or tensor `(B, 3, H, W)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from lowshot_cli.adaptation.background import give_photos
from lowshot_cli.adaptation.bias import without_class
from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.imprint import imprint_photos
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, FinetuneConfig, ImprintConfig
from lowshot_cli.config.values import ExportFormat, FreezeBase, Loss, given_path
from lowshot_cli.config.yaml_file import make_section
from lowshot_cli.data.in_memory import (
    AnyClasses,
    AnyImage,
    AnyImages,
    by_label,
    decode_all,
    list_images,
    photos_by_class,
    photos_of,
)
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.evaluation.evaluate import Evaluation, evaluate_embeddings
from lowshot_cli.evaluation.open_set import unknown_threshold
from lowshot_cli.evaluation.predict import Prediction, describe
from lowshot_cli.evaluation.prediction_sets import set_quantile
from lowshot_cli.export import export as exporter
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import chunk_size
from lowshot_cli.storage.files import ensure_writable, file_hash

Rate = float | None
Budget = float | Literal["none"]
_One = Image.Image
_Many = list[Any] | tuple[Any, ...]


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Open a checkpoint.

    Args:
        path: the checkpoint file.
        device: where this model and those made from it embed images: `cpu`, `cuda`, `cuda:1`,
            `mps`, or `auto` for `cuda` if there is a GPU.

    Raises:
        CheckpointError: the file is missing, damaged, or not a lowshot checkpoint.
        UsageError: there is no such device.
    """
    checkpoint, digest = ckpt.load(given_path(path)), file_hash(given_path(path))
    return Model(checkpoint, fused(checkpoint.network(pick_device(device))), digest)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A classifier that can be taught more classes; teaching returns a new model.

    Attributes:
        checkpoint: what `save` writes.
        network: its embedding network, ready for use and shared with models made from this one.
        source: hash of the file that it was loaded from; empty for one that was made here.
    """

    checkpoint: Checkpoint
    network: EmbeddingNetwork
    source: str = ""

    def __repr__(self) -> str:
        meta = self.checkpoint.meta
        n_novel = len(meta.novel_classes)
        classes = f"{meta.n_base} base + {n_novel} novel classes"
        return f"Model({meta.backbone}, {classes}, {self.device})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, base classes first."""
        return self.checkpoint.meta.classes

    @property
    def device(self) -> torch.device:
        """Where images are embedded; results are tensors on the CPU."""
        return self.network.device

    @overload
    def predict(
        self, images: _One, *, top: int = 3, false_alarm: Rate = None, confidence: Rate = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: _Many, *, top: int = 3, false_alarm: Rate = None, confidence: Rate = None
    ) -> list[Prediction]: ...

    # Whether a path is an image or a folder is known only at run time.
    @overload
    def predict(
        self, images: AnyImages, *, top: int = 3, false_alarm: Rate = None, confidence: Rate = None
    ) -> Any: ...

    def predict(
        self, images: AnyImages, *, top: int = 3, false_alarm: Rate = None, confidence: Rate = None
    ) -> Prediction | list[Prediction]:
        """Classify one image, or many, which gives a list.

        Args:
            images: one image or many.
            top: how many classes to list for each, most probable first.
            false_alarm: percent of known images that may be taken for unknown ones; None marks no
                image as unknown.
            confidence: share of images whose `prediction_set` is to hold the right class, such as
                0.9, on average over images of base classes; with too few hold-out images each set
                holds every class. None makes no sets.

        Raises:
            DataError: something is not an image.
            UsageError: a number is out of range.
            CheckpointError: the model has no hold-out, which rates and confidence need.
        """
        if top < 1:
            raise UsageError(f"`top` is {top}", "give 1 or more")
        given, is_one = list_images(images)
        names = [str(i) if isinstance(i, str | Path) else str(n) for n, i in enumerate(given)]
        known, threshold = self.checkpoint, unknown_threshold(self.checkpoint, false_alarm)
        quantile = set_quantile(known, confidence)
        found = describe(known, self._embed(given), names, top, threshold, quantile=quantile)
        return found[0] if is_one else found

    __call__ = predict

    def predict_proba(self, images: AnyImages) -> Tensor:
        """Probabilities `(B, C)` fp32, on the CPU, in the order of `classes`; one image is B = 1.

        Raises:
            DataError: something that is not an image.
        """
        parts = self.embed(images).split(chunk_size(len(self.classes)))
        return torch.cat([self.checkpoint.head.probabilities(part) for part in parts])

    def embed(self, images: AnyImages) -> Tensor:
        """Embeddings `(B, D)` fp32, on the CPU; one image is B = 1.

        They have length 1, except those of a classifier that was adopted without images.

        Raises:
            DataError: something that is not an image.
        """
        return self._embed(list_images(images)[0])

    def imprint(
        self,
        images: AnyClasses,
        name: str | None = None,
        *,
        method: str = "whitened",
        max_forgetting: Budget | None = None,
        shots: int | None = None,
        views: int | None = None,
        seed: int = 0,
        replace: bool = False,
    ) -> Model:
        """Return the model with classes learnt from a few images (Qi, Brown, Lowe, CVPR 2018).

        Args:
            images: support images of one class; or, without `name`, a mapping of names to images, a
                folder that holds a folder for each class, or a CSV file of `file,class`.
            name: the class.
            method: as in `lowshot imprint --method`.
            max_forgetting: points of base accuracy that all novel classes may cost together, or
                `none` for bias 0; by default 2, and no bias for `imprint` and `random`.
            shots: how many images of each class to use, drawn by `seed`; None uses all.
            views: augmented views of each image that the method `augmented` averages.
            seed: decides every draw, and the directions of the method `random`.
            replace: replace a class that the model already knows.

        Raises:
            DataError: no images, not an image, images that look like the average base class, or one
                of two classes.
            UsageError: the model already knows a class, or a setting is out of range.
        """
        options = make_section(
            ImprintConfig, method=method, max_forgetting=max_forgetting, shots=shots, views=views
        )
        config = make_section(Config, imprint=options, seed=seed)
        meta = self.checkpoint.meta
        classes = photos_by_class(images, name, meta.image_size, meta.framing)
        known, network = self.checkpoint, self.network
        taught, _ = imprint_photos(known, network, classes, config, replace_known=replace)
        return self._child(taught)

    def with_background(self, photos: AnyImages) -> Model:
        """Return a classifier that was adopted without images, calibrated on ordinary photos.

        They are of anything but new classes, and need no labels.

        Raises:
            DataError: there are none, or one is not a readable image.
            UsageError: the model was trained on images of its own, or there are too few photos.
        """
        meta = self.checkpoint.meta
        given = photos_of(photos, meta.image_size, meta.framing)
        known = give_photos(self.checkpoint, self.network, given)
        return Model(known, self.network)

    def finetune(
        self,
        *,
        steps: int | None = None,
        head_lr: float | None = None,
        prior_shots: float | None = None,
        loss: Loss | None = None,
        novel_weight: float | None = None,
        freeze_base: FreezeBase | None = None,
        max_forgetting: Budget | None = None,
    ) -> Model:
        """Return the model fine-tuned on the stored support embeddings of its novel classes.

        The settings and their defaults are those of `lowshot finetune`. Fine-tuning the whole
        network needs the images of the dataset: `lowshot finetune --scope full`.

        Args:
            steps: optimiser steps.
            head_lr: learning rate.
            prior_shots: weight of the starting proxy, in numbers of support images.
            loss: `adaptive` weighs all classes alike, `plain` all images.
            novel_weight: fixed weight of a novel sample; a base sample has weight 1.
            freeze_base: when base proxies stay fixed: `always`, `alternate` or `never`.
            max_forgetting: as in `imprint`, by default 2.

        Raises:
            UsageError: there is no novel class, or a setting is out of range.
        """
        options = make_section(
            FinetuneConfig,
            scope="head",
            steps=steps,
            head_lr=head_lr,
            prior_shots=prior_shots,
            loss=loss,
            novel_weight=novel_weight,
            freeze_base=freeze_base,
            max_forgetting=max_forgetting,
        )
        return self._child(finetune(self.checkpoint, Config(finetune=options)))

    def evaluate(self, images: AnyImages, labels: str | Sequence[str]) -> Evaluation:
        """Evaluate the model on labelled images.

        Args:
            images: one or many.
            labels: the class of each image, or one class for all of them.

        Returns:
            Accuracies in percent, over all classes of the model; `forgetting` is None.

        Raises:
            DataError: something is not an image, or the numbers of images and labels differ.
            UsageError: the model does not know a class.
        """
        given, _ = list_images(images)
        members = by_label(len(given), labels)
        for name in members:
            self.checkpoint.position(name)
        found = self._embed(given)
        return evaluate_embeddings(self.checkpoint, ((n, found[at]) for n, at in members.items()))

    def rename(self, old: str, new: str) -> Model:
        """Return the model with another name for a class.

        Raises:
            UsageError: there is no such class, or the new name is taken or not allowed.
        """
        renamed = self.checkpoint.rename_class(old, new)
        return self._changed(renamed, "classes rename", {"class": old, "to": new})

    def remove(self, name: str) -> Model:
        """Return the model without a class.

        Raises:
            UsageError: there is no such class, or it is the last base class.
        """
        removed = without_class(self.checkpoint, name)
        return self._changed(removed, "classes remove", {"class": name})

    def export(self, folder: str | Path, *, format: ExportFormat = "all") -> None:
        """Write the model to a folder as files that run without lowshot, replacing older ones.

        Args:
            folder: created if it does not exist.
            format: as in `lowshot export --format`.

        Raises:
            LowshotError: the folder cannot be written to, or the model not in this format.
        """
        folder, files = given_path(folder), exporter.export(self.checkpoint, format)
        ensure_writable(folder)
        exporter.write(folder, files)

    def save(self, path: str | Path) -> None:
        """Write the checkpoint atomically.

        Raises:
            CheckpointError: the file cannot be written.
        """
        ckpt.save(self.checkpoint, given_path(path))

    def _changed(self, checkpoint: Checkpoint, command: str, options: dict[str, Any]) -> Model:
        return Model(checkpoint.with_history(command, options), self.network)

    def _child(self, taught: Checkpoint) -> Model:
        """Another model with the same network; a second step of a kind keeps the parent."""
        meta, step = self.checkpoint.meta, taught.meta.history[-1]["command"]
        again = step in [before["command"] for before in meta.history]
        parent = meta.parent if again else self.source
        return Model(taught.as_child_of(parent or ""), self.network)

    def _embed(self, images: Sequence[AnyImage]) -> Tensor:
        meta = self.checkpoint.meta
        return embed(self.network, decode_all(images, meta.image_size, meta.framing))
