"""The command line, continued: commands that use a model, and those about models and data."""

from __future__ import annotations

import typer

from lowshot_cli import options as o
from lowshot_cli import options_models as m
from lowshot_cli.app import Commands, app, begin


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
    from lowshot_cli.commands import using

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
    from lowshot_cli.commands import using

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
    from lowshot_cli.commands import using

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
    from lowshot_cli.commands import using

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
    from lowshot_cli.commands import exporting

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
    from lowshot_cli.commands import data

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
    from lowshot_cli.commands import data

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
    from lowshot_cli.commands import data

    data.data_duplicates(settings, output, at_least)
