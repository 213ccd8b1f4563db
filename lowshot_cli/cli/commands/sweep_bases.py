"""Sweeps over base models: each is trained once and swept, then all are summarised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack

from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.cli import tables
from lowshot_cli.cli.commands.dry_run import sweeps as plan_sweeps
from lowshot_cli.cli.commands.sweep import Workers, load_base, run_sweep
from lowshot_cli.cli.commands.train_base import finish_base, make_base_for_sweep
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import load, load_dataset_of, logged, stop_on_ctrl_c
from lowshot_cli.config.schema import Config
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.errors import Interrupted, UsageError
from lowshot_cli.models import weights
from lowshot_cli.storage.files import ensure_writable, write_text
from lowshot_cli.storage.locks import locked
from lowshot_cli.sweep.base_models import (
    BASES_SUMMARY,
    BaseModel,
    SweptBase,
    find_run,
    is_finished,
    plan_base_models,
    summarise_bases,
)
from lowshot_cli.sweep.ray_executor import train_bases
from lowshot_cli.sweep.run import RunOptions
from lowshot_cli.sweep.run_folder import ensure_saveable, read_summary
from lowshot_cli.sweep.summary import SweepSummary
from lowshot_cli.sweep.trials import Executor


def sweep(
    config: Config,
    output: Output,
    workers: Workers,
    seeds: str | None,
    backbones: str | None,
    *,
    others: Sequence[str],
    dry_run: bool,
    save_models: bool,
) -> None:
    """Train a base model for each class order and backbone, sweep each, and summarise.

    Existing base models and sweeps are reused, unfinished sweeps resumed.
    """
    if others:
        raise UsageError(
            "several base models cannot be combined with --checkpoint or --resume",
            "leave these out; the same command continues where it was stopped",
        )
    if save_models:
        ensure_saveable(config.sweep)
    models = plan_base_models(
        config, _listed("class_order_seeds", seeds), _listed("backbones", backbones)
    )
    path = config.workdir / BASES_SUMMARY
    if dry_run:
        left = [
            one.config
            for one in models
            if not _is_swept(one, workers.threads, save_models=save_models)
        ]
        plan_sweeps(left, output, None, save_models=save_models, also=[path])
        return
    with workers.open(output) as executor:
        _train_missing(models, output, workers)
        swept = [
            SweptBase(model, _sweep(model, output, executor, workers, save_models=save_models))
            for model in models
        ]
    summary = summarise_bases(swept)
    write_text(path, json.dumps(summary.to_json(), indent=1, ensure_ascii=False))
    output.data(summary.to_json())
    tables.show_over_bases(output, summary)
    output.finish([path])


def _listed(option: str, text: str | None) -> list[str]:
    """The entries of a comma-separated list on the command line."""
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and (not parts or len(set(parts)) < len(parts)):
        raise UsageError(f"`{option}` {text!r}: should name each entry once, separated by commas")
    return parts


def _train_missing(models: Sequence[BaseModel], output: Output, workers: Workers) -> None:
    """Train the missing base models; existing ones must match their config."""
    missing = []
    for model in models:
        if model.path.exists():
            load_base(model.path, model.config)
        else:
            missing.append(model)
    if workers.on_ray:
        _train_on_ray(missing, output, workers.gpus)
        return
    for model in missing:
        output.note(f"training {model.name}")
        make_base_for_sweep(model.config, output, model.path)


def _train_on_ray(missing: Sequence[BaseModel], output: Output, gpus: float) -> None:
    datasets: dict[int | None, Dataset] = {}
    with ExitStack() as stack:
        for model in missing:
            ensure_writable(model.path.parent)
            stack.enter_context(locked(model.path.parent))
            side = weights.photo_side(model.config)
            if side not in datasets:
                datasets[side] = load(model.config, output, side)
        should_stop = stack.enter_context(stop_on_ctrl_c())
        tasks = [(m.config, datasets[weights.photo_side(m.config)]) for m in missing]
        if missing:
            output.note(f"training {', '.join(model.name for model in missing)}")
        for number, result in train_bases(tasks, gpus, should_stop):
            model = missing[number]
            with logged(output, model.config, model.path):
                finish_base(model.config, output, model.path, result, report=False)


def _sweep(
    model: BaseModel, output: Output, executor: Executor, workers: Workers, *, save_models: bool
) -> SweepSummary:
    """The summary of a base model's sweep, which is run or resumed unless it is finished."""
    base = ckpt.load(model.path)
    begun = find_run(model.config, base, threads=workers.threads, save_models=save_models)
    if begun and is_finished(begun):
        output.note(f"{model.name}: already swept, {begun}")
        return read_summary(begun)
    output.note(f"sweeping {model.name}")
    dataset = load_dataset_of(base, model.config, output)
    options = RunOptions(
        resume=begun is not None, save_models=save_models, threads=workers.threads_each
    )
    try:
        done = run_sweep(
            model.config, output, base, dataset, begun, options=options, executor=executor
        )
    except Interrupted as stopped:
        stopped.hint = None  # the command as typed continues with all of them
        raise
    output.finish(done.written)
    return done.summary


def _is_swept(model: BaseModel, threads: int | None, *, save_models: bool) -> bool:
    if not model.path.exists():
        return False
    base = ckpt.load(model.path)
    begun = find_run(model.config, base, threads=threads, save_models=save_models)
    return begun is not None and is_finished(begun)
