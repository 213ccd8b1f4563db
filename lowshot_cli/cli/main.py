"""The command line: every command with its help, its examples and its own options.

Flags of settings come from `config/schema.py`. torch is imported inside commands, so that help and
commands without tensors answer at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowshot_cli.cli import groups
from lowshot_cli.cli import options as o
from lowshot_cli.cli.app import Call, app, command, open_standard_streams
from lowshot_cli.cli.flags import (
    ALL_SETTINGS,
    PHOTO_SETTINGS,
    CheckpointFile,
    DryRun,
    FalseAlarm,
    ModelFile,
    Out,
    Overwrite,
)
from lowshot_cli.cli.torchrun import silence_other_ranks
from lowshot_cli.config.values import FALSE_ALARM


@command(app, "train-base", section="train_base", settings=(*ALL_SETTINGS, "fit", "background"))
def train_base(
    call: Call,
    resume: o.ResumeTraining = False,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train the base model.

    Example: lowshot train-base --classes 40

    Example: lowshot train-base --dataset glyphs --epochs 6
    """
    from lowshot_cli.cli.commands import dry_run as plan
    from lowshot_cli.cli.commands import train_base as work

    make = plan.train_base if dry_run else work.train_base
    make(call.config, call.output, out, resume=resume, overwrite=overwrite)


