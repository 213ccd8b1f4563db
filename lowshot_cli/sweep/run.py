"""Runs a sweep: its trials, their rows as they come, and the summary at the end."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.duplicates import without_lookalikes
from lowshot_cli.data.supports import draw_supports
from lowshot_cli.environment import hardware, versions
from lowshot_cli.errors import Interrupted, LowshotError, one_line
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.progress import OnProgress, Progress
from lowshot_cli.storage.files import write_text
from lowshot_cli.sweep.embeddings import SweepEmbeddings, embed_for_sweep
from lowshot_cli.sweep.plan import Plan, ensure_tested, make_plan
from lowshot_cli.sweep.recorder import Recorder
from lowshot_cli.sweep.results import ClassNames
from lowshot_cli.sweep.run_folder import SUMMARY, ensure_saveable, read_run, write_run
from lowshot_cli.sweep.summary import ClassResult, SweepSummary, Timing
from lowshot_cli.sweep.totals import RunningTotals
from lowshot_cli.sweep.trials import BatchResult, Executor, run
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a sweep; none of this changes which trials it has.

    Attributes:
        resume: continue where the rows of the run folder end, with the `save_models` and `threads`
            that the sweep started with.
        save_models: keep each trial's proxies and bias in `models.npy`.
        threads: of each process that runs trials; None for as many as PyTorch uses in this one.
    """

    resume: bool = False
    save_models: bool = False
    threads: int | None = None


_DEFAULT_OPTIONS = RunOptions()


@dataclass(frozen=True)
class SweepResult:
    """The results of a sweep.

    Attributes:
        summary: the content of `results.json`.
        n_rows: number of rows in `results.csv`.
        plan: the plan of the sweep.
        embedded: the embeddings that trials were made of.
        totals: of all rows.
    """

    summary: SweepSummary
    n_rows: int
    plan: Plan
    embedded: SweepEmbeddings
    totals: RunningTotals


class CannotWrite(LowshotError):
    """The run folder cannot be written to, such as on a full disk; its rows are intact."""


def sweep(
    checkpoint: Checkpoint,
    dataset: Dataset,
    config: Config,
    embedder: Embedder,
    run_dir: Path,
    *,
    options: RunOptions = _DEFAULT_OPTIONS,
    executor: Executor = run,
    context: RunContext = DEFAULT_CONTEXT,
) -> SweepResult:
    """Run all trials of a sweep and write its run folder.

    Args:
        checkpoint: the pristine base model.
        dataset: the one it was trained on.
        config: `seed`, `imprint`, `finetune` and `sweep`.
        embedder: with the checkpoint's network.
        run_dir: the run folder; gets `config.yaml`, `run.json`, `results.csv` and `results.json`.
        options: whether to resume, what to keep, how many threads to use.
        executor: runs the trials.
        context: gets progress reports, and may stop the sweep after each batch of trials.

    Raises:
        Interrupted: the sweep was stopped; the rows so far are on disk.
        CannotWrite: the folder cannot be written to; the rows so far are on disk.
        UsageError, CheckpointError, DataError: as in `make_plan`, or it is another sweep's folder.
    """
    plan = make_plan(checkpoint, dataset, config)
    if options.save_models:
        ensure_saveable(config.sweep)
    kept = _without_duplicates(dataset, plan, config, context.on_progress)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_models, threads = _as_begun(options, run_dir, checkpoint)
    names = ClassNames(plan.names, checkpoint.base_classes)
    recorder = Recorder(run_dir, plan, names, resume=options.resume)
    write_run(run_dir, config, checkpoint, save_models=save_models, threads=threads)
    n_before, started = recorder.n_done, time.perf_counter()
    embedded = embed_for_sweep(checkpoint, kept, plan, config, embedder)
    embedded_at = time.perf_counter()
    recorder.open(size=checkpoint.head.proxies.shape[1], save_models=save_models)
    work = recorder.unfinished()
    results = executor(work, plan, embedded, config, threads=threads, context=context)
    _record(results, recorder, context.on_progress)
    seconds = time.perf_counter() - embedded_at
    rate = (recorder.n_done - n_before) / max(seconds, 1e-9)
    timing = Timing(embedded_at - started, seconds, rate)
    n_dropped = len(dataset.test.labels) - len(kept.test.labels)
    ran_on = hardware(embedder.network.device)
    summary = _summarise(recorder, embedded, timing, n_dropped, ran_on)
    text = json.dumps(summary.to_json(), indent=1, ensure_ascii=False)
    write_text(run_dir / SUMMARY, text)
    return SweepResult(summary, recorder.totals.n_rows, plan, embedded, recorder.totals)


