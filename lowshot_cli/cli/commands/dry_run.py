"""`--dry-run`: what a command would work on, its estimated cost, and what it would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.workdir import chain_path, load_fresh
from lowshot_cli.cli import tables
from lowshot_cli.cli.commands.sweep import load_base, trains_first
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import is_logged, load, load_dataset_of, make_embedder, with_dataset_of
from lowshot_cli.cli.contract import DryRun
from lowshot_cli.config.schema import Config
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import UsageError
from lowshot_cli.estimate import (
    Stage,
    estimate_finetuning,
    estimate_sweep,
    estimate_training,
    peak_memory,
    untrained,
)
from lowshot_cli.models import weights
from lowshot_cli.report.write import sweep_files
from lowshot_cli.storage.files import LOG, ensure_free
from lowshot_cli.sweep.plan import make_plan
from lowshot_cli.sweep.run_folder import MODELS, ensure_saveable
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.task import make_task


def train_base(
    config: Config, output: Output, out: Path | None, *, resume: bool, overwrite: bool
) -> None:
    """Plan a training."""
    if resume:
        raise UsageError("--dry-run estimates a whole training", "leave out --resume")
    path = out or chain_path(config.workdir, "base")
    ensure_free(path, overwrite=overwrite)
    if config.dataset == "none":
        raise UsageError(
            "--dataset none trains nothing, so there is nothing to estimate", "leave out --dry-run"
        )
    dataset = load(config, output, weights.photo_side(config))
    task = make_task(config.train_base, dataset)
    stages = estimate_training(config, dataset, task)
    counts = {
        "base classes": len(task.names),
        "fit images": len(task.fit),
        "hold-out images": len(task.holdout),
        "test images": sum(len(dataset.test.of_class(n)) for n in task.labels_in_dataset),
    }
    _show(output, counts, stages, [path, *_log(config, path)])


def finetune(
    config: Config, output: Output, source: Path | None, out: Path | None, *, overwrite: bool
) -> None:
    """Plan a fine-tuning."""
    path = out or chain_path(config.workdir, "finetuned")
    ensure_free(path, overwrite=overwrite or out is None)
    parent = ckpt.load(source) if source else load_fresh(config.workdir, "imprinted")
    dataset = load_dataset_of(parent, config, output)
    stages = estimate_finetuning(parent, dataset, config)
    counts = {
        "base classes": parent.meta.n_base,
        "novel classes": len(parent.novel_classes),
        "support images": sum(len(each) for each in parent.supports),
    }
    _show(output, counts, stages, [path, *_log(config, path)])


def sweep(
    config: Config, output: Output, source: Path | None, resume: Path | None, *, save_models: bool
) -> None:
    """Plan a sweep, and the training of its base model if that is missing."""
    if resume is not None:
        raise UsageError("--dry-run estimates a whole sweep", "leave out --resume")
    if save_models:
        ensure_saveable(config.sweep)
    sweeps([config], output, source, save_models=save_models)


def sweeps(
    configs: Sequence[Config],
    output: Output,
    source: Path | None,
    *,
    save_models: bool,
    also: Sequence[Path] = (),
) -> None:
    """Plan one sweep per config, with the costs of equal steps added up.

    Args:
        configs: each with its own work folder.
        output: prints the plan.
        source: base model of all sweeps; None for that of each work folder.
        save_models: keep the model of each trial.
        also: files that are written after the last sweep.
    """
    counts: dict[str, int] = {}
    stages: dict[str, Stage] = {}
    written: list[Path] = []
    for config in configs:
        path = source or chain_path(config.workdir, "base")
        found, steps, files = _plan_sweep(config, output, path, save_models=save_models)
        counts = {**found, "trials": counts.get("trials", 0) + found["trials"]}
        for step in steps:
            same = stages.get(step.name, replace(step, n=0, seconds=0))
            stages[step.name] = replace(
                step, n=same.n + step.n, seconds=same.seconds + step.seconds
            )
        written += files
    if any(config.sweep.drop_duplicates for config in configs):
        output.note("the estimate leaves out the search for duplicates (--drop-duplicates)")
    if len(configs) != 1:
        counts = {"base models": len(configs), **counts}
    _show(output, counts, list(stages.values()), [*written, *also])


def _plan_sweep(
    config: Config, output: Output, path: Path, *, save_models: bool
) -> tuple[dict[str, int], list[Stage], list[Path]]:
    """What a sweep works on, its steps, and what it writes."""
    stages, written = [], []
    if trains_first(config, path):
        dataset = load(config, output, weights.photo_side(config))
        stages += estimate_training(config, dataset, make_task(config.train_base, dataset))
        base = untrained(config, dataset)
        written += [path, *_log(config, path)]
    else:
        base = load_base(path, config)
        config = with_dataset_of(config, base)
        dataset = load_dataset_of(base, config, output)
    plan = make_plan(base, dataset, config)
    with output.progress() as on_progress:
        embedder = make_embedder(base, config, on_progress)
        context = RunContext(on_progress=on_progress, device=pick_device(config.device))
        stages += estimate_sweep(base, dataset, config, plan, embedder, context=context)
    novel = {label for group in plan.groups for label in group}
    counts = {
        "base classes": base.meta.n_base,
        "novel classes": len(novel),
        "test images": sum(
            len(dataset.test.of_class(n)) for n in [*base.base_labels(dataset), *novel]
        ),
        "trials": plan.n_rows,
    }
    folder = config.workdir / "sweep-DATE-TIME"
    names = [*sweep_files(config), *([MODELS] if save_models else []), LOG]
    return counts, stages, [*written, *(folder / name for name in names)]


def _log(config: Config, path: Path) -> list[Path]:
    return [path.parent / LOG] if is_logged(config, path) else []


def _show(
    output: Output, counts: dict[str, int], stages: Sequence[Stage], written: Sequence[Path]
) -> None:
    plan = DryRun(counts, stages, peak_memory(), written)
    output.data(plan.to_json())
    tables.show_plan(output, plan)
