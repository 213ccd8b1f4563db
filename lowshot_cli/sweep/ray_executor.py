"""Runs trials and trains base models on a Ray cluster; only this module uses Ray."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset, Images
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import Interrupted, LowshotError, UsageError
from lowshot_cli.progress import ShouldStop
from lowshot_cli.sweep import trials
from lowshot_cli.sweep.embeddings import SweepEmbeddings
from lowshot_cli.sweep.plan import Plan, TrialBatch
from lowshot_cli.sweep.trials import BatchResult, Executor
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.result import TrainResult
from lowshot_cli.training.train import train_base

# Tiles that a worker gets at a time, a few seconds of work.
_CHUNK = 8
# How often a chunk is retried after its worker died.
_RETRIES = 3
# Seconds between two checks whether to stop.
_POLL_SECONDS = 0.2
_RESUME_HINT = "check that the cluster is up, then resume the sweep: its rows so far are intact"


def check_installed() -> None:
    """Check that Ray is installed, without importing it.

    Raises:
        UsageError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed", "pip install 'lowshot-cli[ray]'")


@contextmanager
def on_ray(address: str | None = None, gpus: float = 0.0) -> Iterator[Executor]:
    """An executor that runs trials on a Ray cluster, for the duration of the block.

    Args:
        address: of the cluster, such as `10.0.0.1:6379`, or `auto` for the one on this machine.
            With None a cluster is started here, and ends with the block. A process that is already
            connected stays connected.
        gpus: GPUs for each worker, such as 0.5.

    Raises:
        LowshotError: there is no cluster at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    connected = ray.is_initialized()
    if not connected:
        _connect(ray, address)
    try:
        yield partial(run, gpus=gpus)
    finally:
        if not connected:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **quiet)
            return
        if address != "auto":
            _reach(address)
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        place = f"no Ray cluster at {address}" if address else "cannot start Ray"
        raise LowshotError(
            f"{place}: {reason}",
            "`ray start --head` starts one, `ray status` shows its state; if it asks for a token, "
            "set RAY_AUTH_MODE=token",
        ) from None


def _reach(address: str) -> None:
    """Check that something listens at an address, as Ray itself would try for minutes.

    Raises:
        OSError: nothing listens there.
        ValueError: it is not a host with a port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("should be HOST:PORT or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@dataclass(frozen=True)
class _Shared:
    """What every worker needs, sent once."""

    plan: Plan
    embedded: SweepEmbeddings
    config: Config
    threads: int


def run(
    work: Iterable[tuple[int, TrialBatch]],
    plan: Plan,
    embedded: SweepEmbeddings,
    config: Config,
    *,
    threads: int,
    context: RunContext,
    gpus: float = 0.0,
) -> Iterator[tuple[int, BatchResult]]:
    """Run batches on the cluster that this process is connected to, as an `Executor`.

    The embeddings go into the object store once. If a worker dies, its chunk runs again elsewhere.
    Each worker takes `threads` CPUs and `gpus` GPUs, and uses the device that `config` names. Steps
    of long batches are not reported, as they run in other processes.

    Raises:
        LowshotError: no node has room for a worker, several workers died on the same chunk, or the
            cluster is gone.
    """
    import ray

    needs = _Needs(threads, gpus)
    shared = _put(ray, _Shared(plan, _without_images(embedded, plan), config, threads))
    calls = (partial(needs.start, ray, _work, [shared], chunk) for chunk in _chunks(work))
    for results in _gather(ray, calls, needs, context.should_stop):
        yield from results


def train_bases(
    tasks: Sequence[tuple[Config, Dataset]], gpus: float, should_stop: ShouldStop
) -> Iterator[tuple[int, TrainResult]]:
    """Train base models, each as its own task; yields their numbers and results.

    Args:
        tasks: a config and its dataset for each base model.
        gpus: GPUs for each task, such as 0.5.
        should_stop: called several times a second; once it is true, running tasks are cancelled.

    Raises:
        Interrupted: `should_stop` was true.
        LowshotError: as `run`, or the training diverged.
    """
    import ray

    # As many threads as training in this process would use, so that the bytes are the same.
    needs = _Needs(min(torch.get_num_threads(), _largest(ray, "CPU")), gpus)
    distinct = {id(dataset): dataset for _, dataset in tasks}
    stored = {key: _put(ray, dataset) for key, dataset in distinct.items()}
    calls = (
        partial(needs.start, ray, _train, number, config, stored[id(dataset)], needs.threads)
        for number, (config, dataset) in enumerate(tasks)
    )
    done = 0
    for found in _gather(ray, calls, needs, should_stop, at_once=True):
        yield found
        done += 1
    if done < len(tasks):
        raise Interrupted(f"stopped, {len(tasks) - done} base models are still to be trained")


@dataclass(frozen=True)
class _Needs:
    """CPUs and GPUs that a task needs."""

    threads: int
    gpus: float

    def start(self, ray: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Hand a task to the cluster."""
        task = ray.remote(function).options(
            num_cpus=self.threads, num_gpus=self.gpus, max_retries=_RETRIES
        )
        return task.remote(*arguments)

    def places(self, ray: Any) -> int:
        """How many such tasks the nodes have room for.

        Raises:
            LowshotError: there is no room for one.
        """
        wanted = {"CPU": float(self.threads), **({"GPU": self.gpus} if self.gpus else {})}
        places = sum(
            int(min(node.get(name, 0.0) / amount for name, amount in wanted.items()))
            for node in _nodes(ray)
        )
        if not places:
            said = [f"{n:g} {name}s of {_largest(ray, name)}" for name, n in wanted.items()]
            raise LowshotError(
                f"no node of the cluster has room for a worker: {', '.join(said)}",
                "give smaller `threads` or `gpus_per_worker`",
            )
        return places


def _nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _largest(ray: Any, name: str) -> int:
    return max((int(node.get(name, 0.0)) for node in _nodes(ray)), default=0)


def _gather(
    ray: Any,
    calls: Iterator[Callable[[], Any]],
    needs: _Needs,
    should_stop: ShouldStop,
    *,
    at_once: bool = False,
) -> Iterator[Any]:
    """Start tasks as there is room for them, and yield their results as they come.

    Once `should_stop` is true no task is started, and running ones are awaited unless `at_once`.
    """
    running: list[Any] = []
    try:
        while True:
            stopping = should_stop()
            # One task more than there is room for waits for the first free worker.
            room = 0 if stopping else needs.places(ray) + 1 - len(running)
            running += [call() for call in itertools.islice(calls, max(0, room))]
            if not running or (stopping and at_once):
                return
            ready, running = ray.wait(running, timeout=_POLL_SECONDS)
            for task in ready:
                yield ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LowshotError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        raise LowshotError(
            f"{_RETRIES + 1} workers in turn died on the same trials",
            "use fewer workers at a time with more `threads` each",
        ) from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[0]
        raise LowshotError(f"Ray: {reason}", _RESUME_HINT) from None
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _chunks(work: Iterable[tuple[int, TrialBatch]]) -> Iterator[list[tuple[int, TrialBatch]]]:
    """Group neighbouring batches; a fine-tuning of the whole network is a chunk of its own."""
    chunk: list[tuple[int, TrialBatch]] = []
    for number, batch in work:
        alone = METHODS[batch.method].alone
        if chunk and (alone or len(chunk) == _CHUNK):
            yield chunk
            chunk = []
        chunk.append((number, batch))
        if alone:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _without_images(embedded: SweepEmbeddings, plan: Plan) -> SweepEmbeddings:
    """The embeddings without the dataset's pixels, unless a method needs them."""
    if any(METHODS[method].alone for method in plan.methods):
        return embedded
    given = embedded.dataset
    train, test = (Images(i.pixels[:0], i.labels) for i in (given.train, given.test))
    return replace(embedded, dataset=replace(given, train=train, test=test))


def _put(ray: Any, value: _Shared | Dataset) -> Any:
    """Put a value into the object store, where all workers of a node read the same memory."""
    ray.util.register_serializer(
        torch.Tensor, serializer=lambda tensor: tensor.numpy(), deserializer=_read_only
    )
    try:
        return ray.put(value)
    finally:
        ray.util.deregister_serializer(torch.Tensor)


def _read_only(array: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # the array is read-only, and nothing writes to it
        return torch.from_numpy(array)


def _work(
    reference: Sequence[Any], chunk: Sequence[tuple[int, TrialBatch]]
) -> list[tuple[int, BatchResult]]:
    """Run a chunk of trials in a worker."""
    shared = _open(reference[0])
    context = RunContext(device=pick_device(shared.config.device))
    settings = shared.plan, shared.embedded, shared.config
    return list(trials.run(chunk, *settings, threads=shared.threads, context=context))


@lru_cache(maxsize=1)
def _open(reference: Any) -> _Shared:
    import ray

    shared: _Shared = ray.get(reference)
    return replace(shared, embedded=shared.embedded.to(pick_device(shared.config.device)))


def _train(number: int, config: Config, dataset: Dataset, threads: int) -> tuple[int, TrainResult]:
    """Train a base model in a worker, which may not see the work folder."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(device=pick_device(config.device))
        return number, train_base(config, dataset, Path(folder) / "state", context=context)
