"""The command line: one thin function per command, from flags to config to engine to output."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from lowshot_cli.cli import flags as m
from lowshot_cli.cli import flags as o
from lowshot_cli.cli import flags as w
from lowshot_cli.cli.app import Commands, app, begin, open_standard_streams
from lowshot_cli.cli.torchrun import silence_other_ranks


@app.command("train-base")
def train_base(
    ctx: typer.Context,
    classes: o.Classes = None,
    split: o.SplitName = None,
    class_order_seed: o.ClassOrderSeed = None,
    holdout: o.Holdout = None,
    backbone: o.Backbone = None,
    width: o.Width = None,
    embedding_size: o.EmbeddingSize = None,
    weights: o.Weights = None,
    input_size: o.InputSize = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
    backbone_lr: o.BackboneRate = None,
    freeze_backbone: o.FreezeBackbone = None,
    precision: o.PrecisionName = None,
    resume: o.ResumeTraining = False,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    dry_run: o.DryRun = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train the base model.

    Example: lowshot train-base --classes 40

    Example: lowshot train-base --dataset glyphs --epochs 6
    """
    settings, output = begin(ctx, "train_base")
    from lowshot_cli.cli.commands import dry_run as planning
    from lowshot_cli.cli.commands import train_base as training

    make = planning.train_base if dry_run else training.train_base
    make(settings, output, resume, out, overwrite)


