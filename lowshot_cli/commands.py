"""What each command does: engine calls in order, and the tables people see."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowshot_cli import chain, tables, teach
from lowshot_cli import checkpoint as ckpt
from lowshot_cli import evaluate as evaluation
from lowshot_cli import sweep as sweeping
from lowshot_cli import train as training
from lowshot_cli.backbones import pick_device
from lowshot_cli.checkpoint import Checkpoint
from lowshot_cli.config import Config, difference, load_config
from lowshot_cli.data import Dataset, image_cache, load_dataset
from lowshot_cli.embed import Embedder, user_cache
from lowshot_cli.errors import CheckpointError, UsageError
from lowshot_cli.files import ensure_free, ensure_writable, file_hash
from lowshot_cli.output import Output
from lowshot_cli.report import plot_accuracy


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the work to stop at the next safe point, the second ends it at once."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def train_base(
    config: Config, output: Output, resume: bool, out: Path | None, overwrite: bool
) -> None:
    """Train the base model and write `base.safetensors`."""
    path = out or chain.chain_path(config.workdir, "base")
    _train_base(config, output, path, resume, overwrite, report=True)


def _train_base(
    config: Config, output: Output, path: Path, resume: bool, overwrite: bool, report: bool
) -> None:
    ensure_writable(path.parent)
    ensure_free(path, overwrite)
    dataset = load_dataset(config)
    state = path.with_suffix(".state.safetensors")
    with stopping() as should_stop, output.progress() as on_progress:
        result = training.train_base(config, dataset, state, resume, on_progress, should_stop)
    ckpt.save(result.checkpoint, path)
    state.unlink(missing_ok=True)
    if report:
        output.data(tables.training_json(path, result))
        tables.show_training(output, result)
    novel = [name for name in dataset.class_names if name not in result.checkpoint.meta.classes]
    then = f"lowshot imprint --class {_quoted(novel[0])} --shots 5" if novel and report else None
    output.finish([path], then)


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def _embedder(
    checkpoint: Checkpoint, config: Config, on_progress: Callable[[Any], None]
) -> Embedder:
    network = checkpoint.network(pick_device(config.device))
    return Embedder(network, cache=user_cache(), on_progress=on_progress)


def _named(config: Config, checkpoint: Checkpoint) -> Config:
    """The config with the checkpoint's dataset, which need not be named again."""
    if "dataset" in config.model_fields_set:
        return config
    return config.model_copy(update={"dataset": checkpoint.meta.dataset})


def _dataset_of(checkpoint: Checkpoint, config: Config) -> Dataset:
    named, wanted = _named(config, checkpoint), checkpoint.meta.dataset
    if named.dataset != wanted:
        raise CheckpointError(
            f"the checkpoint was trained on {wanted}, not on {named.dataset}",
            f"say --dataset {wanted}, or name another --workdir or --checkpoint",
        )
    return load_dataset(named, checkpoint.meta.image_size)


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
    path = _target(config, "imprinted", out, overwrite)
    stage = "imprinted" if add else "base"
    parent_path = source or chain.chain_path(config.workdir, stage)
    parent = ckpt.load(source) if source else chain.load_fresh(config.workdir, stage)
    dataset = _dataset_of(parent, config)
    with output.progress() as on_progress:
        embedder = _embedder(parent, config, on_progress)
        taught, drawn = teach.imprint_classes(parent, dataset, embedder.network, config, replace)
        before = evaluation.evaluate(parent, dataset, embedder)
        after = evaluation.evaluate(taught, dataset, embedder)
    ancestor = parent.meta.parent if add and not source else file_hash(parent_path)
    ckpt.save(taught.derived(ancestor or "", config.portable(), "imprint"), path)
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
        output.line(f"{d.name}: learnt from {', '.join(d.described)}")
    _show_taught(output, config.imprint.method, taught, before, after)
    output.finish([path], "lowshot finetune")


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


def _target(config: Config, stage: str, out: Path | None, overwrite: bool) -> Path:
    """Where a derived checkpoint goes; the chain's own files cost nothing and are replaced."""
    path = out or chain.chain_path(config.workdir, stage)
    ensure_writable(path.parent)
    ensure_free(path, overwrite or out is None)
    return path


