"""Steps that several commands share: load a model and images, embed, stop on Ctrl-C."""

from __future__ import annotations

import math
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from lowshot_cli.checkpoint import format as ckpt
from lowshot_cli.checkpoint.checkpoint import (
    Checkpoint,
    added_classes,
    check_dataset,
    check_dataset_name,
)
from lowshot_cli.checkpoint.metadata import Meta, read_metadata
from lowshot_cli.checkpoint.workdir import (
    chain_path,
    load_fresh,
    parent_hash,
    present,
    stale_since,
)
from lowshot_cli.cli.console import Output
from lowshot_cli.cli.model_choice import choose_model, tell_stale
from lowshot_cli.cli.photos import report_blank, report_skipped
from lowshot_cli.cli.torchrun import readable_errors
from lowshot_cli.config.schema import Config
from lowshot_cli.data import cifar100
from lowshot_cli.data.dataset import Dataset
from lowshot_cli.data.framing import Framing
from lowshot_cli.data.image_files import LISTING
from lowshot_cli.data.loading import load_dataset
from lowshot_cli.environment import pick_device
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.evaluation.prediction_sets import images_needed, set_quantile
from lowshot_cli.models.embedder import Embedder
from lowshot_cli.progress import OnProgress
from lowshot_cli.storage.cache import embedding_cache
from lowshot_cli.storage.files import ensure_free, ensure_writable
from lowshot_cli.storage.locks import locked
from lowshot_cli.training.distributed import ALONE, ProcessGroupView

# Commands that work on the furthest checkpoint; each of the others starts from a stage of its own.
_READ_FURTHEST = ("predict", "export")


@contextmanager
def stop_on_ctrl_c(ranks: ProcessGroupView = ALONE) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the work to stop at the next safe point, the second ends it at once.

    With several ranks, SIGTERM from torchrun counts like Ctrl-C.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    signals = [signal.SIGINT] if ranks.count == 1 else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def with_dataset_of(config: Config, checkpoint: Checkpoint) -> Config:
    """The config with the checkpoint's dataset, unless it names one itself."""
    return config.on_dataset(checkpoint.meta.dataset)


def load(
    config: Config,
    output: Output,
    image_size: int | None = None,
    *,
    framing: Framing | None = None,
    rules: int = LISTING,
) -> Dataset:
    """Load the dataset that the config names, and report files that were left out."""
    with output.progress() as on_progress:
        dataset = load_dataset(config, image_size, on_progress, framing=framing, rules=rules)
    report_skipped(output, dataset.skipped, dataset.unused)
    report_blank(output, dataset.blank)
    return dataset


def load_dataset_of(checkpoint: Checkpoint, config: Config, output: Output) -> Dataset:
    """Load the dataset that a checkpoint was trained on.

    Raises:
        CheckpointError: the config names another dataset, image size or fit, or the data are not
            those that it was trained on.
    """
    if config.dataset:
        check_dataset_name(checkpoint.meta, config.dataset)
    side = checkpoint.meta.image_size
    if config.image_size not in (None, side):
        raise CheckpointError(
            f"the checkpoint was trained on images of {side} pixels, not {config.image_size}",
            "leave out `image_size`",
        )
    framing = checkpoint.meta.framing
    if config.fit not in (None, framing.fit):
        raise CheckpointError(
            f"the checkpoint was trained with `fit={framing.fit}`, not {config.fit}",
            "leave out `fit`: only photos that you name may be framed otherwise",
        )
    _ensure_folder_named(checkpoint, config)
    own, rules = with_dataset_of(config, checkpoint), checkpoint.meta.listing
    dataset = load(own, output, side, framing=framing, rules=rules)
    try:
        check_dataset(checkpoint, dataset)
    except CheckpointError as error:
        if added := added_classes(checkpoint.meta, dataset):
            folders = (config.data_folder / split / added[0] for split in ("train", "."))
            photos = next((str(folder) for folder in folders if folder.is_dir()), "FOLDER")
            teach = ("imprint", "--class", added[0], "--images", photos)
            typed = next_command(config, chain_path(config.workdir, "base"), *teach)
            error.hint = f"teach it with `{typed}`, and move it out of the dataset"
        raise
    return dataset


