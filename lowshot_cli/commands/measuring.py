"""Commands that measure: evaluate and sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from lowshot_cli import chain, tables
from lowshot_cli import checkpoint_file as ckpt
from lowshot_cli import evaluate as evaluation
from lowshot_cli import predict as predicting
from lowshot_cli import sweep as sweeping
from lowshot_cli.backbones import pick_device
from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.choices import CHAIN, ImprintMethod
from lowshot_cli.commands.common import (
    dataset_of,
    embedder_of,
    following,
    model_in_use,
    named,
    photos_at,
    refuse_beside,
    stopping,
)
from lowshot_cli.commands.reporting import report_evaluation, report_sweep
from lowshot_cli.commands.teaching import make_base_for_sweep
from lowshot_cli.commands.workers import Workers
from lowshot_cli.config import Config, difference
from lowshot_cli.config_file import load_config
from lowshot_cli.data import Dataset
from lowshot_cli.embed import embed, fused
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.files import ensure_writable
from lowshot_cli.output import Output
from lowshot_cli.teach import repeats_of
from lowshot_cli.trials import Executor


def evaluate(
    config: Config,
    output: Output,
    paths: Sequence[Path],
    false_alarm: float | None = None,
    report: Path | None = None,
) -> None:
    """Measure checkpoints side by side; with a false-alarm rate, also on classes never seen."""
    if report is not None:
        ensure_writable(report.parent)
    if not paths:
        paths = [chain.chain_path(config.workdir, stage) for stage in CHAIN]
        paths = [path for path in paths if path.is_file()]
    if not paths:
        raise CheckpointError(
            f"no checkpoint in {config.workdir}", "`lowshot train-base` makes the first"
        )
    found: list[tuple[Path, evaluation.Evaluation]] = []
    unknown: list[predicting.OpenSet] = []
    for path in paths:
        checkpoint = ckpt.load(path)
        if path.parent == config.workdir and path.stem in CHAIN:
            stale = chain.staleness(config.workdir, path.stem, checkpoint)
            if stale:
                output.note(f"{path} is left out: {stale}")
                continue
        dataset = dataset_of(checkpoint, config, output)
        with output.progress() as on_progress:
            embedder = embedder_of(checkpoint, config, on_progress)
            found.append((path, evaluation.evaluate(checkpoint, dataset, embedder)))
            last = (checkpoint, dataset, embedder)
            if false_alarm is not None:
                unknown.append(predicting.open_set(checkpoint, dataset, embedder, false_alarm))
    if not found:
        raise CheckpointError("every checkpoint named is stale", "make them again, base first")
    answers = [tables.evaluation_json(path, one) for path, one in found]
    for answer, measured in zip(answers, unknown, strict=False):
        answer["open_set"] = asdict(measured)
    output.data(answers)
    tables.show_evaluations(output, [(path.stem, one) for path, one in found])
    for (path, _), measured in zip(found, unknown, strict=False):
        tables.show_open_set(output, path.stem, measured)
    tables.show_details(output, found[-1][1], found[-1][0].stem)
    if report is not None:
        shown = [(path.stem, one) for path, one in found]
        report_evaluation(report, shown, *last, config, output)
        output.finish([report])


def evaluate_photos(
    config: Config,
    output: Output,
    paths: Sequence[Path],
    labelled: Sequence[str],
    others: Sequence[str],
) -> None:
    """Measure models on photos outside any dataset, given as NAME=PATH.

    Raises:
        UsageError: a photo without a class, or `others` name options that need test images.
    """
    refuse_beside("--images", others, "these need the dataset's images")
    sources: dict[str, list[Path]] = {}
    for text in labelled:
        name, equals, place = text.rpartition("=")
        if not (equals and name and place):
            raise UsageError(f"--images {text}: no class is named", 'write it as "my mug"=photos/')
        sources.setdefault(name, []).append(Path(place))
    answers, shown = [], []
    for named_path in paths or (None,):
        path, checkpoint = model_in_use(config, named_path)
        network = fused(checkpoint.network(pick_device(config.device)))
        embedded, repeated = {}, 0
        for name, places in sources.items():
            checkpoint.position(name)
            photos = photos_at(config, output, places, checkpoint.meta.image_size, deep=True)
            repeated += repeats_of(checkpoint, name, photos.pixels)
            embedded[name] = embed(network, photos.pixels)
        if repeated:
            output.note(f"{repeated} of the photos are among those the class was learnt from")
        found = evaluation.tally(checkpoint, embedded.items(), beside_base=False)
        answers.append({**tables.evaluation_json(path, found), "repeated": repeated})
        shown.append((path.stem, found))
    output.data(answers)
    tables.show_evaluations(output, shown, title="accuracy on the photos named")
    tables.show_details(output, shown[-1][1], shown[-1][0])


def sweep(
    config: Config,
    output: Output,
    source: Path | None,
    resume: Path | None,
    save_models: bool,
    workers: Workers,
) -> None:
    """Run a sweep and write its run folder; train the base model first if the config says how."""
    if resume is not None and (save_models or workers.threads):
        raise UsageError(
            "--save-models and --threads are decided when a sweep begins",
            "leave them out, the run knows them",
        )
    if save_models:
        sweeping.ensure_saveable(config.sweep)
    base_path = source or chain.chain_path(config.workdir, "base")
    if trains_first(config, base_path):
        output.note(f"no base model at {base_path}, training it first")
        make_base_for_sweep(config, output, base_path)
    base = load_base(base_path, config)
    config = named(config, base)
    if resume is not None:
        _check_resumed(resume, config)
    dataset = dataset_of(base, config, output)
    with workers.open(output) as executor:
        threads = workers.threads_each
        done = run_sweep(
            config, output, base, dataset, resume, save_models, executor, threads, source
        )
    output.data(done.summary)
    show = tables.show_sessions if "sessions" in done.summary else tables.show_sweep
    show(output, done.summary)
    if left_out := done.summary.get("left_out"):
        output.note(f"not added, too few for another group: {', '.join(left_out)}")
    if config.sweep.drop_duplicates:
        output.line(
            f"without {done.summary['dropped_duplicates']:,} test images that resemble a "
            "training image"
        )
    then = None
    if save_models and config.sweep.methods[0] in get_args(ImprintMethod):
        typed = ("--from-run", done.summary["run_dir"], "--trial", "0")
        then = following(config, base_path, "imprint", *typed)
    output.finish(done.written, then)


@dataclass(frozen=True)
class Done:
    """A finished sweep: its summary as in the `--json` contract, and the files to name."""

    summary: dict[str, Any]
    written: list[Path]


def run_sweep(
    config: Config,
    output: Output,
    base: Checkpoint,
    dataset: Dataset,
    resume: Path | None,
    save_models: bool,
    executor: Executor,
    threads: int | None,
    source: Path | None = None,
) -> Done:
    """Run a sweep of one base model, which `source` names if anything, into a run folder."""
    ensure_writable(config.workdir)
    with (
        sweeping.run_folder(config.workdir, resume) as run_dir,
        output.logged(run_dir),
        stopping() as should_stop,
        output.progress() as on_progress,
    ):
        result = sweeping.sweep(
            base,
            dataset,
            config,
            embedder_of(base, config, on_progress),
            run_dir,
            resume is not None,
            save_models,
            on_progress,
            should_stop,
            executor,
            threads,
            ["--checkpoint", str(source)] if source else [],
        )
        drawn = report_sweep(result, base, config, output, run_dir)
    written = [run_dir / sweeping.ROWS, run_dir / sweeping.SUMMARY, *drawn]
    return Done(result.summary, written)


def trains_first(config: Config, path: Path) -> bool:
    """Whether a sweep makes its base model: it is not there, and the config says how."""
    return not path.exists() and "train_base" in config.model_fields_set


def load_base(path: Path, config: Config) -> Checkpoint:
    """The base model that a sweep starts from.

    Raises:
        UsageError: it has novel classes.
        CheckpointError: it was trained otherwise than the config says.
    """
    base = ckpt.load(path)
    if base.novel_classes:
        raise UsageError(f"{path} has novel classes", "a sweep starts from a base model")
    _check_split(base, path, config)
    return base


def changes_since(run_dir: Path, config: Config) -> list[str]:
    """In what a config differs from that of a run folder, a line each."""
    return difference(load_config(run_dir / sweeping.CONFIG).portable(), config.portable())


def _check_split(base: Checkpoint, path: Path, config: Config) -> None:
    """A config that says how the base model is trained must not meet one trained otherwise."""
    if "train_base" not in config.model_fields_set:
        return
    wanted = config.portable()["train_base"]
    changed = difference(base.meta.config["train_base"], wanted)
    if changed:
        raise CheckpointError(
            f"{path} was trained otherwise than the config says: {'; '.join(changed)}",
            "name another --workdir, or leave train_base out of the config",
        )


def _check_resumed(run_dir: Path, config: Config) -> None:
    changed = changes_since(run_dir, config)
    if changed:
        raise UsageError(
            f"{run_dir} was run with another config: {'; '.join(changed)}",
            "resume with no other flags, or start a new sweep without --resume",
        )
