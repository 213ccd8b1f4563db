"""Datasets by name."""

from __future__ import annotations

from dataclasses import replace

from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import DEFAULT_DATASET
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import LISTING
from lowshot_cli.errors import DataError
from lowshot_cli.progress import OnProgress, silent
from lowshot_cli.storage.cache import image_cache


def load_dataset(
    config: Config,
    image_size: int | None = None,
    on_progress: OnProgress = silent,
    *,
    framing: Framing | None = None,
    rules: int = LISTING,
) -> Dataset:
    """Load the dataset that the config names.

    Args:
        config: `dataset`, `data_dir`, `image_size`, `fit`, `skip_bad` and `strict` are read.
        image_size: side in pixels that a checkpoint asks for; wins over the config's.
        on_progress: gets reports of a download, and of image files that are decoded.
        framing: how a checkpoint's photos become squares; wins over the config's.
        rules: by which image files are listed; those of a checkpoint for its dataset.

    Raises:
        DataError: the data are absent or broken.
    """
    from lowshot_cli.data import cifar100, glyphs, image_folder

    framing = framing or CROP.with_fit(config.fit)
    size, name = image_size or config.image_size, config.dataset or DEFAULT_DATASET
    if name == "cifar100":
        if size not in (None, cifar100.IMAGE_SIZE):
            raise DataError(f"CIFAR-100 images are {cifar100.IMAGE_SIZE} pixels wide, not {size}")
        return replace(cifar100.load(config.data_folder, on_progress), framing=framing)
    if name == "glyphs":
        return replace(glyphs.make(size or glyphs.IMAGE_SIZE), framing=framing)
    if name == "none":
        raise DataError(
            "a model adopted without data has no dataset",
            "`imprint` and `evaluate` take your `images`; `Model.finetune` tunes new classes",
        )
    if config.data_dir is None:
        raise DataError("`dataset=folder` needs `data_dir`", "name the folder that holds train/")
    side = size or image_folder.IMAGE_SIZE
    return image_folder.load(
        config.data_dir,
        side,
        image_cache(),
        framing=framing,
        rules=rules,
        skip_bad=config.skip_bad,
        strict=config.strict,
        on_progress=on_progress,
    )
