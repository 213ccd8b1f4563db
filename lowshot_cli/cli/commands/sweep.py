"""`lowshot sweep`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.workdir import chain_path
from lowshot_cli.cli import tables
from lowshot_cli.cli.commands.train_base import make_base_for_sweep
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import (
    load_dataset_of,
    make_embedder,
    next_command,
    stop_on_ctrl_c,
    with_dataset_of,
)
from lowshot_cli.config.difference import difference
from lowshot_cli.config.methods import METHODS
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import Executor as ExecutorName
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import CheckpointError, Interrupted, UsageError
from lowshot_cli.report.write import report_sweep
from lowshot_cli.storage.files import ensure_writable
from lowshot_cli.sweep.ray_executor import check_installed, on_ray
from lowshot_cli.sweep.run import CannotWrite, RunOptions
from lowshot_cli.sweep.run import sweep as run_trials
from lowshot_cli.sweep.run_folder import (
    ROWS,
    SUMMARY,
    changes_since,
    ensure_saveable,
    run_folder,
)
from lowshot_cli.sweep.summary import SweepSummary
from lowshot_cli.sweep.trials import Executor, run
from lowshot_cli.training.context import RunContext


def sweep(
    config: Config,
    output: Output,
    source: Path | None,
    resume: Path | None,
    workers: Workers,
    *,
    save_models: bool,
) -> None:
    """Run a sweep and write its run folder; train a missing base model if the config says so."""
    if resume is not None and (save_models or workers.threads):
        raise UsageError(
            "--save-models and --threads are fixed when a sweep starts",
            "leave them out, the run folder records them",
        )
    if save_models:
        ensure_saveable(config.sweep)
    base_path = source or chain_path(config.workdir, "base")
    if trains_first(config, base_path):
        output.note(f"no base model at {base_path}, training it first")
        make_base_for_sweep(config, output, base_path)
    base = load_base(base_path, config)
    config = with_dataset_of(config, base)
    if resume is not None:
        _check_resumed(resume, config)
    dataset = load_dataset_of(base, config, output)
    with workers.open(output) as executor:
        options = RunOptions(
            resume=resume is not None, save_models=save_models, threads=workers.threads_each
        )
        done = run_sweep(
            config,
            output,
            base,
            dataset,
            resume,
            options=options,
            executor=executor,
            named_base=source,
        )
    summary = done.summary
    output.data(summary.to_json())
    show = tables.show_sessions if summary.is_sequence else tables.show_sweep
    show(output, summary)
    if summary.left_out:
        output.note(f"left out, too few for another group: {', '.join(summary.left_out)}")
    if config.sweep.drop_duplicates:
        output.line(
            f"without {summary.dropped_duplicates:,} test images that resemble a training image"
        )
    then = None
    if save_models and METHODS[config.sweep.methods[0]].in_imprint:
        typed = ("--from-run", summary.run_dir, "--trial", "0")
        then = next_command(config, base_path, "imprint", *typed)
    output.finish(done.written, then)


@dataclass(frozen=True)
class Done:
    """A finished sweep: its summary, and the written files to report."""

    summary: SweepSummary
    written: list[Path]


def run_sweep(
    config: Config,
    output: Output,
    base: Checkpoint,
    dataset: Dataset,
    resumed: Path | None,
    *,
    options: RunOptions,
    executor: Executor,
    named_base: Path | None = None,
) -> Done:
    """Run a sweep of one base model into a run folder, and write its report.

    Args:
        config: of the sweep.
        output: prints progress and notes.
        base: the base model.
        dataset: the one it was trained on.
        resumed: the run folder to resume; None for a new one.
        options: of the run.
        executor: runs the trials.
        named_base: file of the base model as it was typed, for the command that resumes.
    """
    ensure_writable(config.workdir)
    with (
        run_folder(config.workdir, resumed) as run_dir,
        output.logged(run_dir),
        stop_on_ctrl_c() as should_stop,
        output.progress() as on_progress,
        _hints_at_resuming(run_dir, named_base),
    ):
        result = run_trials(
            base,
            dataset,
            config,
            make_embedder(base, config, on_progress),
            run_dir,
            options=options,
            executor=executor,
            context=RunContext(
                on_progress=on_progress,
                should_stop=should_stop,
                device=pick_device(config.device),
            ),
        )
        drawn = report_sweep(result, base, config, output.command, run_dir)
    written = [run_dir / ROWS, run_dir / SUMMARY, *drawn]
    return Done(result.summary, written)


@contextmanager
def _hints_at_resuming(run_dir: Path, named_base: Path | None) -> Iterator[None]:
    """Name the command that resumes an interrupted sweep."""
    base = ["--checkpoint", str(named_base)] if named_base else []
    command = shlex.join(["lowshot", "sweep", *base, "--resume", str(run_dir)])
    try:
        yield
    except Interrupted as stopped:
        stopped.hint = f"`{command}` continues"
        raise
    except CannotWrite as problem:
        problem.hint = f"free some space, then `{command}` continues"
        raise


def trains_first(config: Config, path: Path) -> bool:
    """Whether a sweep trains its base model: it is missing, and the config says so."""
    return not path.exists() and config.sweep.train_base


def load_base(path: Path, config: Config) -> Checkpoint:
    """The base model that a sweep starts from.

    Raises:
        UsageError: it has novel classes.
        CheckpointError: it is missing, or was trained with other settings than the config's.
    """
    if not path.exists():
        raise CheckpointError(
            f"no base model at {path}",
            "`lowshot train-base` makes it; a sweep trains it first if its config has "
            "`sweep: {train_base: true}`",
        )
    base = ckpt.load(path)
    if base.novel_classes:
        raise UsageError(f"{path} has novel classes", "a sweep starts from a base model")
    _check_split(base, path, config)
    return base


def _check_split(base: Checkpoint, path: Path, config: Config) -> None:
    """Check that the base model was trained as the config says."""
    if not config.sweep.train_base:
        return
    wanted = config.portable()["train_base"]
    changed = difference(base.meta.config["train_base"], wanted)
    if changed:
        raise CheckpointError(
            f"{path} was trained with other settings than the config's: {'; '.join(changed)}",
            "give another --workdir, or set sweep.train_base to false",
        )


def _check_resumed(run_dir: Path, config: Config) -> None:
    changed = changes_since(run_dir, config)
    if changed:
        raise UsageError(
            f"{run_dir} was run with another config: {'; '.join(changed)}",
            "resume with no other flags, or start a new sweep without --resume",
        )


@dataclass(frozen=True)
class Workers:
    """What `--executor` and its companion options say.

    Raises:
        UsageError: they contradict each other, or Ray is not installed.
    """

    executor: ExecutorName = "local"
    address: str | None = None
    gpus: float = 0.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: should be 1 or more")
        if not 0 <= self.gpus < float("inf"):
            raise UsageError(f"--gpus-per-worker {self.gpus:g}: should be 0 or more")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UsageError(
                f"--gpus-per-worker {self.gpus:g}: Ray shares one GPU, or gives whole ones",
                "give a number up to 1, or a whole number",
            )
        if self.on_ray:
            check_installed()
        elif self.address or self.gpus:
            raise UsageError(
                "--ray-address and --gpus-per-worker are for Ray", "add --executor ray"
            )

    @property
    def on_ray(self) -> bool:
        """Whether trials run on a Ray cluster."""
        return self.executor == "ray"

    @property
    def threads_each(self) -> int | None:
        """PyTorch's threads in each worker; None for PyTorch's default."""
        return self.threads or (1 if self.on_ray else None)

    def open(self, output: Output) -> AbstractContextManager[Executor]:
        """The executor that runs the trials, for the duration of the block."""
        if not self.on_ray:
            return nullcontext(run)
        output.note(f"joining Ray at {self.address}" if self.address else "starting Ray")
        return on_ray(self.address, self.gpus)
