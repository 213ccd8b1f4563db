"""Benchmarks that compare two sides in one run: `python -m tests.benchmarks --workdir runs`.

Needs CIFAR-100 in LOWSHOT_DATA and a base model in the work folder (`lowshot train-base`).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.format import load
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.environment import hardware, pick_device, versions
from lowshot_cli.methods.finetuning import class_weights
from lowshot_cli.methods.imprinting import imprint
from lowshot_cli.models.embedder import Embedder, embed
from lowshot_cli.storage.cache import embedding_cache
from lowshot_cli.sweep.run import sweep
from lowshot_cli.sweep.summary import SweepSummary
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.precision import matrix_rate


def main() -> None:
    """Run what is asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs"))
    parser.add_argument("--only", default="embedding,imprint,finetune,loop,episodes,growth,warm")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    base_path = arguments.workdir / "base.safetensors"
    if arguments.child:
        _sweep_alone(base_path, int(arguments.child))
        return
    base, dataset = load(base_path), load_dataset(Config(data_dir=_data()))
    rows: list[tuple[str, str]] = []
    seconds: dict[str, float] = {}
    for name in arguments.only.split(","):
        print(f"... {name}", file=sys.stderr)
        _BENCHMARKS[name](base, dataset, base_path, rows, seconds)
    table = Table("measured", "result", title=_about())
    for left, right in rows:
        table.add_row(left, right)
    Console(width=100).print(table)


def _data() -> Path:
    return Path(os.environ["LOWSHOT_DATA"])


def _about() -> str:
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{known}, {hardware(torch.device('cpu'))}"


