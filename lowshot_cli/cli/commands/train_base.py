"""`lowshot train-base`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.workdir import chain_path
from lowshot_cli.cli import tables
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.context import exclusive_folder, load, next_command, stop_on_ctrl_c
from lowshot_cli.cli.contract import training_record
from lowshot_cli.cli.photos import with_background
from lowshot_cli.cli.torchrun import process_group
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import DEFAULT_DATASET, DEFAULT_WEIGHTS
from lowshot_cli.data.framing import in_words
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import RankLost, UsageError
from lowshot_cli.models import weights
from lowshot_cli.records import with_skipped
from lowshot_cli.storage.cache import embedding_cache
from lowshot_cli.training.adopt import adopt_without_data
from lowshot_cli.training.context import RunContext
from lowshot_cli.training.distributed import ALONE, ProcessGroupView
from lowshot_cli.training.result import TrainResult
from lowshot_cli.training.state import delete_states, is_resumable
from lowshot_cli.training.train import train_base as train

_PHOTOS = ("NAME", "--images", "FOLDER")


def train_base(
    config: Config, output: Output, out: Path | None, *, resume: bool, overwrite: bool
) -> None:
    """Train the base model and write `base.safetensors`."""
    config = config.on_dataset(DEFAULT_DATASET)
    path = out or chain_path(config.workdir, "base")
    try:
        with (
            process_group(config.device) as ranks,
            exclusive_folder(config, output, path, overwrite=overwrite, ranks=ranks),
        ):
            _make_base(config, output, path, resume=resume, report=True, ranks=ranks)
    except RankLost as lost:
        if not is_resumable(state_path(path)):
            lost.hint = "no epoch was finished, so start again"
        raise


def make_base_for_sweep(config: Config, output: Output, path: Path) -> None:
    """Train the missing base model of a sweep, or continue its interrupted training."""
    config = config.on_dataset(DEFAULT_DATASET)
    with exclusive_folder(config, output, path, overwrite=True):
        resume = is_resumable(state_path(path))
        _make_base(config, output, path, resume=resume, report=False)


def state_path(path: Path) -> Path:
    """Path of the training state of a base model, beside its checkpoint."""
    return path.with_suffix(".state.safetensors")


def _make_base(
    config: Config,
    output: Output,
    path: Path,
    *,
    resume: bool,
    report: bool,
    ranks: ProcessGroupView = ALONE,
) -> None:
    if config.dataset == "none":
        _fetch_weights(config, output, resume=resume)
        finish_base(config, output, path, _adopt(config, output), report=report)
        return
    if config.background is not None:
        raise UsageError(
            "`background` is for a classifier that is adopted without images",
            "leave it out, or give `dataset=none`",
        )
    with ranks.first_here():
        _fetch_weights(config, output, resume=resume)
        dataset = load(config, output, weights.photo_side(config))
    state = state_path(path)
    with stop_on_ctrl_c(ranks) as should_stop, output.progress() as on_progress:
        context = RunContext(
            on_progress=on_progress,
            should_stop=should_stop,
            ranks=ranks,
            device=pick_device(config.device),
            cache=embedding_cache(),
        )
        result = train(config, dataset, state, resume=resume, context=context)
    known = set(result.checkpoint.meta.classes)
    novel = next((name for name in dataset.class_names if name not in known), None)
    proposed = _PHOTOS
    if novel is not None:
        at_hand = len(dataset.train.of_class(dataset.label(novel)))
        proposed = (novel, "--shots", str(min(5, at_hand)))
    finish_base(
        config,
        output,
        path,
        result,
        report=report,
        proposed=proposed,
        n_skipped=dataset.n_skipped,
    )
    delete_states(state)


def _adopt(config: Config, output: Output) -> TrainResult:
    """A classifier from its weights alone, with the photos of `background`, if there are any."""
    result = adopt_without_data(config)
    meta = result.checkpoint.meta
    output.note(f"photos: {in_words(meta.image_size, meta.framing)}")
    network = result.checkpoint.network(pick_device(config.device))
    known = with_background(config, output, result.checkpoint, network)
    return replace(result, checkpoint=known)


def _fetch_weights(config: Config, output: Output, *, resume: bool) -> None:
    """Download a library's weights, or find a backbone's own, before training reads them."""
    if config.train_base.start == DEFAULT_WEIGHTS and not resume:
        weights.read_weights(config.train_base, show_progress=not output.quiet)


def finish_base(
    config: Config,
    output: Output,
    path: Path,
    result: TrainResult,
    *,
    report: bool,
    proposed: Sequence[str] = _PHOTOS,
    n_skipped: int = 0,
) -> None:
    """Write a base model, and show its results if they are asked for.

    Args:
        config: what it was trained with.
        output: prints notes and results.
        path: where to write the checkpoint.
        result: the trained model and its measurements.
        report: whether to show the results and the next command.
        proposed: class and images for the next command to add.
        n_skipped: number of files of the dataset that were left out.
    """
    ckpt.save(result.checkpoint, path)
    for note in result.weights.notes() if result.weights else ():
        output.note(note)
    if report:
        output.data(with_skipped(training_record(path, result), n_skipped))
        tables.show_training(output, result)
    then = next_command(config, path, "imprint", "--class", *proposed)
    output.finish([path], then if report else None)
