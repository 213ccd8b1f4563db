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

from lowshot_cli.adaptation.bias import without_class
from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.imprint import imprint_photos
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, FinetuneConfig, ImprintConfig
from lowshot_cli.config.values import ExportFormat, FreezeBase, Loss, given_path, normal_name
from lowshot_cli.config.yaml_file import make_section
from lowshot_cli.data.in_memory import AnyImage, AnyImages, decode_any, list_images
from lowshot_cli.data.photos import Photos
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import DataError, UsageError
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
        """Classify one image or many.

        Args:
            images: one image or many.
            top: how many classes to list for each, most probable first.
            false_alarm: percent of known images that may be taken for unknown ones; None marks no
                image as unknown.
            confidence: share of images whose `prediction_set` is to hold the right class, such as
                0.9, on average over images of base classes; with too few hold-out images each set
                holds every class. None makes no sets.

        Returns:
            One prediction for one image, a list of them for many.

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
        """Unit embeddings `(B, D)` fp32, on the CPU; one image is B = 1.

        Raises:
            DataError: something that is not an image.
        """
        return self._embed(list_images(images)[0])

    def imprint(
        self,
        images: AnyImages,
        name: str,
        *,
        method: str = "whitened",
        max_forgetting: Budget | None = None,
        shots: int | None = None,
        views: int | None = None,
        seed: int = 0,
        replace: bool = False,
    ) -> Model:
        """Learn a class from a few images (Qi, Brown, Lowe, CVPR 2018).

        Args:
            images: support images of the class.
            name: the class.
            method: as in `lowshot imprint --method`.
            max_forgetting: points of base accuracy that all novel classes may cost together, or
                `none` for bias 0; by default 2, and no bias for `imprint` and `random`.
            shots: how many of the images to use, drawn by `seed`; None uses all.
            views: augmented views of each image that the method `augmented` averages.
            seed: decides every draw, and the directions of the method `random`.
            replace: replace a class that the model already knows.

        Returns:
            The model with the class; this one stays as it is.

        Raises:
            DataError: no images, not an image, or images that look like the average base class.
            UsageError: the model already knows the class, or a setting is out of range.
        """
        options = make_section(
            ImprintConfig,
            classes=(name,),
            method=method,
            max_forgetting=max_forgetting,
            shots=shots,
            views=views,
        )
        config = make_section(Config, imprint=options, seed=seed)
        given, _ = list_images(images)
        names = (i if isinstance(i, str | Path) else f"image {n}" for n, i in enumerate(given))
        photos = Photos(self._pixels(given), tuple(map(Path, names)))
        known, network = self.checkpoint, self.network
        taught, _ = imprint_photos(known, network, photos, config, replace_known=replace)
        return self._child(taught)

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
        """Fine-tune the head on the stored support embeddings of the novel classes.

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

        Returns:
            The fine-tuned model; this one stays as it is.

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
            Accuracies in percent, over all classes of the model. `forgetting` is None, as it needs
            the test images of the dataset.

        Raises:
            DataError: something is not an image, or the numbers of images and labels differ.
            UsageError: the model does not know a class.
        """
        given, _ = list_images(images)
        names = [labels] * len(given) if isinstance(labels, str) else list(labels)
        names = [normal_name(name) for name in names]
        if len(names) != len(given):
            raise DataError(
                f"there are {len(given)} images and {len(names)} labels",
                "give one label for each image",
            )
        members: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            self.checkpoint.position(name)
            members.setdefault(name, []).append(number)
        embeddings = self._embed(given)
        found = ((name, embeddings[numbers]) for name, numbers in members.items())
        return evaluate_embeddings(self.checkpoint, found)

    def rename(self, old: str, new: str) -> Model:
        """Return the model with another name for a class.

        Raises:
            UsageError: there is no such class, or the new name is taken or not allowed.
        """
        renamed = self.checkpoint.rename_class(old, new)
        return Model(
            renamed.with_history("classes rename", {"class": old, "to": new}), self.network
        )

    def remove(self, name: str) -> Model:
        """Return the model without a class.

        Raises:
            UsageError: there is no such class, or it is the last base class.
        """
        removed = without_class(self.checkpoint, name)
        return Model(removed.with_history("classes remove", {"class": name}), self.network)

    def export(self, folder: str | Path, *, format: ExportFormat = "all") -> None:
        """Write the model to a folder as files that run without lowshot, replacing older ones.

        Args:
            folder: created if it does not exist.
            format: `onnx`, `torch` for a PyTorch program, or `all`, beside labels and a model card.

        Raises:
            LowshotError: the folder cannot be written to, or the packages for ONNX are missing.
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

    def _child(self, taught: Checkpoint) -> Model:
        """Another model with the same network; a second step of a kind keeps the parent."""
        meta, step = self.checkpoint.meta, taught.meta.history[-1]["command"]
        again = step in [before["command"] for before in meta.history]
        parent = meta.parent if again else self.source
        return Model(taught.as_child_of(parent or ""), self.network)

    def _embed(self, images: Sequence[AnyImage]) -> Tensor:
        return embed(self.network, self._pixels(images))

    def _pixels(self, images: Sequence[AnyImage]) -> Tensor:
        size = self.checkpoint.meta.image_size
        return torch.stack([torch.from_numpy(decode_any(image, size)) for image in images])
