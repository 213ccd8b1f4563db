"""Sweeps and their run folders: rows as they come, a summary at the end, models on request."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.config import Config, SweepConfig
from lowshot_cli.data import Dataset
from lowshot_cli.data.duplicates import without_lookalikes
from lowshot_cli.data.splits import draw_supports
from lowshot_cli.embed import Embedder
from lowshot_cli.errors import DataError, Interrupted, LowshotError, UsageError
from lowshot_cli.files import new_array, write_text
from lowshot_cli.findings import Findings, find
from lowshot_cli.locks import locked
from lowshot_cli.machine import hardware, versions
from lowshot_cli.materials import Materials, prepare
from lowshot_cli.plan import Plan, ensure_tested, make_plan
from lowshot_cli.progress import OnProgress, Progress, ShouldStop, never, silent
from lowshot_cli.results import RowFile, Rows, Tally, count_in
from lowshot_cli.trials import Executor, Outcome, run
from lowshot_cli.turns import Turns

ROWS, SUMMARY, MODELS = "results.csv", "results.json", "models.npy"
CONFIG, ABOUT = "config.yaml", "run.json"
Models = np.memmap[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        summary: as in the `--json` contract, with paired differences and per-class means.
        n_rows: rows in `results.csv`.
        findings: what a report shows besides.
    """

    summary: dict[str, Any]
    n_rows: int
    findings: Findings