@command(app, "imprint", section="imprint", settings=(*ALL_SETTINGS, "fit", "background"))
def imprint(
    call: Call,
    images: o.ClassImages = None,
    add: o.Add = False,
    replace: o.Replace = False,
    from_run: o.FromRun = None,
    trial: o.Trial = None,
    checkpoint: CheckpointFile = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Add classes from a few images of the dataset, or from your own photos.

    Example: lowshot imprint --class apple --shots 5

    Example: lowshot imprint --class "my mug" --images photos/

    Example: lowshot imprint --images support/
    """
    from lowshot_cli.cli.commands import imprint as work

    config, output = call.config, call.output
    how = {"add": add, "replace": replace, "overwrite": overwrite}
    if from_run is not None or trial is not None:
        decided = ["--class", "--images", "--shots", "--method", "--max-forgetting"]
        others = _typed(call, [*decided, "--add", "--replace"])
        work.imprint_from_run(
            config, output, from_run, trial, checkpoint, out, overwrite=overwrite, others=others
        )
    elif images:
        work.imprint_photos(config, output, images, checkpoint, out, **how)
    else:
        work.imprint(config, output, checkpoint, out, **how)


@command(app, "finetune", section="finetune")
def finetune(
    call: Call,
    checkpoint: CheckpointFile = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune imprinted classes on the same few images.

    Example: lowshot finetune

    Example: lowshot finetune --steps 200 --max-forgetting 1
    """
    from lowshot_cli.cli.commands import dry_run as plan
    from lowshot_cli.cli.commands import finetune as work

    make = plan.finetune if dry_run else work.finetune
    make(call.config, call.output, checkpoint, out, overwrite=overwrite)


@command(app, "evaluate")
def evaluate(
    call: Call,
    checkpoints: o.Checkpoints = None,
    labelled: o.LabelledImages = None,
    open_set: o.OpenSet = False,
    report: o.Report = None,
    confidence: o.SetConfidence = None,
    false_alarm: FalseAlarm = None,
) -> None:
    """Evaluate checkpoints on the test images, or on your own photos.

    Example: lowshot evaluate

    Example: lowshot evaluate --open-set --false-alarm 5

    Example: lowshot evaluate --images "my mug"=photos/
    """
    from lowshot_cli.cli.commands import evaluate as work

    if labelled:
        others = _typed(call, ["--open-set", "--false-alarm", "--report"])
        work.evaluate_photos(
            call.config, call.output, checkpoints or [], labelled, others, confidence=confidence
        )
    else:
        rate = _false_alarm(open_set, false_alarm)
        how = {"false_alarm": rate, "confidence": confidence}
        work.evaluate(call.config, call.output, checkpoints or [], report, **how)


def _config_of_run(own: Mapping[str, Any]) -> Path | None:
    """The config of the run folder that a sweep is to resume."""
    resume = own["resume"]
    return resume / "config.yaml" if resume else None


@command(app, "sweep", section="sweep", config_file=_config_of_run)
def sweep(
    call: Call,
    class_order_seeds: o.ClassOrderSeeds = None,
    backbones: o.Backbones = None,
    save_models: o.SaveModels = False,
    resume: o.ResumeSweep = None,
    executor: o.ExecutorName = "local",
    ray_address: o.RayAddress = None,
    gpus_per_worker: o.GpusPerWorker = 0.0,
    threads: o.Threads = None,
    checkpoint: CheckpointFile = None,
    dry_run: DryRun = False,
) -> None:
    """Run many trials and report means with intervals.

    Example: lowshot sweep --trials 20

    Example: lowshot sweep --novel 10 --shots 1,5 --method imprint,whitened

    Example: lowshot sweep --executor ray --class-order-seeds 0,1,2
    """
    from lowshot_cli.cli.commands import dry_run as plan
    from lowshot_cli.cli.commands import sweep as work
    from lowshot_cli.cli.commands import sweep_bases

    config, output = call.config, call.output
    workers = work.Workers(executor, ray_address, gpus_per_worker, threads)
    if class_order_seeds or backbones:
        others = _typed(call, ["--checkpoint", "--resume"])
        how = {"dry_run": dry_run, "save_models": save_models}
        sweep_bases.sweep(
            config, output, workers, class_order_seeds, backbones, others=others, **how
        )
    elif dry_run:
        plan.sweep(config, output, checkpoint, resume, save_models=save_models)
    else:
        work.sweep(config, output, checkpoint, resume, workers, save_models=save_models)


@command(app, "predict", settings=(*PHOTO_SETTINGS, "fit"))
def predict(
    call: Call,
    sources: o.Sources = None,
    top: o.Top = 3,
    unknown: o.Unknown = False,
    false_alarm: FalseAlarm = None,
    confidence: o.Confidence = None,
    csv: o.Csv = False,
    checkpoint: ModelFile = None,
) -> None:
    """Classify images: files, folders, globs, or `-` for a list on standard input.

    Example: lowshot predict photos/

    Example: lowshot predict photos/ --unknown --false-alarm 5 --csv
    """
    from lowshot_cli.cli.commands import predict as work

    rate = _false_alarm(unknown, false_alarm)
    asked = {"false_alarm": rate, "confidence": confidence}
    work.predict(call.config, call.output, sources or [], checkpoint, top=top, as_csv=csv, **asked)


@command(app, "export", settings=PHOTO_SETTINGS)
def export(
    call: Call,
    format: o.ExportFormatName = "all",
    check: o.Check = False,
    images: o.CheckImages = None,
    checkpoint: CheckpointFile = None,
    out: o.ExportFolder = None,
    overwrite: o.ExportOverwrite = False,
) -> None:
    """Write the model as ONNX and as a PyTorch program, with labels and a model card.

    A classifier adopted with `train-base --dataset none` goes back to its library as a state dict.

    Example: lowshot export

    Example: lowshot export --format onnx --check

    Example: lowshot export --format state-dict
    """
    from lowshot_cli.cli.commands import export as work

    how = {"overwrite": overwrite, "check": check}
    work.export(call.config, call.output, format, checkpoint, out, images or [], **how)


@command(app, "serve", settings=("dataset", "data_dir", "seed", "device", "workdir"))
def serve(
    call: Call,
    checkpoint: ModelFile = None,
    port: o.Port = 8000,
    host: o.Host = "127.0.0.1",
    open: o.Open = False,
) -> None:
    """Serve the model: a page to use it and to teach it from photos, and the same for programs.

    Example: lowshot serve --open

    Example: lowshot serve --checkpoint runs/imprinted.safetensors --port 9000
    """
    from lowshot_cli.cli.commands import serve as work

    work.serve(call.config, call.output, checkpoint, host=host, port=port, opens=open)


app.add_typer(groups.classes, name="classes")
app.add_typer(groups.data, name="data")


def _typed(call: Call, options: Iterable[str]) -> list[str]:
    """Those of the options that were typed."""
    return [name for name in options if name in call.typed]


def _false_alarm(asked: bool, given: float | None) -> float | None:
    """Percent of false alarms; giving one also asks to mark unknown images."""
    return FALSE_ALARM if asked and given is None else given


def main() -> None:
    """Entry point of `lowshot` and `python -m lowshot_cli`."""
    open_standard_streams()
    silence_other_ranks()
    app(prog_name="lowshot")