@app.command("imprint")
def imprint(
    ctx: typer.Context,
    classes: o.ClassNames = None,
    images: o.ClassImages = None,
    shots: o.Shots = None,
    method: o.Method = None,
    max_forgetting: o.MaxForgetting = None,
    add: o.Add = False,
    replace: o.Replace = False,
    from_run: o.FromRun = None,
    trial: o.Trial = None,
    checkpoint: o.CheckpointFile = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Add a class from a few images of the dataset, or from photos of your own.

    Example: lowshot imprint --class apple --shots 5

    Example: lowshot imprint --class "my mug" --images photos/
    """
    settings, output = begin(ctx, "imprint")
    from lowshot_cli.cli.commands import imprint as teaching

    if from_run is not None or trial is not None:
        others = _given(
            {"--class": classes, "--images": images, "--shots": shots, "--method": method}
            | {"--max-forgetting": max_forgetting, "--add": add, "--replace": replace}
        )
        files = checkpoint, out, overwrite
        teaching.imprint_from_run(settings, output, from_run, trial, *files, others)
    elif images:
        teaching.imprint_photos(settings, output, images, add, replace, checkpoint, out, overwrite)
    else:
        teaching.imprint(settings, output, add, replace, checkpoint, out, overwrite)


@app.command("finetune")
def finetune(
    ctx: typer.Context,
    scope: o.ScopeName = None,
    loss: o.LossName = None,
    novel_weight: o.NovelWeight = None,
    freeze_base: o.FreezeBase = None,
    steps: o.Steps = None,
    epochs: o.FinetuneEpochs = None,
    lr: o.FinetuneRate = None,
    batch_size: o.BatchSize = None,
    max_forgetting: o.MaxForgetting = None,
    checkpoint: o.CheckpointFile = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    dry_run: o.DryRun = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Sharpen imprinted classes from the same few images.

    Example: lowshot finetune

    Example: lowshot finetune --steps 200 --max-forgetting 1
    """
    settings, output = begin(ctx, "finetune")
    from lowshot_cli.cli.commands import dry_run as planning
    from lowshot_cli.cli.commands import finetune as tuning

    make = planning.finetune if dry_run else tuning.finetune
    make(settings, output, checkpoint, out, overwrite)


@app.command("evaluate")
def evaluate(
    ctx: typer.Context,
    checkpoints: m.Checkpoints = None,
    labelled: m.LabelledImages = None,
    open_set: m.OpenSet = False,
    report: m.Report = None,
    false_alarm: m.FalseAlarm = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure checkpoints on the test images, or on photos of your own.

    Example: lowshot evaluate

    Example: lowshot evaluate --open-set --false-alarm 5

    Example: lowshot evaluate --images "my mug"=photos/
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import evaluate as measuring

    if labelled:
        others = _given({"--open-set": open_set, "--false-alarm": false_alarm, "--report": report})
        measuring.evaluate_photos(settings, output, checkpoints or [], labelled, others)
    else:
        rate = m.false_alarm_of(open_set, false_alarm)
        measuring.evaluate(settings, output, checkpoints or [], rate, report)


@app.command("sweep")
def sweep(
    ctx: typer.Context,
    trials: w.Trials = None,
    shots: w.ShotList = None,
    novel: w.Novel = None,
    methods: w.Methods = None,
    ways: w.Ways = None,
    max_forgetting: o.MaxForgetting = None,
    drop_duplicates: w.DropDuplicates = None,
    class_order_seeds: w.ClassOrderSeeds = None,
    backbones: w.Backbones = None,
    save_models: w.SaveModels = False,
    resume: w.ResumeSweep = None,
    executor: w.Executor = "local",
    ray_address: w.RayAddress = None,
    gpus_per_worker: w.GpusPerWorker = 0.0,
    threads: w.Threads = None,
    checkpoint: o.CheckpointFile = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    dry_run: o.DryRun = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run many trials and report means with intervals.

    Example: lowshot sweep --trials 20

    Example: lowshot sweep --novel 10 --shots 1,5 --method imprint,whitened

    Example: lowshot sweep --executor ray --class-order-seeds 0,1,2
    """
    if resume is not None and config is None:
        ctx.params["config"] = resume / "config.yaml"
    settings, output = begin(ctx, "sweep")
    from lowshot_cli.cli.commands import dry_run as planning
    from lowshot_cli.cli.commands import sweep as sweeping
    from lowshot_cli.cli.commands import sweep_bases as several
    from lowshot_cli.cli.commands.sweep import Workers

    workers = Workers(executor, ray_address, gpus_per_worker, threads)
    if class_order_seeds or backbones:
        lists = class_order_seeds, backbones
        several.sweep(settings, output, *lists, checkpoint, resume, dry_run, save_models, workers)
    elif dry_run:
        planning.sweep(settings, output, checkpoint, resume, save_models)
    else:
        sweeping.sweep(settings, output, checkpoint, resume, save_models, workers)


def _given(options: Mapping[str, object]) -> list[str]:
    """Names of the options that were typed."""
    return [name for name, value in options.items() if value is not None and value is not False]


def main() -> None:
    """Entry point of `lowshot` and `python -m lowshot_cli`."""
    open_standard_streams()
    silence_other_ranks()
    app(prog_name="lowshot")


@app.command("predict")
def predict(
    ctx: typer.Context,
    sources: m.Sources = None,
    most: m.Top = 3,
    unknown: m.Unknown = False,
    false_alarm: m.FalseAlarm = None,
    csv: m.Csv = False,
    checkpoint: m.ModelFile = None,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what is in images: files, folders, globs, or `-` for a list on standard input.

    Example: lowshot predict photos/

    Example: lowshot predict photos/ --unknown --false-alarm 5 --csv
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import predict as using

    rate = m.false_alarm_of(unknown, false_alarm)
    using.predict(settings, output, sources or [], most, rate, csv, checkpoint)


classes = Commands(no_args_is_help=True, help="List, remove and rename the classes of a model.")


app.add_typer(classes, name="classes")


@classes.command("list")
def classes_list(
    ctx: typer.Context,
    checkpoint: m.ModelFile = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """List the classes that a model knows and how it learnt them.

    Example: lowshot classes list

    Example: lowshot classes list --checkpoint runs/base.safetensors
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import classes as using

    using.list_classes(settings, output, checkpoint)


@classes.command("remove")
def classes_remove(
    ctx: typer.Context,
    name: m.OldName,
    force: m.Force = False,
    checkpoint: m.ModelFile = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make a model forget a class.

    Example: lowshot classes remove "my mug"

    Example: lowshot classes remove apple --force
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import classes as using

    using.remove_class(settings, output, name, force, checkpoint)


@classes.command("rename")
def classes_rename(
    ctx: typer.Context,
    name: m.OldName,
    new_name: m.NewName,
    force: m.Force = False,
    checkpoint: m.ModelFile = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Call a class of a model otherwise.

    Example: lowshot classes rename "my mug" "blue mug"

    Example: lowshot classes rename sweet_pepper "bell pepper" --force
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import classes as using

    using.rename_class(settings, output, name, new_name, force, checkpoint)


@app.command("export")
def export(
    ctx: typer.Context,
    format: m.ExportFormatName = "all",
    check: m.CheckExport = False,
    images: m.CheckImages = None,
    checkpoint: o.CheckpointFile = None,
    out: m.ExportFolder = None,
    overwrite: m.ExportOverwrite = False,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the model as ONNX and as a PyTorch program, with labels and a model card.

    Example: lowshot export

    Example: lowshot export --format onnx --check
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import export as exporting

    exporting.export(settings, output, checkpoint, out, format, overwrite, check, images or [])


data = Commands(no_args_is_help=True, help="Look at datasets and at the cache.")


app.add_typer(data, name="data")


@data.command("classes")
def data_classes(
    ctx: typer.Context,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """List a dataset's classes.

    Example: lowshot data classes

    Example: lowshot data classes --dataset glyphs
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import data

    data.data_classes(settings, output)


@data.command("cache")
def data_cache(
    ctx: typer.Context,
    clear: m.Clear = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show the embedding cache, or empty it.

    Example: lowshot data cache

    Example: lowshot data cache --clear
    """
    _, output = begin(ctx, None)
    from lowshot_cli.cli.commands import data

    data.data_cache(output, clear)


@data.command("duplicates")
def data_duplicates(
    ctx: typer.Context,
    at_least: m.AtLeast = 0.85,
    dataset: o.Dataset = None,
    data_dir: o.DataDir = None,
    image_size: o.ImageSize = None,
    skip_bad: o.SkipBad = None,
    config: o.ConfigFile = None,
    print_config: o.PrintConfig = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Find test images that show what a training image shows.

    Example: lowshot data duplicates --dataset glyphs

    Example: lowshot data duplicates --at-least 0.95 --json
    """
    settings, output = begin(ctx, None)
    from lowshot_cli.cli.commands import data

    data.data_duplicates(settings, output, at_least)
