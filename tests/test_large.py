"""Images and classes by the many: what is in memory is a batch and a block, never all."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile

from lowshot_cli.adaptation.bias import set_bias
from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load, save
from lowshot_cli.config.schema import Config
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.data.image_files import Photo
from lowshot_cli.data.image_store import load_or_decode
from lowshot_cli.errors import Interrupted
from lowshot_cli.evaluation.evaluate import evaluate_embeddings
from lowshot_cli.evaluation.predict import describe
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.models.embedding import Normalisation
from lowshot_cli.models.head import nearest_proxies
from lowshot_cli.progress import Progress
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.storage.files import new_array
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.task import make_task
from lowshot_cli.training.train import train_base
from tests.benchmarks.scale import append, near, random_head, with_nearest_cached

MANY, SIDE, N_CLASSES = 60_000, 32, 20
# All those images take 176 MiB, half of them 88; a batch in fp32 takes 3.
SOME_MIB = 20


class Made:
    """The most that new tensors and arrays take at one time within a block, in MiB.

    Told by the tracers of PyTorch and Python: the memory of the process depends on what the
    allocator kept from other tests.
    """

    def __enter__(self) -> Made:
        self._tensors = profile(profile_memory=True, use_kineto=True)
        tracemalloc.start()
        self._tensors.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.__exit__(None, None, None)
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        events = self._tensors.kineto_results.events()
        sizes = (event.nbytes() for event in events if event.name() == "[memory]")
        self.most = (max(itertools.accumulate(sizes)) + arrays) / 2**20


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Black images in a mapped file, as a folder's are, with a few test images."""
    path = tmp_path_factory.mktemp("many") / "train.npy"
    new_array(path, np.uint8, (MANY, 3, SIDE, SIDE)).flush()
    pixels = torch.from_numpy(np.load(path, mmap_mode="c"))
    train = Images(pixels, torch.arange(N_CLASSES).repeat_interleave(MANY // N_CLASSES))
    test = Images(pixels[: 10 * N_CLASSES].clone(), torch.arange(N_CLASSES).repeat_interleave(10))
    names = tuple(f"class {number}" for number in range(N_CLASSES))
    return Dataset("folder", names, train, test, mirror=True, default_classes=None)


def test_training_copies_a_batch_at_a_time_out_of_the_mapped_images(
    many: Dataset, tmp_path: Path
) -> None:
    options = TrainBaseConfig(epochs=1, width=2, embedding_size=8, batch_size=64, holdout=50)
    few = options.model_copy(update={"classes": 2})
    train_base_once(many, few, tmp_path)  # imports modules that count as well
    with Made() as made:
        train_base_once(many, options, tmp_path)
    assert made.most < SOME_MIB


def train_base_once(data: Dataset, options: TrainBaseConfig, folder: Path) -> None:
    """One step; all images are read to normalise them."""
    config = Config(dataset="folder", train_base=options)
    with pytest.raises(Interrupted):
        train_base(
            config, data, folder / "state.safetensors", context=RunContext(should_stop=lambda: True)
        )


def test_embedding_a_large_class_copies_a_batch_at_a_time(many: Dataset, base: Checkpoint) -> None:
    network = base.network()
    one = Images(many.train.pixels[:30_000], torch.zeros(30_000).long())
    with Made() as made:
        next(Embedder(Constant(network)).each(one, [0]))
    assert made.most < SOME_MIB


class Constant(torch.nn.Module):
    """Stands where a network does, and costs nothing: what is measured is how images reach it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = torch.fx.symbolic_trace(torch.nn.Identity())
        self.normalisation, self.mirror, self.weights = network.normalisation, False, (1.0,)
        self.device, self.input_size, self.unit = torch.device("cpu"), None, True

    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 8) / 8**0.5


def test_a_task_shares_the_pixels_of_its_dataset(glyphs: Dataset) -> None:
    task = make_task(TrainBaseConfig(classes=12, holdout=50), glyphs)
    for part in (task.fit, task.holdout):
        assert part.pixels.data_ptr() == glyphs.train.pixels.data_ptr()
        assert torch.equal(glyphs.train.labels[part.index].unique(), part_labels(task, glyphs))
    assert torch.equal(task.fit[:3], glyphs.train.pixels[task.fit.index[:3]])


def part_labels(task: object, data: Dataset) -> Tensor:
    return torch.tensor(sorted(data.label(name) for name in task.names))  # type: ignore[attr-defined]


def test_the_normalisation_is_the_mean_and_deviation_of_all_values(glyphs: Dataset) -> None:
    pixels = glyphs.train.pixels[:5000]
    found = Normalisation.of(pixels.split(77))
    for channel in range(3):
        values = pixels[:, channel].double()
        assert found.mean[channel] == round(values.mean().item(), 4)
        assert found.std[channel] == round(values.std().item(), 4)


def photos_of_one_file(folder: Path, count: int) -> list[list[Photo]]:
    path = folder / "pixel.raw"
    path.write_bytes(b"\x07")
    return [[Photo(f"a/{number}", str(path), (1, number)) for number in range(count)]]


def decode(source: IO[bytes], size: int, framing: Framing = CROP) -> np.ndarray:
    return np.full((3, size, size), source.read()[0], np.uint8)


def test_decoding_writes_to_the_map_and_not_to_memory(tmp_path: Path) -> None:
    files = photos_of_one_file(tmp_path, 15_000)
    cache = DiskCache(tmp_path / "cache", 10**10)
    seen: list[Progress] = []
    with Made() as made:
        images, *_ = load_or_decode(
            tmp_path, {"train": files}, 64, decode, cache, on_progress=seen.append
        )
    assert images["train"].pixels.shape == (15_000, 3, 64, 64)
    assert int(images["train"].pixels[-1].min()) == 7
    assert made.most < SOME_MIB
    assert [seen[-1].done, seen[-1].total, seen[-1].milestone] == [15_000, 15_000, True]
    assert all(one.done < other.done for one, other in itertools.pairwise(seen))


def test_an_interrupted_decoding_ends_soon_and_leaves_nothing(tmp_path: Path) -> None:
    files = photos_of_one_file(tmp_path, 20_000)
    cache = DiskCache(tmp_path / "cache", 10**10)
    decoded = 0

    def counted(source: IO[bytes], size: int, framing: Framing) -> np.ndarray:
        nonlocal decoded
        decoded += 1
        return decode(source, size)

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_decode(tmp_path, {"train": files}, 16, counted, cache, on_progress=interrupt)
    assert decoded < len(files[0]) / 2
    assert list(cache.folder.iterdir()) == []
    images, *_ = load_or_decode(tmp_path, {"train": files}, 16, decode, cache)
    assert int(images["train"].pixels.min()) == 7


@pytest.fixture(scope="module")
def wide() -> Checkpoint:
    """A head of 100,000 classes; a table of confusions of it would take 75 GiB."""
    return random_head(100_000, holdout=1, size=16)


def queries_of(model: Checkpoint, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    truth = torch.arange(count) * (model.meta.n_base // count)
    return truth, near(model.head.proxies[truth], generator)


def test_evaluation_of_a_large_head_makes_no_matrix_of_all_queries_and_classes(
    wide: Checkpoint,
) -> None:
    truth, embeddings = queries_of(wide, 2000)  # 763 MiB of cosines
    found = [(wide.meta.classes[i], e[None]) for i, e in zip(truth, embeddings, strict=True)]
    with Made() as made:
        result = evaluate_embeddings(wide, iter(found))
    assert made.most < 200
    expected = [
        int((wide.head.proxies @ e).argmax()) == i for i, e in zip(truth, embeddings, strict=True)
    ]
    assert result.global_accuracy == pytest.approx(100 * np.mean(expected))
    assert int(result.counts[:, 2].sum()) == 2000


def test_predictions_with_a_large_head_are_made_in_blocks(wide: Checkpoint) -> None:
    truth, embeddings = queries_of(wide, 1500)
    with Made() as made:
        found = describe(wide, embeddings, [str(i) for i in truth.tolist()], 3)
    assert made.most < 500  # cosines, logits and probabilities of all take 1,717 MiB
    assert [one.image for one in found] == [str(i) for i in truth.tolist()]
    last = wide.head.probabilities(embeddings[-1:]).topk(3)
    assert [name for name, _ in found[-1].top] == [wide.meta.classes[i] for i in last.indices[0]]


def test_a_class_more_compares_no_hold_out_image_with_the_base_rows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowshot_cli.checkpoint.holdout._MANY_SCORES", 1)
    model = random_head(2000, size=64)
    assert model.holdout.nearest is None
    settled = with_nearest_cached(model)
    path = tmp_path / "base.safetensors"
    save(settled, path)
    loaded = load(path)
    support = near(model.head.proxies[:5], torch.Generator().manual_seed(3))
    slow = append(model, support, "new")
    compared = 0

    def counting(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal compared
        compared += 1
        return nearest_proxies(*arguments)

    monkeypatch.setattr("lowshot_cli.methods.operating_point.nearest_proxies", counting)
    quick = append(loaded, support, "new")
    assert compared == 0
    assert quick.head.bias == slow.head.bias != 0
    append(model, support, "new")
    assert compared == 1


def test_what_is_known_of_the_hold_out_goes_with_the_rows_it_is_about(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_nearest_cached(base).holdout.nearest is None
    monkeypatch.setattr("lowshot_cli.checkpoint.holdout._MANY_SCORES", 1)
    settled = with_nearest_cached(base)
    support = settled.holdout.embeddings[:5].float()
    taught = append(settled, support, "new")
    assert taught.holdout.nearest is settled.holdout.nearest
    options = Config().finetune.model_copy(update={"freeze_base": "never", "steps": 5})
    tuned = finetune(taught, Config(finetune=options))
    held = tuned.holdout.calibrating(tuned.holdout.embeddings).float()
    proxies = tuned.head.base.proxies
    before, after = settled.holdout.nearest, tuned.holdout.nearest
    assert before is not None
    assert after is not None
    assert torch.equal(after[0], nearest_proxies(held, proxies)[0])
    assert not torch.equal(after[0], before[0])
    fewer = taught.without_class(taught.meta.classes[0])
    assert fewer.holdout.nearest is None
    assert set_bias(fewer, 2.0).head.bias == set_bias(with_nearest_cached(fewer), 2.0).head.bias
