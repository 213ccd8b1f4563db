"""Embeddings and their cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.models import embedder as embedder_module
from lowshot_cli.models.embedder import Embedder, Views, centre_of_stages, embed, fingerprint, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.progress import Progress
from lowshot_cli.storage.cache import DiskCache
from tests.far_device import far_device


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", limit=10**9)


def test_embeddings_are_unit_and_do_not_depend_on_the_batch(
    base: Checkpoint, glyphs: Dataset
) -> None:
    network, images = base.network(), glyphs.test.pixels[:600:2]
    together = embed(network, images)
    assert torch.allclose(together.norm(dim=1), torch.ones(300), atol=1e-5)
    alone = torch.cat([embed(network, images[i : i + 1]) for i in (0, 7, 299)])
    assert (together[[0, 7, 299]] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("views", [None, Views(2, flip=True, seed=3)])
def test_embeddings_made_on_another_device_come_back_the_same(
    base: Checkpoint, glyphs: Dataset, views: Views | None
) -> None:
    images = glyphs.test.pixels[:300]
    near = embed(base.network(), images, views=views)
    with far_device(doubles=False) as device:
        far = embed(base.network(device), images, views=views)
        with pytest.raises(TypeError, match="float64"):
            images[0, 0].to(device).double()
    assert torch.equal(far, near)


def test_the_mean_of_the_stages_needs_no_float64_on_a_gpu(
    base: Checkpoint, glyphs: Dataset
) -> None:
    images = glyphs.test.pixels[:40]
    near = centre_of_stages(base.network(), images)
    with far_device(doubles=False) as device:
        far = centre_of_stages(base.network(device), images)
    assert torch.equal(far, near)


def test_a_network_in_training_is_evaluated_and_left_in_training(
    base: Checkpoint, glyphs: Dataset
) -> None:
    network = base.network().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    embedded = embed(network, glyphs.test.pixels[:40])
    assert network.training
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert torch.equal(embedded, embed(base.network(), glyphs.test.pixels[:40]))


def test_views_are_averaged_and_repeatable(base: Checkpoint, glyphs: Dataset) -> None:
    network, images = base.network(), glyphs.test.pixels[:30]
    views = Views(6, flip=False, seed=3)
    mean = embed(network, images, views=views)
    assert torch.equal(mean, embed(network, images, views=views))
    norms = mean.norm(dim=1)
    assert norms.max() < 1
    assert norms.min() > 0.5


def test_what_is_cached_is_not_embedded_again(
    base: Checkpoint, glyphs: Dataset, cache: DiskCache
) -> None:
    reports: list[Progress] = []
    embedder = Embedder(base.network(), cache=cache, on_progress=reports.append)
    first = embedder.classes(glyphs.test, [5, 2])
    assert sum(1 for _ in reports) == 2
    again = embedder.classes(glyphs.test, [2, 5, 9])
    assert [report.total for report in reports[2:]] == [50]
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], again[0])
    assert torch.equal(first[0], embed(base.network(), glyphs.test.pixels[glyphs.test.of_class(5)]))


def test_other_weights_views_or_arithmetic_have_other_keys(base: Checkpoint) -> None:
    network = base.network()
    keys = {
        fingerprint(network, torch.float32),
        fingerprint(network, torch.bfloat16),
        fingerprint(network, torch.float32, Views(2, flip=True, seed=0)),
    }
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] += 1e-4
    keys.add(fingerprint(network, torch.float32))
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_cache_file_is_made_again(
    base: Checkpoint, glyphs: Dataset, cache: DiskCache, damage: str
) -> None:
    embedder = Embedder(base.network(), cache=cache)
    expected = embedder.classes(glyphs.test, [0])[0].clone()
    (path,) = cache.folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-100] ^= 255
    path.write_bytes({"truncate": content[:-50], "flip": content, "empty": b""}[damage])
    assert torch.equal(embedder.classes(glyphs.test, [0])[0], expected)
    assert cache.read(path.stem) is not None


def test_the_longest_unused_files_go_first(tmp_path: Path) -> None:
    import os

    cache = DiskCache(tmp_path, limit=3000)
    for age, key in ((30, "old"), (20, "middle"), (10, "new")):
        cache.write(key, {"embeddings": torch.zeros(10, 32)})
        os.utime(tmp_path / f"{key}.safetensors", (1e9 - age, 1e9 - age))
    assert cache.read("old") is not None
    cache.trim()
    assert sorted(entry.path.stem for entry in cache.entries()) == ["new", "old"]


def test_what_a_killed_process_left_behind_is_swept_away_in_time(tmp_path: Path) -> None:
    import os
    import time

    cache = DiskCache(tmp_path, limit=10**9)
    for name, age in ((".young.tmp", 60), (".old.tmp", 2 * 24 * 3600)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert cache.entries() == []
    cache.trim()
    assert [path.name for path in tmp_path.iterdir()] == [".young.tmp"]


def test_a_cache_that_cannot_be_written_is_no_error(
    base: Checkpoint, glyphs: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    embedder = Embedder(base.network(), cache=DiskCache(tmp_path / "file" / "cache", 10**9))
    assert embedder.classes(glyphs.test, [0])[0].shape == (50, base.head.size)


class Untraceable(nn.Module):
    """Its flow depends on its input, which cannot be traced."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
        self.embedding_size, self.stage_sizes, self.part_weights = 4, (), (1.0,)
        self.stage_sizes: tuple[int, ...] = ()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        features = self.body(images).mean((2, 3))
        return (features if features.sum() > 0 else -features,)


