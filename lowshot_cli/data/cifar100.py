"""CIFAR-100 in the layout that torchvision uses."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.data.download import Archive, fetch
from lowshot_cli.errors import DataError, one_line
from lowshot_cli.progress import OnProgress, silent

IMAGE_SIZE = 32
N_CLASSES = 100
FOLDER = "cifar-100-python"
_SPLITS = {"train": 50_000, "test": 10_000}
ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    size=169_001_437,
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    files={
        f"{FOLDER}/{name}": most
        for name, most in (("train", 200_000_000), ("test", 40_000_000), ("meta", 1_000_000))
    },
)
_ALLOWED_GLOBALS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, lists, dicts and strings; refuses any other global before importing it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which CIFAR-100 does not contain"
            )
        return super().find_class(module, name)


def load(data_dir: Path, on_progress: OnProgress = silent) -> Dataset:
    """Load both splits; download the archive into `data_dir` if they are absent.

    Raises:
        DataError: the data are absent and cannot be downloaded, or a file is not CIFAR-100's.
    """
    folder = data_dir / FOLDER
    if not all((folder / name).is_file() for name in (*_SPLITS, "meta")):
        _download(data_dir, on_progress)
    meta = _unpickle(folder / "meta")
    names = meta.get("fine_label_names")
    if (
        not isinstance(names, list)
        or len(set(map(str, names))) != N_CLASSES
        or len(names) != N_CLASSES
    ):
        raise DataError(f"{folder / 'meta'} does not name {N_CLASSES} classes", _refetch(folder))
    train, test = (_split(folder / name, count) for name, count in _SPLITS.items())
    class_names = tuple(str(name) for name in names)
    return Dataset("cifar100", class_names, train, test, mirror=True, default_classes=40)


def _split(path: Path, count: int) -> Images:
    content = _unpickle(path)
    pixels, labels = content.get("data"), content.get("fine_labels")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (count, 3 * IMAGE_SIZE * IMAGE_SIZE)
        or not isinstance(labels, list)
        or len(labels) != count
        or not all(isinstance(label, int) and 0 <= label < N_CLASSES for label in labels)
    ):
        raise DataError(
            f"{path} does not hold {count} labelled images of CIFAR-100", _refetch(path.parent)
        )
    square = np.ascontiguousarray(pixels).reshape(count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return Images(torch.from_numpy(square), torch.tensor(labels, dtype=torch.int64))


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from None
    # A damaged pickle may raise nearly anything; every way of failing means the same to the user.
    except Exception as error:
        raise DataError(f"{path} is damaged: {one_line(error)}", _refetch(path.parent)) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not one of CIFAR-100's files", _refetch(path.parent))
    return content


def _refetch(folder: Path) -> str:
    return f"delete {folder} to download it again"


def _download(data_dir: Path, on_progress: OnProgress) -> None:
    try:
        fetch(ARCHIVE, data_dir, on_progress)
    except (DataError, OSError) as error:
        reason = getattr(error, "message", None) or getattr(error, "strerror", None) or error
        raise DataError(
            f"CIFAR-100 is not in {data_dir / FOLDER} and cannot be downloaded: {reason}",
            "name the folder that holds cifar-100-python in `data_dir` or LOWSHOT_DATA, "
            "or use `dataset=glyphs`, which needs no data",
        ) from None
