"""Commands that make a checkpoint: train-base, imprint, finetune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowshot_cli import chain, replay, tables, teach, tuning, weights
from lowshot_cli import checkpoint_file as ckpt
from lowshot_cli import evaluate as evaluation
from lowshot_cli import train as training
from lowshot_cli.adopt import adopt_without_data
from lowshot_cli.backbones import pick_device
from lowshot_cli.base_model import TrainResult
from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.choices import DEFAULT_WEIGHTS
from lowshot_cli.commands.common import (
    dataset_of,
    embedder_of,
    following,
    load,
    owned,
    photos_at,
    refuse_beside,
    stopping,
    target,
)
from lowshot_cli.commands.launch import joined
from lowshot_cli.config import Config
from lowshot_cli.errors import RankLost, UsageError
from lowshot_cli.files import file_hash
from lowshot_cli.output import Output
from lowshot_cli.ranks import ALONE, Ranks
from lowshot_cli.train_state import delete_states, is_resumable

_PHOTOS = ("NAME", "--images", "FOLDER")


def train_base(
    config: Config, output: Output, resume: bool, out: Path | None, overwrite: bool
) -> None:
    """Train the base model and write `base.safetensors`."""
    path = out or chain.chain_path(config.workdir, "base")
    try:
        with joined(config.device) as ranks, owned(config, output, path, overwrite, ranks):
            _make_base(config, output, path, resume, report=True, ranks=ranks)
    except RankLost as lost:
        if not is_resumable(state_path(path)):
            lost.hint = "no epoch had ended, so start again"
        raise


def make_base_for_sweep(config: Config, output: Output, path: Path) -> None:
    """Train the base model that a sweep lacks, from where an interrupted training of it stopped."""
    with owned(config, output, path, overwrite=True):
        _make_base(config, output, path, is_resumable(state_path(path)), report=False)


def state_path(path: Path) -> Path:
    """Where the training state of a base model lies, beside its checkpoint."""
    return path.with_suffix(".state.safetensors")


def _make_base(
    config: Config, output: Output, path: Path, resume: bool, report: bool, ranks: Ranks = ALONE
) -> None:
    if config.dataset == "none":
        _fetch_weights(config, output, resume)
        finish_base(config, output, path, adopt_without_data(config), report)
        return
    with ranks.first_here():
        _fetch_weights(config, output, resume)
        dataset = load(config, output, weights.photo_side(config))
    state = state_path(path)
    with stopping(ranks) as should_stop, output.progress() as on_progress:
        result = training.train_base(
            config, dataset, state, resume, on_progress, should_stop, ranks
        )
    known = set(result.checkpoint.meta.classes)
    novel = next((name for name in dataset.class_names if name not in known), None)
    proposed = _PHOTOS
    if novel is not None:
        at_hand = len(dataset.train.of_class(dataset.label(novel)))
        proposed = (novel, "--shots", str(min(5, at_hand)))
    finish_base(config, output, path, result, report, proposed)
    delete_states(state)


def _fetch_weights(config: Config, output: Output, resume: bool) -> None:
    """Leave a library's weights where training finds them."""
    if config.train_base.weights == DEFAULT_WEIGHTS and not resume:
        weights.read_weights(config.train_base, show_progress=not output.quiet)


def finish_base(
    config: Config,
    output: Output,
    path: Path,
    result: TrainResult,
    report: bool,
    proposed: Sequence[str] = _PHOTOS,
) -> None:
    """Write a base model; tell of it where that is what was asked for.

    Args:
        config: it was trained with.
        output: told what was written.
        path: of the checkpoint.
        result: of the training.
        report: whether to show results and what comes next.
        proposed: class and images that could be added next.
    """
    ckpt.save(result.checkpoint, path)
    for note in result.weights.notes() if result.weights else ():
        output.note(note)
    if report:
        output.data(tables.training_json(path, result))
        tables.show_training(output, result)
    then = following(config, path, "imprint", "--class", *proposed)
    output.finish([path], then if report else None)