@pytest.mark.parametrize(("norm", "slow"), [(nn.BatchNorm2d(4), True), (nn.Identity(), False)])
def test_a_backbone_that_cannot_be_fused_embeds_all_the_same_and_says_so_once(
    base: Checkpoint, glyphs: Dataset, norm: nn.Module, slow: bool
) -> None:
    normalisation = base.network().normalisation
    network = EmbeddingNetwork(Untraceable(norm), normalisation).eval()
    reports: list[Progress] = []
    embedder = Embedder(network, on_progress=reports.append)
    for _ in range(2):
        (found,) = embedder.classes(glyphs.test, [0])
    images = glyphs.test.pixels[glyphs.test.of_class(0)]
    with torch.inference_mode():
        expected = network(normalisation.apply(images, network.device))
    assert torch.allclose(found, expected, atol=1e-6)
    assert sum("cannot be optimised" in report.note for report in reports) == slow


def test_a_bug_in_fusing_is_not_hidden(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: nn.Module) -> nn.Module:
        raise KeyError("a bug")

    monkeypatch.setattr(embedder_module, "fuse", broken)
    with pytest.raises(KeyError):
        fused(base.network())


class Counting(nn.Module):
    """Notes how many images it gets at once."""

    embedding_size, stage_sizes, part_weights = 3, (), (1.0,)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.sizes: set[int] = set()

    def __deepcopy__(self, _: object) -> Counting:
        return self

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.sizes.add(len(images))
        return (self.layer(images.mean((2, 3))),)


@pytest.mark.parametrize(
    ("side", "alone", "in_threads"), [(64, {200}, {64, 8}), (65, {16, 8}, {16, 8})]
)
def test_large_images_are_embedded_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
    base: Checkpoint,
    side: int,
    alone: set[int],
    in_threads: set[int],
) -> None:
    monkeypatch.setattr(embedder_module, "fuse", lambda module: module)
    images = Images(torch.zeros(200, 3, side, side, dtype=torch.uint8), torch.zeros(200).long())
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        network = EmbeddingNetwork(Counting(), base.network().normalisation)
        embed(network, images.pixels)
        assert network.backbone.sizes == alone
        network = EmbeddingNetwork(Counting(), base.network().normalisation)
        Embedder(network).classes(images, [0])
        assert network.backbone.sizes == in_threads
