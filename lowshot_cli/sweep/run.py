"""Sweeps and their run folders: rows as they come, a summary at the end, models on request."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.duplicates import without_lookalikes
from lowshot_cli.data.supports import draw_supports
from lowshot_cli.environment import hardware, versions
from lowshot_cli.errors import Interrupted, LowshotError
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.progress import OnProgress, Progress, ShouldStop, never, silent
from lowshot_cli.storage.files import write_text
from lowshot_cli.sweep.embeddings import SweepEmbeddings, embed_for_sweep
from lowshot_cli.sweep.plan import Plan, ensure_tested, make_plan
from lowshot_cli.sweep.results import ClassNames, RowFile, Rows
from lowshot_cli.sweep.resume import ReorderBuffer, count_in
from lowshot_cli.sweep.run_folder import (
    ROWS,
    SUMMARY,
    _describe,
    _keep,
    ensure_saveable,
    open_models,
    read_run,
)
from lowshot_cli.sweep.summary import RunningTotals
from lowshot_cli.sweep.trials import Executor, run


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        summary: as in the `--json` contract, with paired differences and per-class means.
        n_rows: rows in `results.csv`.
        plan: what was done.
        embedded: what the trials were made of.
        totals: of all rows.
    """

    summary: dict[str, Any]
    n_rows: int
    plan: Plan
    embedded: SweepEmbeddings
    totals: RunningTotals


def sweep(
    checkpoint: Checkpoint,
    dataset: Dataset,
    config: Config,
    embedder: Embedder,
    run_dir: Path,
    resume: bool = False,
    save_models: bool = False,
    on_progress: OnProgress = silent,
    should_stop: ShouldStop = never,
    executor: Executor = run,
    threads: int | None = None,
    again: Sequence[str] = (),
) -> SweepResult:
    """Run all trials of a sweep and write its run folder.

    Args:
        checkpoint: the pristine base model.
        dataset: the one it was trained on.
        config: `seed`, `imprint`, `finetune` and `sweep`.
        embedder: of the checkpoint's network.
        run_dir: gets `config.yaml`, `results.csv`, `results.json`.
        resume: go on where the rows of `run_dir` end, keeping models if it began so.
        save_models: keep each trial's rows and bias in `models.npy`.
        on_progress: told about embedding and trials.
        should_stop: asked after each piece of work.
        executor: works off the trials.
        threads: of PyTorch in each process that runs trials; None for as many as in this one. A
            resumed sweep has as many as it began with.
        again: options that going on with this run takes besides its folder.

    Raises:
        Interrupted: `should_stop` said so; the rows so far are on disk.
        UsageError, CheckpointError, DataError: as `make_plan`.
    """
    plan = make_plan(checkpoint, dataset, config)
    if save_models:
        ensure_saveable(config.sweep)
    given = len(dataset.test.labels)
    if config.sweep.drop_duplicates:
        dataset = without_lookalikes(dataset, on_progress)
        ensure_tested(dataset, itertools.chain.from_iterable(plan.groups))
    run_dir.mkdir(parents=True, exist_ok=True)
    threads = threads or torch.get_num_threads()
    if resume:
        before = read_run(run_dir, checkpoint)
        save_models, threads = bool(before.get("models")), before.get("threads", threads)
    names = ClassNames(plan.names, checkpoint.base_classes)
    totals, path = RunningTotals(names), run_dir / ROWS
    sizes = [piece.stop - piece.start for piece in plan.pieces()]
    buffer = ReorderBuffer(run_dir, names, sizes, count_in(path, totals, sizes) if resume else 0)
    _describe(run_dir, config, checkpoint, save_models, threads)
    started = time.perf_counter()
    embedded = embed_for_sweep(checkpoint, dataset, plan, config, embedder)
    embedded_at = time.perf_counter()
    mode: Literal["r+", "w+"] = "r+" if buffer.turn or buffer.waiting else "w+"
    models = open_models(run_dir, plan, checkpoint.head.size, mode) if save_models else None
    firsts = [0, *itertools.accumulate(sizes)]
    done = known = totals.n_rows + sum(sizes[number] for number in buffer.waiting)
    file = RowFile(path, names)
    going_on = f"`{shlex.join(['lowshot', 'sweep', *again, '--resume', str(run_dir)])}` goes on"
    through = {*range(buffer.turn), *buffer.waiting}
    work = ((n, piece) for n, piece in enumerate(plan.pieces()) if n not in through)
    try:
        _write(buffer.drain(), file, totals)
        outcomes = executor(work, plan, embedded, config, threads, on_progress, should_stop)
        for number, outcome in outcomes:
            if models is not None:
                _keep(models, firsts[number], outcome)
            _write(buffer.push(number, outcome.rows), file, totals)
            done += sizes[number]
            on_progress(Progress("trials", done, plan.n_rows, "trials"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LowshotError(
            f"cannot write to {run_dir}: {reason}; its {done:,} trials are whole",
            f"free some space, then {going_on}",
        ) from None
    finally:
        file.close()
    finished = time.perf_counter()
    if totals.n_rows < plan.n_rows:
        raise Interrupted(
            f"stopped after {done:,} of {plan.n_rows:,} trials, nothing is lost",
            going_on,
        )
    summary = {
        **_summarise(totals, plan, embedded),
        "base_accuracy_before": embedded.base_accuracy,
        "dropped_duplicates": given - len(dataset.test.labels),
        "avoided_duplicates": sum(len(found) for found in embedded.avoided.values()),
        "timing": {
            "embed_seconds": embedded_at - started,
            "trials_seconds": finished - embedded_at,
            "trials_per_second": (done - known) / max(finished - embedded_at, 1e-9),
        },
        "run_dir": str(run_dir),
        "versions": versions(),
        "hardware": hardware(embedder.network.device),
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_text(run_dir / SUMMARY, text)
    return SweepResult(summary, totals.n_rows, plan, embedded, totals)


def _write(due: Iterable[Rows], file: RowFile, totals: RunningTotals) -> None:
    for rows in due:
        file.append(rows)
        totals.add(rows)


def _summarise(totals: RunningTotals, plan: Plan, embedded: SweepEmbeddings) -> dict[str, Any]:
    """What the trials add up to; of a sequence, cells describe the model after its last session."""
    if plan.sequence:
        sessions = totals.sessions(plan.ways)
        last = [entry for entry in sessions if entry["session"] == len(plan.groups)]
        return {"cells": last, "sessions": sessions}
    classes = [_with_supports(entry, plan, embedded) for entry in totals.groups()]
    cells = totals.cells(plan.ways)
    left_out = [embedded.dataset.class_names[label] for label in plan.left_out]
    return {
        **{"ways": plan.ways, "left_out": left_out},
        **{"cells": cells, "paired": totals.paired(), "classes": classes},
    }


def _with_supports(entry: dict[str, Any], plan: Plan, embedded: SweepEmbeddings) -> dict[str, Any]:
    """Add the training indices of the supports that did best and worst, per class of the group."""
    labels = plan.groups[plan.names.index(entry["class"])]
    members = [embedded.dataset.train.of_class(label) for label in labels]
    supports: dict[str, list[list[int]]] = {"best_support": [], "worst_support": []}
    trials = [entry["best_trial"], entry["worst_trial"]]
    for label, index in zip(labels, members, strict=True):
        avoided = embedded.avoided[label]
        drawn = draw_supports(plan.seed, label, trials, entry["shots"], len(index), avoided=avoided)
        for found, chosen in zip(supports.values(), drawn, strict=True):
            found.append(index[torch.from_numpy(chosen)].tolist())
    return {**entry, **supports}
