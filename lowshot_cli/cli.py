"""The command line: one thin function per command, from flags to config to engine to output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from lowshot_cli import options as o
from lowshot_cli.errors import ExitCode, LowshotError

if TYPE_CHECKING:
    from lowshot_cli.config import Config
    from lowshot_cli.output import Output


class _Commands(TyperGroup):
    """Turns known problems into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LowshotError as error:
            _fail(error)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has gone, as `head` does; stdout must not fail again when Python closes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.DONE) from None
        except OSError as error:
            place = error.filename or "a file"
            problem = LowshotError(
                f"{place}: {error.strerror or error}", "check the space and your rights there"
            )
            _fail(problem)


def _fail(error: LowshotError) -> NoReturn:
    from lowshot_cli.output import show_error

    show_error(error)
    raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    name="lowshot",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Teach a trained image classifier a new class from a handful of images.",
)


@app.callback(invoke_without_command=True)
def _root(version: o.Version = False) -> None:
    if version:
        from lowshot_cli import __version__

        typer.echo(f"lowshot {__version__}")
        raise typer.Exit


def _begin(ctx: typer.Context, section: str | None) -> tuple[Config, Output]:
    """Resolve the config from the flags whose names are config fields; open the output."""
    from lowshot_cli.config import load_config
    from lowshot_cli.output import Output

    # An option that may be repeated and was not typed is an empty tuple.
    flags = {name: value for name, value in ctx.params.items() if value != ()}
    control = {name: flags.pop(name, None) for name in ("config", "print_config", "json", "quiet")}
    for name in _NOT_CONFIG:
        flags.pop(name, None)
    config = load_config(control["config"], section, flags)
    if control["print_config"]:
        typer.echo(config.to_yaml(), nl=False)
        raise typer.Exit
    return config, Output(as_json=bool(control["json"]), quiet=bool(control["quiet"]))


_NOT_CONFIG = (
    "checkpoint",
    "checkpoints",
    "out",
    "overwrite",
    "resume",
    "add",
    "replace",
    "from_run",
    "images",
    "trial",
    "save_models",
    "clear",
)


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
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    lr: o.LearningRate = None,
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
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train the base model.

    Example: lowshot train-base --classes 40
    """
    settings, output = _begin(ctx, "train_base")
    from lowshot_cli.commands import teaching

    teaching.train_base(settings, output, resume, out, overwrite)


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
    settings, output = _begin(ctx, "imprint")
    from lowshot_cli.commands import teaching

    if from_run is not None or trial is not None:
        teaching.imprint_from_run(settings, output, from_run, trial, checkpoint, out, overwrite)
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
    seed: o.Seed = None,
    device: o.DeviceName = None,
    workdir: o.Workdir = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Sharpen imprinted classes from the same few images.

    Example: lowshot finetune --scope head
    """
    settings, output = _begin(ctx, "finetune")
    from lowshot_cli.commands import teaching

    teaching.finetune(settings, output, checkpoint, out, overwrite)


@app.command("evaluate")
def evaluate(
    ctx: typer.Context,
    checkpoints: o.Checkpoints = None,
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
    """Measure checkpoints on the test images.

    Example: lowshot evaluate
    """
    settings, output = _begin(ctx, None)
    from lowshot_cli.commands import measuring

    measuring.evaluate(settings, output, checkpoints or [])


@app.command("sweep")
def sweep(
    ctx: typer.Context,
    trials: o.Trials = None,
    shots: o.ShotList = None,
    novel: o.Novel = None,
    methods: o.Methods = None,
    ways: o.Ways = None,
    max_forgetting: o.MaxForgetting = None,
    save_models: o.SaveModels = False,
    resume: o.ResumeSweep = None,
    checkpoint: o.CheckpointFile = None,
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
    """Run many trials and report means with intervals.

    Example: lowshot sweep --trials 20
    """
    if resume is not None and config is None:
        ctx.params["config"] = resume / "config.yaml"
    settings, output = _begin(ctx, "sweep")
    from lowshot_cli.commands import measuring

    measuring.sweep(settings, output, checkpoint, resume, save_models)


data = typer.Typer(no_args_is_help=True, help="Look at datasets and at the cache.")
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

    Example: lowshot data classes --dataset glyphs
    """
    settings, output = _begin(ctx, None)
    from lowshot_cli.commands import data

    data.data_classes(settings, output)


@data.command("cache")
def data_cache(
    ctx: typer.Context,
    clear: o.Clear = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show the embedding cache, or empty it.

    Example: lowshot data cache --clear
    """
    _, output = _begin(ctx, None)
    from lowshot_cli.commands import data

    data.data_cache(output, clear)


def main() -> None:
    """Entry point of `lowshot` and `python -m lowshot_cli`."""
    app(prog_name="lowshot")
