"""The Typer app: how every command begins, and how known problems end it."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from lowshot_cli.cli import flags as o
from lowshot_cli.cli import torchrun as launch
from lowshot_cli.errors import ExitCode, Interrupted, LowshotError

if TYPE_CHECKING:
    from lowshot_cli.cli.console import Output
    from lowshot_cli.config.schema import Config

_TYPED = "lowshot.typed"


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """Shows options in panels, and names the nearest one to a mistyped one."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                panels.setdefault(find_panel(parameter), []).append(record)
        # Typer draws panels with Rich alone, which would take brackets in the text for markup.
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Those that look like it, the nearest first; shown, they would stand in no such order.
            if similar := getattr(error, "possibilities", None):
                del similar[1:]
            raise


def find_panel(parameter: Any) -> str:
    """The heading under which the help shows a parameter."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    return parameter.rich_help_panel or (o.COMMON if parameter.name == "help" else "Options")


class Commands(typer.Typer):
    """A Typer app whose commands show their options in panels."""

    def command(self, *names: Any, **settings: Any) -> Callable[[_Function], _Function]:
        """As Typer's."""
        return super().command(*names, cls=_Command, **settings)


class _Group(TyperGroup):
    """Turns known problems into one line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer's, which knows nothing of the commands of groups."""
        name = args[0]
        for group, commands in self.commands.items():
            below = getattr(commands, "commands", {})
            if name in below and name not in self.commands and not ctx.resilient_parsing:
                ctx.fail(f"No such command {name!r}. Did you mean '{group} {name}'?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except Interrupted as error:
            error.hint = error.hint or _going_on(ctx.meta[_TYPED])
            _fail(error)
        except LowshotError as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail(Interrupted("interrupted, what was there before is whole"))
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


def _going_on(typed: Sequence[str]) -> str:
    """Which command goes on where this one was stopped; a sweep says so itself."""
    resume = ["--resume"] if typed[0] == "train-base" and "--resume" not in typed else []
    how = "starts anew" if typed[0] == "finetune" else "goes on"
    return f"`{shlex.join([*launch.invocation(), *typed, *resume])}` {how}"


def _fail(error: LowshotError) -> NoReturn:
    from lowshot_cli.cli.console import show_error

    show_error(error)
    raise typer.Exit(error.exit_code) from None


app = Commands(
    name="lowshot",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Teach a trained image classifier a new class from a handful of images.",
)


@app.callback(invoke_without_command=True)
def _root(version: o.Version = False) -> None:
    if version:
        from lowshot_cli.version import __version__

        typer.echo(f"lowshot {__version__}")
        raise typer.Exit


def begin(ctx: typer.Context, section: str | None) -> tuple[Config, Output]:
    """Resolve the config from the flags whose names are config fields; open the output."""
    import logging

    from lowshot_cli.cli.console import Output
    from lowshot_cli.config.yaml_file import load_config

    # It tells of homes and caches that it can do without.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # An option that may be repeated and was not typed is an empty tuple.
    flags = {name: value for name, value in ctx.params.items() if value != ()}
    control = {name: flags.pop(name, None) for name in ("config", "print_config", "json", "quiet")}
    for name in _NOT_CONFIG:
        flags.pop(name, None)
    config = load_config(control["config"], section, flags)
    if control["print_config"]:
        typer.echo(config.to_yaml(), nl=False)
        raise typer.Exit
    launch.ensure_trains(section, config, bool(ctx.params.get("dry_run")))
    typed = shlex.join([*launch.invocation(), *ctx.meta[_TYPED]])
    is_quiet = bool(control["quiet"]) or launch.launch_environment().number > 0
    return config, Output(bool(control["json"]), is_quiet, typed)


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
    "command",
    "csv",
    "false_alarm",
    "force",
    "labelled",
    "most",
    "name",
    "new_name",
    "open_set",
    "sources",
    "unknown",
    "at_least",
    "report",
    "format",
    "check",
    "dry_run",
    "class_order_seeds",
    "backbones",
    "executor",
    "ray_address",
    "gpus_per_worker",
    "threads",
)


def open_standard_streams() -> None:
    """Make stdin, stdout and stderr usable however the program was started.

    A closed one is opened to nowhere, so that no file takes its number and gets its text. What an
    encoding lacks is written out, so that text never ends a command.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest free number is the one that is closed.
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
