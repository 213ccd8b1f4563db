"""One file rebuilds the model, and nothing else is accepted in its place."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.checkpoint.metadata import SupportRecord
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import CheckpointError
from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.methods.imprinting import shrinkage
from lowshot_cli.models.embedder import embed
from lowshot_cli.storage.tensors import read_tensors
from tests.conftest import TINY

# Of the tiny base model: 32 trained, 8 and 4 times its width from the stages.
SIZE = TINY["embedding_size"] + 12 * TINY["width"]
RECORD = SupportRecord(method="imprint", indices=(3, 5), files=None, pixel_hashes=("a", "b"))


@pytest.fixture
def grown(base: Checkpoint) -> Checkpoint:
    row = torch.nn.functional.one_hot(torch.tensor(2), SIZE).float()
    grown = base.with_class("[/red] new", row[None], torch.randn(2, SIZE), RECORD)
    return replace(grown, head=replace(grown.head, bias=0.25))


def test_a_checkpoint_comes_back_as_it_was(grown: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(grown, path)
    back = load(path)
    assert back.meta == grown.meta
    assert torch.equal(back.head.proxies, grown.head.proxies)
    assert (back.head.bias, back.head.n_base) == (0.25, 12)
    assert torch.equal(back.supports[0], grown.supports[0])
    assert torch.equal(back.holdout.embeddings, grown.holdout.embeddings)


def test_the_rebuilt_network_embeds_the_same(
    base: Checkpoint, glyphs: Dataset, tmp_path: Path
) -> None:
    save(base, tmp_path / "model.safetensors")
    images = glyphs.test.pixels[:20]
    again = load(tmp_path / "model.safetensors").network()
    assert torch.equal(embed(base.network(), images), embed(again, images))


def test_saving_twice_gives_the_same_bytes(grown: Checkpoint, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(grown, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_file_holds_no_folder_host_or_time(base_path: Path) -> None:
    _, metadata = read_tensors(base_path)
    for secret in (str(base_path.parent), os.uname().nodename, "data_dir", "workdir"):
        assert secret not in metadata["lowshot"]


def test_an_interruption_while_a_file_is_read_is_no_damage_of_it(
    base_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def interrupted(path: str, framework: str) -> safe_open:
        signal.raise_signal(signal.SIGINT)
        opened.append(safe_open(path, framework=framework))
        return opened[0]

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("lowshot_cli.storage.tensors.safe_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_tensors(base_path)
    assert len(opened) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_removing_a_novel_class_restores_the_base_model(
    base: Checkpoint, grown: Checkpoint
) -> None:
    restored = grown.without_class("[/red] new")
    assert restored.meta == base.meta
    assert torch.equal(restored.head.proxies, base.head.proxies)
    assert restored.supports == ()


def test_removing_a_base_class_keeps_the_others_apart(grown: Checkpoint) -> None:
    name = grown.meta.classes[4]
    smaller = grown.without_class(name)
    assert smaller.meta.n_base == smaller.head.n_base == 11
    assert name not in smaller.meta.classes
    assert len(smaller.holdout) == len(grown.holdout) - 50
    for old, other in enumerate(grown.base_classes):
        if other != name:
            new = smaller.meta.classes.index(other)
            kept = smaller.holdout.embeddings[smaller.holdout.labels == new]
            assert torch.equal(kept, grown.holdout.embeddings[grown.holdout.labels == old])
    assert smaller.meta.base_counts is None


def test_what_sets_the_bias_shapes_no_proxy(base: Checkpoint) -> None:
    samples = base.backgrounds[0].samples
    shaping = {tuple(row) for row in samples.embeddings.tolist()}
    (queries,) = base.calibration
    calibration = {tuple(row) for row in queries.embeddings.tolist()}
    assert shaping
    assert calibration
    assert not shaping & calibration
    assert torch.bincount(samples.labels).tolist() == [25] * 12


def test_whitening_statistics_are_those_of_the_fit_half(base: Checkpoint) -> None:
    (background,) = base.backgrounds
    samples, found = background.samples, background.statistics
    expected = Statistics.of(samples.embeddings, samples.labels, shrinkage(SIZE))
    assert torch.equal(found.centre, expected.centre)
    assert found.centre.shape == (SIZE,)
    within = expected.scatter / len(samples.labels)
    ridge = within.trace() / 896 * torch.eye(SIZE)
    assert torch.allclose(found.precision @ (within + ridge), torch.eye(SIZE), atol=1e-2)


def _broken(path: Path, target: Path, **changes: object) -> None:
    tensors, metadata = read_tensors(path)
    meta = json.loads(metadata["lowshot"])
    for name, value in changes.items():
        if name in meta:
            meta[name] = value
        elif value is None:
            del tensors[name]
        else:
            assert isinstance(value, torch.Tensor)
            tensors[name] = value
    save_file(tensors, target, {"lowshot": json.dumps(meta)})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"head.proxies": torch.zeros(12, SIZE)}, "not of length 1"),
        ({"head.proxies": torch.full((12, SIZE), float("nan"))}, "not finite"),
        ({"head.proxies": torch.ones(11, 32)}, "head.proxies is"),
        ({"head.scale": torch.tensor(float("inf"))}, "not finite"),
        ({"holdout.labels": torch.full((600,), 12)}, "not base classes"),
        ({"stages.centre": None}, "stages.centre"),
        ({"stages.centre": torch.zeros(SIZE - 31)}, "unlike the stages of the network"),
        (
            {"stages.centre": torch.zeros(8), "head.proxies": torch.eye(12, 40)},
            "head.proxies is",
        ),
        ({"classes": ["a"] * 12}, "occurs twice"),
        ({"format": 5}, "format"),
        ({"n_base": 13}, "disagree"),
        ({"embedding_size": 64}, "unlike the network's"),
        ({"backbone": "resnet18"}, "inconsistent"),
    ],
)
def test_an_inconsistent_file_is_refused(
    base_path: Path, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    target = tmp_path / "broken.safetensors"
    _broken(base_path, target, **changes)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load(target)
    assert str(target) in caught.value.message


def test_random_damage_is_an_error_or_a_valid_model(base_path: Path, tmp_path: Path) -> None:
    content = bytearray(base_path.read_bytes())
    rng, target, refused = np.random.default_rng(0), tmp_path / "damaged.safetensors", 0
    for trial in range(300):
        damaged = bytearray(content)
        reach = 4000 if trial % 2 else len(damaged)
        for position in rng.integers(0, reach, 8):
            damaged[position] = rng.integers(0, 256)
        target.write_bytes(damaged[: rng.integers(1, len(damaged))] if trial % 3 == 0 else damaged)
        try:
            load(target).network()
        except CheckpointError:
            refused += 1
    assert refused > 150


def test_a_failed_write_leaves_the_old_file(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save(base, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(base, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