def _without_duplicates(
    dataset: Dataset, plan: Plan, config: Config, on_progress: OnProgress
) -> Dataset:
    """The dataset, without test images that resemble a training image if the config says so."""
    if not config.sweep.drop_duplicates:
        return dataset
    dataset = without_lookalikes(dataset, on_progress)
    ensure_tested(dataset, itertools.chain.from_iterable(plan.groups))
    return dataset


def _as_begun(options: RunOptions, run_dir: Path, base: Checkpoint) -> tuple[bool, int]:
    """Whether to keep models, and the number of threads; a resumed sweep keeps its own."""
    save_models, threads = options.save_models, options.threads or torch.get_num_threads()
    if options.resume:
        begun = read_run(run_dir, base)
        save_models, threads = begun.has_models, begun.threads or threads
    return save_models, threads


def _record(
    results: Iterator[tuple[int, BatchResult]], recorder: Recorder, on_progress: OnProgress
) -> None:
    """Write the results of batches as they come.

    Raises:
        Interrupted: some batches are missing.
        CannotWrite: the folder is full, or cannot be written to.
    """
    total = recorder.plan.n_rows
    try:
        recorder.write_waiting()
        for number, result in results:
            recorder.record(number, result)
            on_progress(Progress("trials", recorder.n_done, total, "trials"))
    except OSError as error:
        raise CannotWrite(
            f"cannot write to {recorder.run_dir}: {one_line(error)}; its {recorder.n_done:,} "
            "trials are intact",
            "free some space, then resume the sweep",
        ) from None
    finally:
        recorder.close()
    if recorder.totals.n_rows < total:
        raise Interrupted(
            f"stopped after {recorder.n_done:,} of {total:,} trials, nothing is lost",
            "`resume=True` continues it",
        )


def _summarise(
    recorder: Recorder, embedded: SweepEmbeddings, timing: Timing, n_dropped: int, ran_on: str
) -> SweepSummary:
    """Summarise all trials; in a sequence, cells describe the model after the last session."""
    plan, totals = recorder.plan, recorder.totals
    sessions = totals.sessions(plan.ways) if plan.sequence else ()
    last = tuple(cell for cell in sessions if cell.session == len(plan.groups))
    classes = () if plan.sequence else totals.classes()
    return SweepSummary(
        ways=1 if plan.sequence else plan.ways,
        left_out=tuple(embedded.dataset.class_names[label] for label in plan.left_out),
        cells=last if plan.sequence else totals.cells(plan.ways),
        paired=() if plan.sequence else totals.paired(),
        classes=tuple(_with_supports(each, plan, embedded) for each in classes),
        sessions=sessions,
        base_accuracy_before=embedded.base_accuracy,
        dropped_duplicates=n_dropped,
        avoided_duplicates=sum(len(found) for found in embedded.avoided.values()),
        timing=timing,
        run_dir=str(recorder.run_dir),
        versions=versions(),
        hardware=ran_on,
    )


def _with_supports(result: ClassResult, plan: Plan, embedded: SweepEmbeddings) -> ClassResult:
    """Add the training images that the best and the worst trial drew of each class."""
    labels = plan.groups[plan.names.index(result.name)]
    trials = [result.best_trial, result.worst_trial]
    best, worst = [], []
    for label in labels:
        index, avoided = embedded.dataset.train.of_class(label), embedded.avoided[label]
        drawn = draw_supports(
            plan.seed, label, trials, result.shots, len(index), avoided=avoided
        )  # (2, k)
        images = index[torch.from_numpy(drawn)].tolist()
        best.append(tuple(images[0]))
        worst.append(tuple(images[1]))
    return replace(result, best_support=tuple(best), worst_support=tuple(worst))
