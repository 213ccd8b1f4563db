"""Estimates of the cost of work, from its first seconds. Nothing is written."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.adaptation.finetune import finetune
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset, Images, Pixels
from lowshot_cli.environment import pick_device
from lowshot_cli.models.embedder import Embedder, Views, embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import INITIAL_SCALE
from lowshot_cli.progress import OnProgress, Progress
from lowshot_cli.sweep.embeddings import SweepEmbeddings, embed_for_sweep
from lowshot_cli.sweep.plan import Plan
from lowshot_cli.sweep.trials import run_batch, tiles_at_once
from lowshot_cli.threads import threads_per_operation
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.result import make_cosine_checkpoint
from lowshot_cli.training.task import BaseTask, build_network, input_side, make_task
from lowshot_cli.training.train import train_base

# Seconds for which steps are timed, and slower first steps that are skipped.
_REHEARSAL, _WARM_UP = 8.0, 3
_SAMPLE = 512


@dataclass(frozen=True)
class Stage:
    """One kind of work: its name, its number of units, and the seconds it should take."""

    name: str
    n: int
    unit: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As in the `--json` contract."""
        return asdict(self)


def estimate_training(config: Config, dataset: Dataset, task: BaseTask) -> list[Stage]:
    """Estimate the training of a base model: run `train_base` until its steps are timed."""
    options, device = config.train_base, pick_device(config.device)
    views, holdout = 1 + task.flip, len(task.holdout)
    n_test = sum(len(dataset.test.of_class(label)) for label in task.labels_in_dataset)
    each = _seconds_an_image(_sketch(config, dataset).network(device), task.fit) / views
    # A head that is made from embeddings needs those of all training images.
    n_train = holdout + len(task.fit) * bool(options.is_frozen or options.start)
    embedding = Stage("embedding", n_train + n_test, "images", views * each * (n_train + n_test))
    if options.is_frozen:
        return [embedding]
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        training = _rehearsed(
            "training",
            lambda watch: train_base(
                config, dataset, state, context=RunContext(on_progress=watch, device=device)
            ),
        )
    checked = options.epochs * holdout
    return [training, Stage("hold-out", checked, "images", each * checked), embedding]


def estimate_sweep(
    checkpoint: Checkpoint,
    dataset: Dataset,
    config: Config,
    plan: Plan,
    embedder: Embedder,
    *,
    context: RunContext = DEFAULT_CONTEXT,
) -> list[Stage]:
    """Estimate a sweep: run the first tile per method and shots, on random embeddings."""
    stand_in = _StandIn(embedder.network, cache=embedder.cache, size=checkpoint.head.size)
    embedded = embed_for_sweep(checkpoint, dataset, plan, config, stand_in)
    n_images = stand_in.counts["images"]
    each = _seconds_an_image(embedder.network, dataset.test.pixels)
    stages = [Stage("embedding", n_images, "images", each * stand_in.counts["passes"])]
    batches = list(plan.batches())
    alike = Counter((batch.method, batch.shots) for batch in batches)
    firsts = {(batch.method, batch.shots): batch for batch in reversed(batches)}
    seconds: dict[str, float] = {}
    for number, (kind, count) in enumerate(alike.items(), 1):
        method, is_warm = kind[0], kind[0] in seconds
        run = partial(run_batch, firsts[kind], plan, embedded, config)
        if METHODS[kind[0]].alone:
            cost = _seconds_a_network(run, embedded, context, each)
        else:
            at_once = min(count, tiles_at_once(torch.get_num_threads(), context.device))
            cost = _seconds_a_tile(run, context, warm_up=not is_warm) / at_once
        seconds[method] = seconds.get(method, 0.0) + cost * count
        context.on_progress(Progress("timing", number, len(alike), "tiles"))
    trials = plan.n_rows // len(plan.methods)
    return [*stages, *(Stage(method, trials, "trials", s) for method, s in seconds.items())]


def estimate_finetuning(checkpoint: Checkpoint, dataset: Dataset, config: Config) -> list[Stage]:
    """Estimate fine-tuning: run the first steps of the whole network, or all of the head."""
    names = [checkpoint.dataset_name(name) for name in checkpoint.meta.classes]
    inside = [dataset.label(name) for name in names if name in dataset.labels]
    n = sum(len(dataset.test.of_class(label)) for label in inside)
    if config.finetune.scope == "full":
        device = pick_device(config.device)
        tuning = _rehearsed(
            "fine-tuning",
            lambda watch: finetune(
                checkpoint, config, dataset, context=RunContext(on_progress=watch, device=device)
            ),
        )
        # Both models embed the test images, and the new network also embeds the hold-out.
        n += n + len(checkpoint.holdout)
    else:
        started = time.perf_counter()
        finetune(checkpoint, config, dataset)
        seconds = time.perf_counter() - started
        tuning = Stage("fine-tuning", config.finetune.steps, "steps", seconds)
    network = checkpoint.network(pick_device(config.device))
    each = _seconds_an_image(network, dataset.test.pixels)
    return [tuning, Stage("embedding", n, "images", n * each)]