def imprint(
    config: Config,
    output: Output,
    add: bool,
    replace: bool,
    source: Path | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Add classes to the base model and write `imprinted.safetensors`."""
    if not config.imprint.classes:
        raise UsageError("no class to imprint", "name one with --class")
    with target(config, output, "imprinted", out, overwrite) as path:
        usual = "imprinted" if add else "base"
        _, parent, ancestor = _parent(config, "imprinted", usual, source, out)
        dataset = dataset_of(parent, config, output)
        with output.progress() as on_progress:
            embedder = embedder_of(parent, config, on_progress)
            taught, drawn = teach.imprint_classes(
                parent, dataset, embedder.network, config, replace
            )
            before = evaluation.evaluate(parent, dataset, embedder)
            after = evaluation.evaluate(taught, dataset, embedder)
        ckpt.save(taught.derived(ancestor, config.portable(), "imprint"), path)
    accuracies = {row.name: row.accuracy for row in after.per_class}
    output.data(
        {
            "checkpoint": str(path),
            "method": config.imprint.method,
            "bias": taught.head.bias,
            "expected_forgetting": teach.expected_forgetting(taught),
            "base_accuracy_before": before.base_accuracy,
            "base_accuracy": after.base_accuracy,
            "novel_accuracy": after.novel_accuracy,
            "classes": [
                {"class": d.name, "support": list(d.indices), "accuracy": accuracies[d.name]}
                for d in drawn
            ],
        }
    )
    for d in drawn:
        output.listing(f"{d.name}: learnt from", d.described)
        if d.redrawn:
            output.note(f"{d.name}: {d.redrawn} supports drawn anew, being test images or nearly")
    _show_taught(output, config.imprint.method, taught, before, after)
    output.finish([path], following(config, path, "finetune"))


def imprint_photos(
    config: Config,
    output: Output,
    images: Sequence[Path],
    add: bool,
    replace: bool,
    source: Path | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Add one class from photos, with the checkpoint alone, and write `imprinted.safetensors`."""
    with target(config, output, "imprinted", out, overwrite) as path:
        usual = "imprinted" if add else "base"
        _, parent, ancestor = _parent(config, "imprinted", usual, source, out)
        photos = photos_at(config, output, images, parent.meta.image_size)
        network = parent.network(pick_device(config.device))
        taught, drawn = teach.imprint_photos(parent, network, photos, config, replace)
        calibrated = teach.can_calibrate(taught)
        cost = teach.expected_forgetting(taught) if calibrated else None
        ckpt.save(taught.derived(ancestor, config.portable(), "imprint"), path)
    method = taught.meta.supports[-1].method
    output.data(
        {
            "checkpoint": str(path),
            "method": method,
            "bias": taught.head.bias,
            "expected_forgetting": cost,
            "classes": [{"class": drawn.name, "support": list(drawn.described)}],
        }
    )
    output.listing(f"{drawn.name}: learnt from", drawn.described)
    if drawn.redrawn:
        output.note(f"{drawn.redrawn} photos left out, the same picture as another")
    title = f"{method}, bias {taught.head.bias:+.3f}"
    if cost is None:
        output.line(f"{title}, not calibrated: the model was adopted without data")
    else:
        before = teach.expected_accuracy(taught)
        tables.show_estimate(output, before, before - cost, title)
    output.finish([path], following(config, path, "predict", str(images[0])))


def _parent(
    config: Config, stage: str, usual: str, source: Path | None, out: Path | None
) -> tuple[Path, Checkpoint, str]:
    """What a stage is made from: a file, the checkpoint in it, and the hash to record as parent.

    Args:
        config: names the work folder.
        stage: that is made.
        usual: the stage that it is made from where `source` names no file.
        source: the file to make it from.
        out: where it goes; None for its place in the chain.
    """
    path = source or chain.chain_path(config.workdir, usual)
    parent = ckpt.load(source) if source else chain.load_fresh(config.workdir, usual)
    ancestor = chain.parent_hash(config.workdir, stage, path, parent)
    if out is None:
        chain.ensure_follows(config.workdir, stage, ancestor)
    return path, parent, ancestor


def _show_taught(
    output: Output,
    how: str,
    taught: Checkpoint,
    before: evaluation.Evaluation,
    after: evaluation.Evaluation,
) -> None:
    tables.show_change(output, before, after, f"{how}, bias {taught.head.bias:+.3f}")
    cost = teach.expected_forgetting(taught)
    output.line(f"expected cost, by the hold-out: {cost:.1f} points of base accuracy")


def imprint_from_run(
    config: Config,
    output: Output,
    run_dir: Path | None,
    trial: int | None,
    source: Path | None,
    out: Path | None,
    overwrite: bool,
    others: Sequence[str],
) -> None:
    """Rebuild the model of one trial of a sweep and write `imprinted.safetensors`.

    Raises:
        UsageError: one of the two is missing, or `others` name options that the trial decides.
    """
    if run_dir is None or trial is None:
        raise UsageError("--from-run and --trial go together", "give both")
    hint = "leave it out: the trial says what was learnt, how, and from which base model"
    refuse_beside("--from-run", others, hint)
    with target(config, output, "imprinted", out, overwrite) as path:
        parent_path = source or chain.chain_path(config.workdir, "base")
        base = ckpt.load(parent_path)
        ancestor = file_hash(parent_path)
        if out is None:
            chain.ensure_follows(config.workdir, "imprinted", ancestor)
        dataset = dataset_of(base, config, output)
        rebuilt = replay.rebuild(base, dataset, run_dir, trial)
        with output.progress() as on_progress:
            found = evaluation.evaluate(rebuilt, dataset, embedder_of(base, config, on_progress))
        run = replay.as_imprinting(run_dir, rebuilt)
        ckpt.save(rebuilt.derived(ancestor, run.portable(), "imprint"), path)
    output.data(tables.evaluation_json(path, found))
    tables.show_evaluations(output, [(path.name, found)])
    output.finish([path], _evaluating(config, path))


def finetune(
    config: Config, output: Output, source: Path | None, out: Path | None, overwrite: bool
) -> None:
    """Fine-tune the imprinted model and write `finetuned.safetensors`."""
    with (
        joined(config.device) as ranks,
        target(config, output, "finetuned", out, overwrite, ranks) as path,
    ):
        parent_path, parent, ancestor = _parent(config, "finetuned", "imprinted", source, out)
        with ranks.first_here():
            dataset = dataset_of(parent, config, output)
        evaluation.check_dataset(parent, dataset)
        with output.progress() as on_progress:
            tuned = tuning.finetune(parent, config, dataset, on_progress, ranks)
            before = evaluation.evaluate(parent, dataset, embedder_of(parent, config, on_progress))
            after = evaluation.evaluate(tuned, dataset, embedder_of(tuned, config, on_progress))
        ckpt.save(tuned.derived(ancestor, config.portable(), "finetune"), path)
    output.data(
        {
            "checkpoint": str(path),
            "scope": config.finetune.scope,
            "bias": tuned.head.bias,
            "expected_forgetting": teach.expected_forgetting(tuned),
            "before": tables.evaluation_json(parent_path, before),
            "after": tables.evaluation_json(path, after),
        }
    )
    _show_taught(output, f"fine-tuned {config.finetune.scope}", tuned, before, after)
    output.finish([path], _evaluating(config, path))


def _evaluating(config: Config, path: Path) -> str:
    usual = chain.chain_path(config.workdir, path.stem)
    return following(config, usual, "evaluate", *([] if path == usual else [str(path)]))