def imprint_from_run(
    config: Config,
    output: Output,
    run_dir: Path | None,
    trial: int | None,
    source: Path | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Rebuild the model of one trial of a sweep and write `imprinted.safetensors`."""
    if run_dir is None or trial is None:
        raise UsageError("--from-run and --trial go together", "give both")
    path = _target(config, "imprinted", out, overwrite)
    parent_path = source or chain.chain_path(config.workdir, "base")
    base = ckpt.load(parent_path)
    dataset = _dataset_of(base, config)
    rebuilt = sweeping.rebuild(base, dataset, run_dir, trial)
    with output.progress() as on_progress:
        found = evaluation.evaluate(rebuilt, dataset, _embedder(base, config, on_progress))
    ckpt.save(rebuilt.derived(file_hash(parent_path), config.portable(), "imprint"), path)
    output.data(tables.evaluation_json(path, found))
    tables.show_evaluations(output, [(path.name, found)])
    output.finish([path], "lowshot evaluate")


def finetune(
    config: Config, output: Output, source: Path | None, out: Path | None, overwrite: bool
) -> None:
    """Fine-tune the imprinted model and write `finetuned.safetensors`."""
    path = _target(config, "finetuned", out, overwrite)
    parent_path = source or chain.chain_path(config.workdir, "imprinted")
    parent = ckpt.load(source) if source else chain.load_fresh(config.workdir, "imprinted")
    dataset = _dataset_of(parent, config)
    evaluation.check_dataset(parent, dataset)
    with output.progress() as on_progress:
        tuned = teach.finetune(parent, config, dataset, on_progress)
        before = evaluation.evaluate(parent, dataset, _embedder(parent, config, on_progress))
        after = evaluation.evaluate(tuned, dataset, _embedder(tuned, config, on_progress))
    ckpt.save(tuned.derived(file_hash(parent_path), config.portable(), "finetune"), path)
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
    output.finish([path], "lowshot evaluate")


def evaluate(config: Config, output: Output, paths: Sequence[Path]) -> None:
    """Measure checkpoints side by side."""
    if not paths:
        paths = [chain.chain_path(config.workdir, stage) for stage in chain.CHAIN]
        paths = [path for path in paths if path.is_file()]
    if not paths:
        raise CheckpointError(
            f"no checkpoint in {config.workdir}", "`lowshot train-base` makes the first"
        )
    found: list[tuple[Path, evaluation.Evaluation]] = []
    for path in paths:
        checkpoint = ckpt.load(path)
        if path.parent == config.workdir and path.stem in chain.CHAIN:
            stale = chain.staleness(config.workdir, path.stem, checkpoint)
            if stale:
                output.note(f"{path} is left out: {stale}")
                continue
        dataset = _dataset_of(checkpoint, config)
        with output.progress() as on_progress:
            embedder = _embedder(checkpoint, config, on_progress)
            found.append((path, evaluation.evaluate(checkpoint, dataset, embedder)))
    if not found:
        raise CheckpointError("every checkpoint named is stale", "make them again, base first")
    output.data([tables.evaluation_json(path, one) for path, one in found])
    tables.show_evaluations(output, [(path.stem, one) for path, one in found])
    tables.show_details(output, found[-1][1], found[-1][0].stem)


def sweep(
    config: Config,
    output: Output,
    source: Path | None,
    resume: Path | None,
    save_models: bool,
) -> None:
    """Run a sweep and write its run folder; train the base model first if the config says how."""
    if resume is not None and save_models:
        raise UsageError(
            "--save-models is decided when a sweep begins", "leave it out, the run knows it"
        )
    base_path = source or chain.chain_path(config.workdir, "base")
    if not base_path.exists() and "train_base" in config.model_fields_set:
        output.note(f"no base model at {base_path}, training it first")
        _train_base(config, output, base_path, resume=False, overwrite=False, report=False)
    base = ckpt.load(base_path)
    if base.novel_classes:
        raise UsageError(f"{base_path} has novel classes", "a sweep starts from a base model")
    _check_split(base, base_path, config)
    config = _named(config, base)
    if resume is not None:
        _check_resumed(resume, config)
    dataset = _dataset_of(base, config)
    ensure_writable(config.workdir)
    run_dir = resume or sweeping.free_run_dir(config.workdir)
    with stopping() as should_stop, output.progress() as on_progress:
        result = sweeping.sweep(
            base,
            dataset,
            config,
            _embedder(base, config, on_progress),
            run_dir,
            resume is not None,
            save_models,
            on_progress,
            should_stop,
        )
    plot = run_dir / "accuracy.png"
    plot_accuracy(result.summary, plot)
    output.data(result.summary)
    show = tables.show_sessions if "sessions" in result.summary else tables.show_sweep
    show(output, result.summary)
    output.finish([run_dir / sweeping.ROWS, run_dir / sweeping.SUMMARY, plot])


def _check_split(base: Checkpoint, path: Path, config: Config) -> None:
    """A config that says how the base model is trained must not meet one trained otherwise."""
    if "train_base" not in config.model_fields_set:
        return
    wanted = config.train_base.model_dump(mode="json")
    changed = difference(base.meta.config["train_base"], wanted)
    if changed:
        raise CheckpointError(
            f"{path} was trained otherwise than the config says: {'; '.join(changed)}",
            "name another --workdir, or leave train_base out of the config",
        )


def _check_resumed(run_dir: Path, config: Config) -> None:
    before = load_config(run_dir / sweeping.CONFIG).portable()
    changed = difference(before, config.portable())
    if changed:
        raise UsageError(
            f"{run_dir} was run with another config: {'; '.join(changed)}",
            "resume with no other flags, or start a new sweep without --resume",
        )


def data_classes(config: Config, output: Output) -> None:
    """List the classes of a dataset with their numbers of images."""
    dataset = load_dataset(config)
    rows = [
        (name, len(dataset.train.of_class(label)), len(dataset.test.of_class(label)))
        for label, name in enumerate(dataset.class_names)
    ]
    output.data([{"class": name, "train": train, "test": test} for name, train, test in rows])
    output.table(["class", "training images", "test images"], rows, title=dataset.name)


def data_cache(output: Output, clear: bool) -> None:
    """Show what the caches hold, or empty them."""
    caches = {"embeddings": user_cache(), "decoded images": image_cache()}
    if clear:
        for cache in caches.values():
            cache.clear()
    about = []
    for name, cache in caches.items():
        entries = cache.entries()
        size = sum(entry.size for entry in entries)
        about.append((name, len(entries), size, cache.limit, str(cache.folder)))
    keys = ("cache", "entries", "bytes", "limit_bytes", "folder")
    output.data([dict(zip(keys, row, strict=True)) for row in about])
    rows = [(n, f"{count:,}", _mib(size), _mib(limit)) for n, count, size, limit, _ in about]
    output.table(["cache", "entries", "MiB", "limit MiB"], rows, title="kept for later runs")
    for name, *_, folder in about:
        output.line(f"{name}: {folder}")


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f}"