def _time(work: Callable[[], object], repeats: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def _operations(base: Checkpoint) -> float:
    """Multiply-adds times two of one image through the backbone."""
    from torch.utils.flop_counter import FlopCounterMode

    network = base.network()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return float(counter.get_total_flops())


def _embedding(
    base: Checkpoint, dataset: Dataset, _: Path, rows: list[tuple[str, str]], seconds: dict
) -> None:
    pixels = torch.cat([dataset.train.pixels, dataset.test.pixels])
    network, each = base.network(), _operations(base)
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        took = _time(lambda dtype=dtype: embed(network, pixels, dtype))
        rate, share = each * len(pixels) / took, matrix_rate(dtype, 2048)
        seconds[f"embed {name}"] = took
        rows.append(
            (
                f"embedding {len(pixels):,} images, {name}",
                f"{took:.1f} s, {len(pixels) / took:,.0f} images/s, "
                f"{100 * rate / share:.0f} % of the {share / 1e9:.0f} GFLOP/s of a matrix product",
            )
        )


def _run_sweep(
    base: Checkpoint, dataset: Dataset, trials: int, methods: tuple[str, ...], ways: int = 1
) -> SweepSummary:
    config = Config(data_dir=_data())
    changes = {"trials": trials, "methods": methods, "ways": ways}
    options = config.sweep.model_copy(update=changes)
    config = config.model_copy(update={"sweep": options})
    embedder = Embedder(base.network(), cache=embedding_cache())
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(device=pick_device(config.device))
        return sweep(base, dataset, config, embedder, Path(folder), context=context).summary


def _imprint(
    base: Checkpoint, dataset: Dataset, _: Path, rows: list[tuple[str, str]], seconds: dict
) -> None:
    _run_sweep(base, dataset, 1, ("imprint",))
    for ways in (1, 5):
        summary = _run_sweep(base, dataset, 417 * ways, ("imprint",), ways)
        count = sum(cell.n_trials for cell in summary.cells)
        took = summary.timing.trials_seconds
        if ways == 1:
            seconds["imprint trial"] = took / count
        name = "imprint trials" if ways == 1 else f"imprint trials of {ways} classes each"
        rows.append(
            (
                f"{count:,} {name}, all metrics, rows on disk",
                f"{took:.2f} s, {count / took:,.0f}/s",
            )
        )


def _finetune(
    base: Checkpoint, dataset: Dataset, _: Path, rows: list[tuple[str, str]], seconds: dict
) -> None:
    summary = _run_sweep(base, dataset, 42, ("finetune-head",))
    count = sum(cell.n_trials for cell in summary.cells)
    took = summary.timing.trials_seconds
    seconds["finetune trial"] = took / count
    rows.append(
        (f"{count:,} head fine-tunings of 100 steps", f"{took:.1f} s, {count / took:,.0f}/s")
    )


def _plain_loop(base: Checkpoint, dataset: Dataset, steps: int, trials: int) -> float:
    """Seconds per trial as a reader of the paper would write it: forward passes in every trial."""
    network, head = base.network(), base.head
    base_labels = [dataset.label(name) for name in base.base_classes]
    novel = next(i for i, name in enumerate(dataset.class_names) if name not in base.base_classes)
    labels = [*base_labels, novel]
    test = torch.cat([dataset.test.of_class(label) for label in labels])
    truth = torch.tensor([labels.index(int(label)) for label in dataset.test.labels[test]])
    images = network.normalisation.apply(dataset.test.pixels[test], torch.device("cpu"))
    loader = DataLoader(TensorDataset(images, truth), batch_size=100)
    members = dataset.train.of_class(novel)
    fit = torch.cat([dataset.train.of_class(label)[:50] for label in base_labels])
    fit_labels = torch.arange(len(base_labels)).repeat_interleave(50)
    fit_images = network.normalisation.apply(dataset.train.pixels[fit], torch.device("cpu"))

    def trial(number: int) -> float:
        chosen = members[torch.randperm(500, generator=torch.Generator().manual_seed(number))[:5]]
        support = network.normalisation.apply(dataset.train.pixels[chosen], torch.device("cpu"))
        with torch.no_grad():
            row = imprint(network(support))[None]
        weight = torch.cat([head.proxies, row])
        if steps:
            weight = _plain_finetune(network, weight, support, fit_images, fit_labels, steps)
        right = 0
        with torch.no_grad():
            for batch, target in loader:
                right += int(((network(batch) @ weight.T).argmax(1) == target).sum())
        return right / len(truth)

    trial(0)
    return _time(lambda: trial(1), trials)


def _plain_finetune(
    network: torch.nn.Module,
    weight: Tensor,
    support: Tensor,
    fit: Tensor,
    labels: Tensor,
    steps: int,
) -> Tensor:
    """Steps of Adam on the novel row, each with forward passes through the frozen network."""
    row = weight[-1:].clone().requires_grad_()
    optimiser = torch.optim.Adam([row], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([20] * len(weight[:-1]) + [len(support)])
    weights = class_weights(counts, "adaptive", len(weight) - 1, None)
    for _ in range(steps):
        batch = torch.randint(len(fit), (95,), generator=generator)
        with torch.no_grad():
            embeddings = network(torch.cat([fit[batch], support]))
        target = torch.cat([labels[batch], torch.full((len(support),), len(weight) - 1)])
        logits = 10 * embeddings @ torch.cat([weight[:-1], row]).T
        loss = F.cross_entropy(logits, target, weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            row.copy_(F.normalize(row, dim=1))
    return torch.cat([weight[:-1], row.detach()])


def _loop(
    base: Checkpoint, dataset: Dataset, _: Path, rows: list[tuple[str, str]], seconds: dict
) -> None:
    embedding = seconds.get("embed fp32", 0.0)
    for name, steps, trials in (("imprint", 0, 3), ("finetune", 100, 1)):
        loop, ours = _plain_loop(base, dataset, steps, trials), seconds[f"{name} trial"]
        count = 100_000 if name == "imprint" else 10_000
        with_embedding = loop * count / (ours * count + embedding)
        rows.append(
            (
                f"per-trial loop, {name}",
                f"{loop:.2f} s a trial: {loop / ours:,.0f} times ours; {with_embedding:,.0f} times "
                f"with embedding 60,000 images once for {count:,} trials",
            )
        )


EPISODE = {"n_way": 5, "n_shot": 5, "n_query": 15}


def _episodes(
    base: Checkpoint, dataset: Dataset, _: Path, rows: list[tuple[str, str]], seconds: dict
) -> None:
    """easyfsl as its documentation runs it on cached features: dataset, sampler, loader, model."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate

    class Sampler(TaskSampler):
        """Theirs, but for a call in its constructor that PyTorch no longer takes."""

        def __init__(self, labels: list[int], n_tasks: int) -> None:
            self.n_way, self.n_shot, self.n_query = EPISODE.values()
            self.n_tasks, self.items_per_label = n_tasks, {}
            for item, label in enumerate(labels):
                self.items_per_label.setdefault(label, []).append(item)

    names = [name for name in dataset.class_names if name not in base.base_classes]
    embedder = Embedder(base.network(), cache=embedding_cache())
    features = embedder.classes(dataset.test, [dataset.label(name) for name in names])
    cached = FeaturesDataset.from_dict(dict(zip(names, features, strict=True)))
    model, count = PrototypicalNetworks(torch.nn.Identity()), 1000
    sampler = Sampler(cached.get_labels(), count)
    loader = DataLoader(cached, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    theirs = _time(lambda: evaluate(model, loader, use_tqdm=False, device="cpu")) / count
    support, labels, queries, _labels, _ids = next(iter(loader))

    def alone() -> None:
        with torch.no_grad():
            model.process_support_set(support, labels)
            model(queries).argmax(1)

    bare = _time(alone, 300)
    stacked, rng, many = torch.stack(features), np.random.default_rng(0), 200_000
    batched_episodes(stacked, 2048, rng)
    found: list[Tensor] = []
    ours = _time(lambda: found.append(batched_episodes(stacked, many, rng))) / many
    accuracy = evaluate(model, loader, use_tqdm=False, device="cpu")
    rows.append(
        (
            "easyfsl, prototypical 5-way 5-shot 15-query episodes on cached features",
            f"{1e6 * theirs:,.0f} us an episode, {1e6 * bare:,.0f} us of them in its model; ours "
            f"{1e6 * ours:,.1f} us: {theirs / ours:,.0f} times, {bare / ours:,.0f} its model alone "
            f"(accuracy {100 * accuracy:.1f} %, ours {100 * found[0].mean().item():.1f} %)",
        )
    )


def batched_episodes(features: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Accuracy `(count,)` of episodes in which an image belongs to the nearest prototype.

    Args:
        features: `(C, n, D)` embeddings from which supports and queries are drawn.
        count: number of episodes.
        rng: source of the draws.
    """
    n_classes, n_images, size = features.shape
    ways, shots, queries = EPISODE["n_way"], EPISODE["n_shot"], EPISODE["n_query"]
    flat = features.view(-1, size)
    truth = torch.arange(ways).repeat_interleave(queries)
    # One buffer for all tiles, small enough to stay in the processor's cache.
    asked = torch.empty(_EPISODES_AT_ONCE, ways * queries, size)
    found = []
    for _ in range(0, count, _EPISODES_AT_ONCE):
        tile = _EPISODES_AT_ONCE
        classes = _distinct(rng, (tile, 1), n_classes, ways).reshape(tile, ways, 1)
        images = _distinct(rng, (tile, ways), n_images, shots + queries)
        support, query = torch.from_numpy(classes * n_images + images).split([shots, queries], 2)
        torch.index_select(flat, 0, query.reshape(-1), out=asked.view(-1, size))
        bags = support.reshape(-1, shots)
        prototypes = F.embedding_bag(bags, flat, mode="mean").view(tile, ways, size)
        # The nearest in Euclidean distance, as in the paper: |q - p|^2 = |q|^2 - 2 q.p + |p|^2.
        lengths = prototypes.square().sum(2)[:, None, :]
        nearest = torch.baddbmm(lengths, asked, prototypes.mT, alpha=-2).min(2).indices
        found.append((nearest == truth).float().mean(1))
    return torch.cat(found)[:count]


_EPISODES_AT_ONCE = 64


def _distinct(
    rng: np.random.Generator, shape: tuple[int, ...], population: int, count: int
) -> np.ndarray:
    """`(*shape, count)` distinct numbers below `population`, those with the smallest keys."""
    bits = population.bit_length()
    keys = rng.integers(0, 1 << (31 - bits), (*shape, population), dtype=np.int32)
    keys <<= bits
    keys |= np.arange(population, dtype=np.int32)
    keys.partition(count, axis=-1)
    drawn: np.ndarray = keys[..., :count] & ((1 << bits) - 1)
    return drawn.astype(np.int64)


def _growth(
    base: Checkpoint, dataset: Dataset, base_path: Path, rows: list[tuple[str, str]], _: dict
) -> None:
    for trials in (42, 417, 4167):
        command = [sys.executable, "-m", "tests.benchmarks", "--workdir", str(base_path.parent)]
        done = subprocess.run(
            [*command, "--child", str(trials)], capture_output=True, text=True, check=True
        )
        rows.append(
            (f"{trials * 240:,} imprint trials in a process of its own", done.stdout.strip())
        )


def _sweep_alone(base_path: Path, trials: int) -> None:
    base, dataset = load(base_path), load_dataset(Config(data_dir=_data()))
    summary = _run_sweep(base, dataset, trials, ("imprint",))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{summary.timing.trials_seconds:.1f} s, peak memory {peak:.2f} GiB")


def _warm(
    base: Checkpoint, dataset: Dataset, base_path: Path, rows: list[tuple[str, str]], _: dict
) -> None:
    from lowshot_cli.sweep.embeddings import embed_for_sweep
    from lowshot_cli.sweep.plan import make_plan

    _run_sweep(base, dataset, 1, ("imprint",))

    def start() -> None:
        config = Config(data_dir=_data())
        loaded, data = load(base_path), load_dataset(config)
        embedder = Embedder(loaded.network(), cache=embedding_cache())
        embed_for_sweep(loaded, data, make_plan(loaded, data, config), config, embedder)

    rows.append(("from imports to the first trial, warm cache", f"{_time(start):.2f} s"))


_BENCHMARKS: dict[str, Callable[..., None]] = {
    "embedding": _embedding,
    "imprint": _imprint,
    "finetune": _finetune,
    "loop": _loop,
    "episodes": _episodes,
    "growth": _growth,
    "warm": _warm,
}

if __name__ == "__main__":
    main()