@contextmanager
def run_folder(workdir: Path, resumed: Path | None) -> Iterator[Path]:
    """The folder of a sweep, which is this process's alone meanwhile: a new one unless resumed.

    A new one in which nothing was written, as the sweep could not begin, is gone afterwards.
    """
    folder = resumed or _new_run_dir(workdir)
    try:
        with locked(folder):
            yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def _new_run_dir(workdir: Path) -> Path:
    stamp = time.strftime("sweep-%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        folder = workdir / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # another sweep began in the same second
            continue
        return folder
    raise AssertionError


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
        before = facts_of(run_dir, checkpoint)
        save_models, threads = bool(before.get("models")), before.get("threads", threads)
    tally, path = Tally(plan.names, checkpoint.base_classes), run_dir / ROWS
    sizes = [piece.stop - piece.start for piece in plan.pieces()]
    turns = Turns(run_dir, tally, sizes, count_in(path, tally, sizes) if resume else 0)
    _describe(run_dir, config, checkpoint, save_models, threads)
    started = time.perf_counter()
    materials = prepare(checkpoint, dataset, plan, config, embedder)
    embedded = time.perf_counter()
    mode: Literal["r+", "w+"] = "r+" if turns.turn or turns.waiting else "w+"
    models = open_models(run_dir, plan, checkpoint.head.size, mode) if save_models else None
    firsts = [0, *itertools.accumulate(sizes)]
    done = known = tally.n_rows + sum(sizes[number] for number in turns.waiting)
    file = RowFile(path, tally)
    going_on = f"`{shlex.join(['lowshot', 'sweep', *again, '--resume', str(run_dir)])}` goes on"
    through = {*range(turns.turn), *turns.waiting}
    work = ((n, piece) for n, piece in enumerate(plan.pieces()) if n not in through)
    try:
        _write(turns.due(), file, tally)
        outcomes = executor(work, plan, materials, config, threads, on_progress, should_stop)
        for number, outcome in outcomes:
            if models is not None:
                _keep(models, firsts[number], outcome)
            _write(turns.arrive(number, outcome.rows), file, tally)
            done += sizes[number]
            milestone = done == plan.n_rows
            on_progress(Progress("trials", done, plan.n_rows, "trials", milestone=milestone))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LowshotError(
            f"cannot write to {run_dir}: {reason}; its {done:,} trials are whole",
            f"free some space, then {going_on}",
        ) from None
    finally:
        file.close()
    finished = time.perf_counter()
    if tally.n_rows < plan.n_rows:
        raise Interrupted(
            f"stopped after {done:,} of {plan.n_rows:,} trials, nothing is lost",
            going_on,
        )
    summary = {
        **_summary_of(tally, plan, materials),
        "base_accuracy_before": materials.base_accuracy,
        "dropped_duplicates": given - len(dataset.test.labels),
        "avoided_duplicates": sum(len(found) for found in materials.avoided.values()),
        "timing": {
            "embed_seconds": embedded - started,
            "trials_seconds": finished - embedded,
            "trials_per_second": (done - known) / max(finished - embedded, 1e-9),
        },
        "run_dir": str(run_dir),
        "versions": versions(),
        "hardware": hardware(embedder.network.device),
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    write_text(run_dir / SUMMARY, text)
    findings = find(plan, materials, config, tally, summary.get("classes", []))
    return SweepResult(summary, tally.n_rows, findings)


def _write(due: Iterable[Rows], file: RowFile, tally: Tally) -> None:
    for rows in due:
        file.append(rows)
        tally.add(rows)


def ensure_saveable(options: SweepConfig) -> None:
    """Raise UsageError where `--save-models` could not make models of the trials."""
    if options.sessions:
        raise UsageError("--save-models keeps no sessions", "leave one of the two out")
    for method in options.methods:
        if method in ("finetune-full", "nearest", "proxies"):
            raise UsageError(
                f"--save-models keeps one row a class, which does not make a model of {method}",
                f"leave {method} out of --method",
            )


def _summary_of(tally: Tally, plan: Plan, materials: Materials) -> dict[str, Any]:
    """What the trials add up to; of a sequence, cells describe the model after its last session."""
    if plan.sequence:
        sessions = tally.sessions(plan.ways)
        last = [entry for entry in sessions if entry["session"] == len(plan.groups)]
        return {"cells": last, "sessions": sessions}
    classes = [_with_supports(entry, plan, materials) for entry in tally.groups()]
    cells = tally.cells(plan.ways)
    left_out = [materials.dataset.class_names[label] for label in plan.left_out]
    return {
        **{"ways": plan.ways, "left_out": left_out},
        **{"cells": cells, "paired": tally.paired(), "classes": classes},
    }


def _with_supports(entry: dict[str, Any], plan: Plan, materials: Materials) -> dict[str, Any]:
    """Add the training indices of the supports that did best and worst, per class of the group."""
    labels = plan.groups[plan.names.index(entry["class"])]
    members = [materials.dataset.train.of_class(label) for label in labels]
    supports: dict[str, list[list[int]]] = {"best_support": [], "worst_support": []}
    trials = [entry["best_trial"], entry["worst_trial"]]
    for label, index in zip(labels, members, strict=True):
        avoided = materials.avoided[label]
        drawn = draw_supports(plan.seed, label, trials, entry["shots"], len(index), avoided)
        for found, chosen in zip(supports.values(), drawn, strict=True):
            found.append(index[torch.from_numpy(chosen)].tolist())
    return {**entry, **supports}


def _describe(
    run_dir: Path, config: Config, base: Checkpoint, save_models: bool, threads: int
) -> None:
    """Write down what makes a run what it is, for those who resume or rebuild it."""
    write_text(run_dir / CONFIG, config.to_yaml())
    about = {"base": base.digest, "models": save_models, "threads": threads}
    write_text(run_dir / ABOUT, json.dumps({**about, "versions": versions()}))


def facts_of(run_dir: Path, base: Checkpoint) -> dict[str, Any]:
    """What a run folder says of itself.

    Raises:
        DataError: it is no run folder, or its base model was another one.
    """
    try:
        about: dict[str, Any] = json.loads((run_dir / ABOUT).read_text(encoding="utf-8"))
        same = about["base"] == base.digest
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{run_dir} holds no sweep", "name a run folder of `lowshot sweep`"
        ) from None
    if not same:
        raise DataError(
            f"{run_dir} was run on another base model", "name that one with --checkpoint"
        )
    return about


def open_models(run_dir: Path, plan: Plan, size: int, mode: Literal["r", "r+", "w+"]) -> Models:
    """Map `models.npy`, `(n, W·D + 1)` fp32: each trial's rows, then its bias.

    Raises:
        DataError: to be read, but absent, damaged or of another run.
    """
    path, shape = run_dir / MODELS, (plan.n_rows, plan.ways * size + 1)
    models: Models
    if mode == "w+":
        return new_array(path, np.float32, shape)
    try:
        models = np.load(path, mmap_mode=mode, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{run_dir} holds no {MODELS}", "run the sweep with --save-models"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", "run the sweep again") from None
    if models.shape != shape:
        raise DataError(f"{path} does not fit the run", "run the sweep again")
    return models


def _keep(models: Models, first: int, outcome: Outcome) -> None:
    """Write a piece's models, before its rows say that it is done."""
    assert outcome.proxies is not None
    place = slice(first, first + len(outcome.rows.trials))
    models[place, :-1] = outcome.proxies.flatten(1).numpy()
    models[place, -1] = outcome.rows.bias
    models.flush()
