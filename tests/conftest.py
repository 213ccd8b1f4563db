"""Shared fixtures: one tiny base model on glyphs, trained once, and a way to run commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from filelock import FileLock
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.cli.main import app
from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.storage.cache import DiskCache
from tests.faults.conftest import Server

TINY = {
    "classes": 12,
    "width": 8,
    "embedding_size": 32,
    "epochs": 6,
    "batch_size": 32,
    "holdout": 50,
    "lr": 0.1,
    "mixup": 0.0,
}

RunCommand = Callable[..., Result]

# Two processes that get the longest modules first end together. These need no shared base model,
# so that it is there when both come to ask for it.
_FIRST = ("test_crashes", "test_ranks", "test_cifar100", "test_environment", "test_kills")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first."""
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(_FIRST)))


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests away from the user's caches and settings, whoever starts them."""
    home = tmp_path_factory.mktemp("home")
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    os.environ.pop("LOWSHOT_WORKDIR", None)
    # Spinning threads of one process slow every other one down on a machine with few cores.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # Under nohup and in the background it is ignored, and so it would be by every child.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def glyphs() -> Dataset:
    return load_dataset(Config(dataset="glyphs"))


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps({"dataset": "glyphs", "train_base": TINY}))
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_yaml: Path) -> Config:
    return load_config(tiny_yaml)


@pytest.fixture(scope="session")
def base_path(tmp_path_factory: pytest.TempPathFactory, tiny_yaml: Path) -> Path:
    """The trained base model; of several test processes the first to ask makes it for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    workdir = folder / "shared-base"
    arguments = ["train-base", "--config", str(tiny_yaml), "--workdir", str(workdir), "--quiet"]
    with FileLock(folder / "shared-base.lock"):
        if not (workdir / "base.safetensors").exists():
            result = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0, result.output
    return workdir / "base.safetensors"


@pytest.fixture(scope="session")
def base(base_path: Path) -> Checkpoint:
    return load(base_path)


@pytest.fixture(scope="session")
def embedder(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(base.network(), cache=DiskCache(tmp_path_factory.mktemp("embedded"), 10**9))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs commands in processes of their own."""
    started = Server(tmp_path_factory.mktemp("server"))
    yield started
    started.close()


def save_images(pixels: Iterable[Tensor], folder: Path) -> None:
    """Write images `(3, S, S)` uint8 to a folder, made if need be, as `0.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")


def save_colours(root: Path, *folders: str, count: int = 3) -> None:
    """Write images of one colour each to folders, made if need be, as `0.png` and so on."""
    for place in folders:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = (len(place), number, 0)
            Image.new("RGB", (16, 16), colour).save(root / place / f"{number}.png")


@pytest.fixture
def workdir(tmp_path: Path, base_path: Path) -> Path:
    """A work folder of the test's own that holds the trained base model."""
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(base_path, folder)
    return folder


@pytest.fixture
def lowshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Run a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOWSHOT_DATA", raising=False)

    def run(*arguments: object, **settings: Any) -> Result:
        texts = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, texts, catch_exceptions=False, **settings)

    return run
