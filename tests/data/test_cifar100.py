"""Real CIFAR-100: batched trials against single ones on a quickly trained model."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.adaptation.imprint import imprint_classes
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.evaluation.evaluate import evaluate
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.sweep.run import sweep
from lowshot_cli.sweep.run_folder import ROWS
from lowshot_cli.training.train import train_base

pytestmark = [
    pytest.mark.cifar,
    pytest.mark.skipif("LOWSHOT_DATA" not in os.environ, reason="LOWSHOT_DATA is not set"),
]

NOVEL = ("apple", "clock", "wolf", "whale")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(Config(data_dir=Path(os.environ["LOWSHOT_DATA"])))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(
        "train_base: {width: 4, embedding_size: 64, epochs: 1, lr: 0.1, mixup: 0}\n"
        f"sweep: {{trials: 4, shots: [1, 5], novel: [{', '.join(NOVEL)}]}}\n"
    )
    return load_config(path)


@pytest.fixture(scope="module")
def model(config: Config, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train_base(config, data, tmp_path_factory.mktemp("state") / "s").checkpoint


def test_the_files_are_whole_and_ordered_as_the_field_does(
    data: Dataset, model: Checkpoint
) -> None:
    assert data.train.pixels.shape == (50_000, 3, 32, 32)
    assert data.train.labels.bincount().unique().tolist() == [500]
    assert data.test.labels.bincount().unique().tolist() == [100]
    assert not set(NOVEL) & set(model.base_classes)


def test_an_epoch_learns_more_than_chance(model: Checkpoint) -> None:
    assert model.base_accuracy > 8
    assert sum(total for _, total in model.meta.base_counts) == 4000


@pytest.fixture(scope="module")
def embedder(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(model.network(), cache=DiskCache(tmp_path_factory.mktemp("embedded"), 10**9))


@pytest.mark.parametrize("method", ["imprint", "whitened", "finetune-head"])
def test_batched_and_single_trials_decide_alike(
    model: Checkpoint,
    data: Dataset,
    config: Config,
    embedder: Embedder,
    tmp_path: Path,
    method: str,
) -> None:
    sweep(model, data, config, embedder, tmp_path)
    with (tmp_path / ROWS).open(newline="", encoding="utf-8") as file:
        rows = {
            row["classes"]: row
            for row in csv.DictReader(file)
            if (row["method"], row["shots"], row["trial"]) == (method, "5", "0")
        }
    assert set(rows) == set(NOVEL)
    for name, row in rows.items():
        wanted = {"classes": (name,), "method": "whitened" if method == "whitened" else "imprint"}
        single = config.model_copy(update={"imprint": config.imprint.model_copy(update=wanted)})
        taught, _ = imprint_classes(model, data, embedder.network, single)
        if method == "finetune-head":
            taught = finetune(taught, single)
        found = evaluate(taught, data, embedder)
        # One decision more or less is 0.025 points of 4,000 base queries, 1 of 100 novel ones.
        assert found.base_accuracy == pytest.approx(float(row["base_accuracy"]), abs=0.01)
        assert found.novel_accuracy == pytest.approx(float(row["novel_accuracy"]), abs=0.5)