def untrained(config: Config, dataset: Dataset) -> Checkpoint:
    """An untrained base model of the true size, to time a sweep that has none yet."""
    sketch = _sketch(config, dataset)
    return replace(
        sketch, meta=sketch.meta.model_copy(update={"dataset_hash": dataset.content_hash})
    )


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes, CPU and GPU together."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return taken + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


class _EnoughSeen(Exception):
    """Ends a rehearsal."""


def _rehearsed(stage: str, work: Callable[[OnProgress], object]) -> Stage:
    """Time the first steps of a stage, without milestones, which do more than a step."""
    reports: list[tuple[float, int, bool]] = []
    last = Progress(stage, 0, 0)

    def watch(report: Progress) -> None:
        nonlocal last
        if report.stage != stage:
            raise _EnoughSeen
        last = report
        reports.append((time.perf_counter(), report.done, report.milestone))
        if (
            len(reports) > 1 + 2 * _WARM_UP
            and reports[-1][0] - reports[1 + _WARM_UP][0] > _REHEARSAL
        ):
            raise _EnoughSeen

    reports.append((time.perf_counter(), 0, False))
    with suppress(_EnoughSeen):
        work(watch)
    # Where all steps belong to the warm-up, they are timed from the beginning.
    steps = list(itertools.pairwise(reports))[_WARM_UP:] or [(reports[0], reports[-1])]
    plain = [(a, b) for a, b in steps if not b[2]] or steps
    seconds = sum(b[0] - a[0] for a, b in plain) / sum(b[1] - a[1] for a, b in plain)
    return Stage(stage, last.total, last.unit, seconds * last.total)


def _seconds_an_image(network: EmbeddingNetwork, pixels: Pixels) -> float:
    """Seconds that embedding one image takes, with all its views."""
    network, some = fused(network), pixels[:_SAMPLE]
    embed(network, some)
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < _REHEARSAL / 4:
        embed(network, some)
        runs += 1
    return (time.perf_counter() - started) / (runs * len(some))


def _seconds_a_tile(run: Callable[..., object], context: RunContext, *, warm_up: bool) -> float:
    """Seconds that a thread takes for a tile; the first one of a method is slower and not timed."""
    for _ in range(2 if warm_up else 1):
        started = time.perf_counter()
        with threads_per_operation(1):
            run(context=context)
    return time.perf_counter() - started


def _seconds_a_network(
    run: Callable[..., object], embedded: SweepEmbeddings, context: RunContext, each: float
) -> float:
    """Seconds that a trial with its own network takes, given `each` seconds per test image."""
    steps = _rehearsed(
        "fine-tuning", lambda watch: run(context=replace(context, on_progress=watch))
    )
    n_test = len(embedded.base_truth) + len(embedded.checkpoint.holdout) // 2
    return steps.seconds + each * n_test


@dataclass(frozen=True)
class _StandIn(Embedder):
    """Returns random directions, and counts the images that would have to be embedded."""

    size: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def classes(
        self, images: Images, labels: Sequence[int], views: Views | None = None
    ) -> list[Tensor]:
        n = self.missing(images, labels, views)
        self.counts["images"] += n
        self.counts["passes"] += n * (views.count if views else 1)
        generator = torch.Generator().manual_seed(0)
        sizes = [len(images.of_class(label)) for label in labels]
        drawn = torch.randn(sum(sizes), self.size, generator=generator)
        return list(F.normalize(drawn, dim=1).split(sizes))


def _sketch(config: Config, dataset: Dataset) -> Checkpoint:
    """An untrained base model with the config's network, made from a few images."""
    options = config.train_base
    few = replace(
        dataset,
        train=_first_of_each(dataset.train, options.holdout + 2),
        test=_first_of_each(dataset.test, 1),
    )
    context = RunContext(device=pick_device(config.device))
    if options.is_frozen or options.start:
        side = input_side(options, dataset.train.pixels.shape[-1])
        update = {"epochs": 0, "weights": None, "input_size": side}
        frozen = options.model_copy(update=update)
        settings = config.model_copy(update={"train_base": frozen})
        return train_base(settings, few, Path(), context=context).checkpoint
    task = make_task(options, few)
    with torch.random.fork_rng(devices=[]):
        network, size, _ = build_network(options, task, with_weights=False)
        proxies = F.normalize(torch.randn(len(task.names), size), dim=1)
    network = network.to(context.device)
    return make_cosine_checkpoint(
        config, few, task, network, proxies, scale=INITIAL_SCALE, precision="fp32", context=context
    )


def _first_of_each(images: Images, count: int) -> Images:
    """The first `count` images of every class."""
    labels = images.labels.unique().tolist()
    index = torch.cat([images.of_class(label)[:count] for label in labels]).sort().values
    return Images(images.pixels[index], images.labels[index])
