"""The Python interface: a checkpoint as an object that learns and predicts.

>>> import lowshot_cli
>>> model = lowshot_cli.load("base.safetensors")
>>> model = model.imprint(["mug1.jpg", "mug2.jpg", "mug3.jpg"], name="my mug")
>>> "my mug" in model.classes
True
>>> first = model.predict(["mug4.jpg"])[0]
>>> 0 <= first.probability <= 1
True
>>> model.save("with-mug.safetensors")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lowshot_cli.adaptation import imprint as teach
from lowshot_cli.adaptation.bias import without_class
from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.data.decoding import as_pixels, decode
from lowshot_cli.data.photos import Photos
from lowshot_cli.errors import DataError
from lowshot_cli.evaluation.open_set import unknown_threshold
from lowshot_cli.evaluation.predict import Prediction, describe
from lowshot_cli.models.embedder import embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork

AnyImage = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor


def load(path: str | Path) -> Model:
    """Open a checkpoint.

    Raises:
        CheckpointError: absent, damaged, or not one of lowshot's.
    """
    checkpoint = ckpt.load(Path(path))
    return Model(checkpoint, fused(checkpoint.network()))


@dataclass(frozen=True)
class Model:
    """A classifier that can be taught more classes; what it is taught makes another model.

    An image is a path, a PIL image, an array `(H, W, 3)` or `(H, W)`, or a tensor `(3, H, W)`;
    arrays and tensors hold uint8, or floats from 0 to 1.

    Attributes:
        checkpoint: what is saved.
        network: its embedding network, ready for use and shared by the models made from this one.
    """

    checkpoint: Checkpoint
    network: EmbeddingNetwork

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, base classes first."""
        return self.checkpoint.meta.classes

    def embed(self, images: Sequence[AnyImage]) -> Tensor:
        """Unit embeddings `(B, D)` fp32.

        Raises:
            DataError: something that is no image.
        """
        return embed(self.network, self._pixels(images))

    def imprint(
        self,
        images: Sequence[AnyImage],
        name: str,
        method: str = "whitened",
        max_forgetting: float | Literal["none"] | None = None,
        replace: bool = False,
    ) -> Model:
        """Learn a class from a few images (Qi, Brown, Lowe, CVPR 2018).

        Args:
            images: of the class.
            name: of the class.
            method: as in `lowshot imprint --method`.
            max_forgetting: points of base accuracy that all novel classes may cost together, or
                `none` for no limit; by default 2, and no bias for `imprint` and `random`.
            replace: learn a class that the model knows anew.

        Raises:
            DataError: no images, or something that is none.
            UsageError: a class that the model knows.
        """
        options = ImprintConfig(classes=(name,), method=method, max_forgetting=max_forgetting)
        config = Config(imprint=options)
        pixels = self._pixels(images)
        files = tuple(
            Path(image) if isinstance(image, str | Path) else Path(f"image {number}")
            for number, image in enumerate(images)
        )
        photos = Photos(pixels, files)
        taught, _ = teach.imprint_photos(self.checkpoint, self.network, photos, config, replace)
        ancestor = self.checkpoint.meta.parent or ""
        return Model(taught.as_child_of(ancestor, config.portable(), "imprint"), self.network)

    def predict(
        self, images: Sequence[AnyImage], top: int = 3, false_alarm: float | None = None
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: to classify.
            top: classes to name for each, best first.
            false_alarm: percent of known images that may be taken for unknown ones; None asks
                nothing of the kind.

        Raises:
            DataError: something that is no image.
        """
        names = [
            str(image) if isinstance(image, str | Path) else str(number)
            for number, image in enumerate(images)
        ]
        threshold = -np.inf
        if false_alarm is not None:
            threshold = unknown_threshold(self.checkpoint, false_alarm)
        return describe(self.checkpoint, self.embed(images), names, top, threshold)

    def remove(self, name: str) -> Model:
        """The model without a class.

        Raises:
            UsageError: no such class, or the last base class.
        """
        removed = without_class(self.checkpoint, name)
        return Model(removed.with_history("classes remove", {"class": name}), self.network)

    def save(self, path: str | Path) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        ckpt.save(self.checkpoint, Path(path))

    def _pixels(self, images: Sequence[AnyImage]) -> Tensor:
        if not len(images):
            raise DataError("no images", "give at least one")
        size = self.checkpoint.meta.image_size
        return torch.stack([torch.from_numpy(_decoded(image, size)) for image in images])


def _decoded(image: AnyImage, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise DataError(f"no image at {path}", "check the path")
        return decode(path, size)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise DataError(f"a tensor {list(image.shape)} is no image", "give (3, H, W)")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype.kind == "f":
            if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
                raise DataError("a floating-point image holds more than 0 to 1", "scale it")
            array = (255 * array).round().astype(np.uint8)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
            raise DataError(
                f"an array {list(array.shape)} of {array.dtype} is no image", "give (H, W, 3)"
            )
        try:
            image = Image.fromarray(array)
        except (TypeError, ValueError):
            raise DataError(f"an array {list(array.shape)} is no image", "give (H, W, 3)") from None
    return as_pixels(image, size)