def _ensure_folder_named(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse to look for a folder of images where none is named, or where CIFAR-100 is.

    Raises:
        CheckpointError: the model was trained on a folder of images, which is not named.
    """
    named = config.data_dir
    if checkpoint.meta.dataset == "folder" and (
        named is None or (named / cifar100.FOLDER).is_dir()
    ):
        place = f"{named} is not it" if named else "no folder is named"
        raise CheckpointError(
            f"the model was trained on a folder of images, and {place}",
            "name that folder with `data_dir`",
        )


def set_quantile_of(
    checkpoint: Checkpoint, output: Output, confidence: float | None
) -> float | None:
    """The quantile of prediction sets, with a note if the model has too few images for it.

    Without a confidence it is None, and no sets are asked for.

    Raises:
        UsageError: the confidence is out of range.
        CheckpointError: the checkpoint carries no hold-out.
    """
    quantile = set_quantile(checkpoint, confidence)
    if confidence is not None and quantile == math.inf:
        count = len(checkpoint.holdout.calibrating(checkpoint.holdout.labels))
        needed = images_needed(confidence)
        output.note(
            f"each set holds every class: a confidence of {confidence} needs {needed:,} hold-out "
            f"images, and the model has {count:,}"
        )
    return quantile


def model_in_use(config: Config, output: Output, source: Path | None) -> tuple[Path, Checkpoint]:
    """Load the named checkpoint, or the furthest one along the chain, which must not be stale."""
    path = choose_model(config, output, source)
    return path, ckpt.load(path)


def open_parent(
    config: Config, stage: str, usual: str, source: Path | None, out: Path | None
) -> tuple[Path, Checkpoint, str]:
    """Load what a stage is made from: its file, its checkpoint, and the hash to record as parent.

    Args:
        config: names the work folder.
        stage: the stage to make.
        usual: the stage to make it from if `source` is None.
        source: the file to make it from.
        out: where to write it; None for its place in the chain.

    Raises:
        CheckpointError: the file to make it from is missing or stale.
        UsageError: the new stage would be stale as soon as it is written.
    """
    path = source or chain_path(config.workdir, usual)
    parent = ckpt.load(source) if source else load_fresh(config.workdir, usual)
    ancestor = parent_hash(config.workdir, stage, path, parent.meta, in_place=out is None)
    return path, parent, ancestor


def make_embedder(checkpoint: Checkpoint, config: Config, on_progress: OnProgress) -> Embedder:
    """An embedder with a checkpoint's network and the user's cache."""
    network = checkpoint.network(pick_device(config.device))
    return Embedder(network, cache=embedding_cache(), on_progress=on_progress)


def reject_with(option: str, others: Sequence[str], hint: str) -> None:
    """Refuse options that cannot be combined with another one.

    Raises:
        UsageError: `others` names any.
    """
    if others:
        raise UsageError(f"{option} cannot be combined with {' or '.join(others)}", hint)


def evaluate_next(config: Config, path: Path) -> str:
    """The command that evaluates a checkpoint that was just written."""
    usual = chain_path(config.workdir, path.stem)
    named = [] if path == usual and not stale_since(path) else [str(path)]
    return next_command(config, usual, "evaluate", *named)


def next_command(config: Config, path: Path, *command: str) -> str:
    """The command to type next, with every folder and file that differs from its default.

    Args:
        config: of the command that ends.
        path: the checkpoint that the next command should read.
        command: its words, without `lowshot`.
    """
    typed = ["lowshot", *command]
    is_usual = path == chain_path(config.workdir, path.stem)
    if command[0] in _READ_FURTHEST:
        is_usual = is_usual and path == present(config.workdir)[-1]
    if not is_usual:
        typed += ["--checkpoint", str(path)]
    if config.workdir != Path(os.environ.get("LOWSHOT_WORKDIR") or Config().workdir):
        typed += ["--workdir", str(config.workdir)]
    usual = os.environ.get("LOWSHOT_DATA")
    if config.data_dir and not (usual and config.data_dir == Path(usual)):
        typed += ["--data-dir", str(config.data_dir)]
    if config.skip_bad:
        typed += ["--skip-bad"]
    if config.strict:
        typed += ["--strict"]
    return shlex.join(typed)


@contextmanager
def output_file(
    config: Config,
    output: Output,
    stage: str,
    out: Path | None,
    *,
    overwrite: bool,
    ranks: ProcessGroupView = ALONE,
) -> Iterator[Path]:
    """The path to write a derived checkpoint to, with its folder locked meanwhile.

    Without `out` it replaces its stage of the chain, which is quick to make again.
    """
    path = out or chain_path(config.workdir, stage)
    with exclusive_folder(config, output, path, overwrite=overwrite or out is None, ranks=ranks):
        before = _metadata(path)
        yield path
        now = _metadata(path)
        gone = [n for n in before.novel_classes if now and n not in now.classes] if before else []
        if gone:
            add = "; --add keeps what it knows" if stage == "imprinted" else ""
            output.note(f"{path} no longer knows {', '.join(gone)}{add}")


def _metadata(path: Path) -> Meta | None:
    """A checkpoint's metadata, or None if there is no readable one."""
    try:
        return read_metadata(path)
    except CheckpointError:
        return None


@contextmanager
def exclusive_folder(
    config: Config,
    output: Output,
    path: Path,
    *,
    overwrite: bool,
    ranks: ProcessGroupView = ALONE,
) -> Iterator[None]:
    """Lock the folder of a file to be written; of several ranks only the leader locks it."""
    if not ranks.leads:
        with readable_errors():
            yield
        return
    ensure_writable(path.parent)
    ensure_free(path, overwrite=overwrite)
    with locked(path.parent), logged(output, config, path), readable_errors():
        yield
        tell_stale(output, path)


def is_logged(config: Config, path: Path) -> bool:
    """Whether a log is kept beside a new file, which is so in the work folder alone."""
    return path.parent == config.workdir


def logged(output: Output, config: Config, path: Path) -> AbstractContextManager[None]:
    """Log to the work folder, unless the new file is written elsewhere."""
    return output.logged(path.parent) if is_logged(config, path) else nullcontext()
