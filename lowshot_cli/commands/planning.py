"""`--dry-run`: what a command would do, what it would cost, and what it would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lowshot_cli import chain, forecast, tables, weights
from lowshot_cli import checkpoint_file as ckpt
from lowshot_cli import sweep as sweeping
from lowshot_cli.base_model import prepare
from lowshot_cli.commands.common import dataset_of, embedder_of, is_logged, load, named
from lowshot_cli.commands.measuring import load_base, trains_first
from lowshot_cli.commands.reporting import sweep_files
from lowshot_cli.config import Config
from lowshot_cli.errors import UsageError
from lowshot_cli.files import ensure_free
from lowshot_cli.forecast import Stage
from lowshot_cli.journal import LOG
from lowshot_cli.output import Output
from lowshot_cli.plan import make_plan


def train_base(
    config: Config, output: Output, resume: bool, out: Path | None, overwrite: bool
) -> None:
    """Plan a training."""
    if resume:
        raise UsageError("--dry-run plans a whole training", "leave out --resume")
    path = out or chain.chain_path(config.workdir, "base")
    ensure_free(path, overwrite)
    if config.dataset == "none":
        raise UsageError("--dataset none costs no time to plan for", "leave out --dry-run")
    dataset = load(config, output, weights.photo_side(config))
    task = prepare(config.train_base, dataset)
    stages = forecast.of_training(config, dataset, task)
    counts = {
        "base classes": len(task.names),
        "fit images": len(task.fit),
        "hold-out images": len(task.holdout),
        "test images": sum(len(dataset.test.of_class(n)) for n in task.labels_in_dataset),
    }
    _show(output, counts, stages, [path, *_log(config, path)])


def finetune(
    config: Config, output: Output, source: Path | None, out: Path | None, overwrite: bool
) -> None:
    """Plan a fine-tuning."""
    path = out or chain.chain_path(config.workdir, "finetuned")
    ensure_free(path, overwrite or out is None)
    parent = ckpt.load(source) if source else chain.load_fresh(config.workdir, "imprinted")
    dataset = dataset_of(parent, config, output)
    stages = forecast.of_finetuning(parent, dataset, config)
    counts = {
        "base classes": parent.meta.n_base,
        "novel classes": len(parent.novel_classes),
        "support images": sum(len(each) for each in parent.supports),
    }
    _show(output, counts, stages, [path, *_log(config, path)])


def sweep(
    config: Config, output: Output, source: Path | None, resume: Path | None, save_models: bool
) -> None:
    """Plan a sweep, and the training of its base model where that is still to come."""
    if resume is not None:
        raise UsageError("--dry-run plans a whole sweep", "leave out --resume")
    path = source or chain.chain_path(config.workdir, "base")
    stages, written = [], []
    if trains_first(config, path):
        dataset = load(config, output, weights.photo_side(config))
        stages += forecast.of_training(config, dataset, prepare(config.train_base, dataset))
        base = forecast.untrained(config, dataset)
        written += [path, *_log(config, path)]
    else:
        base = load_base(path, config)
        config = named(config, base)
        dataset = dataset_of(base, config, output)
    plan = make_plan(base, dataset, config)
    with output.progress() as on_progress:
        embedder = embedder_of(base, config, on_progress)
        stages += forecast.of_sweep(base, dataset, config, plan, embedder, on_progress)
    novel = {label for group in plan.groups for label in group}
    counts = {
        "base classes": base.meta.n_base,
        "novel classes": len(novel),
        "test images": sum(
            len(dataset.test.of_class(n)) for n in [*base.base_labels(dataset), *novel]
        ),
        "trials": plan.n_rows,
    }
    if config.sweep.drop_duplicates:
        output.note("finding look-alikes for --drop-duplicates comes on top")
    folder = config.workdir / "sweep-DATE-TIME"
    names = [*sweep_files(config), *([sweeping.MODELS] if save_models else []), LOG]
    _show(output, counts, stages, [*written, *(folder / name for name in names)])


def _log(config: Config, path: Path) -> list[Path]:
    return [path.parent / LOG] if is_logged(config, path) else []


def _show(
    output: Output, counts: dict[str, int], stages: Sequence[Stage], written: Sequence[Path]
) -> None:
    seconds, memory = sum(stage.seconds for stage in stages), forecast.peak_memory()
    output.data(
        {
            "counts": counts,
            "stages": [asdict(stage) for stage in stages],
            "seconds": seconds,
            "memory_bytes": memory,
            "paths": [str(path) for path in written],
        }
    )
    tables.show_plan(output, counts, stages, seconds, memory)
    output.line("would write")
    for path in written:
        output.line(f"  {path}")
