"""The Typer app: how every command starts, and how it reports known problems."""

from __future__ import annotations

import inspect
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from lowshot_cli.cli import flags as f
from lowshot_cli.cli import torchrun
from lowshot_cli.cli.completion import is_from_environment
from lowshot_cli.config.presentation import COMMON
from lowshot_cli.config.schema import Config
from lowshot_cli.config.values import DEFAULT_DATASET
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.errors import ExitCode, Interrupted, LowshotError, one_line

if TYPE_CHECKING:
    from lowshot_cli.cli.console import Output

_TYPED = "lowshot.typed"
_JARGON = {
    "Value error, ": "",
    "Input should be a valid integer.*": "it should be a whole number",
    "Input should be a valid number.*": "it should be a number",
    "Input should be": "it should be",
}
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(TyperCommand):
    """Shows options in panels, and suggests the nearest one for a mistyped one."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                panels.setdefault(find_panel(parameter), []).append(record)
        # Typer draws panels only with Rich, which would read brackets in the text as markup.
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # The nearest comes first here, but Click would sort them before it shows them.
            if similar := getattr(error, "possibilities", None):
                del similar[1:]
            if text := getattr(error, "message", None):
                error.message = _plain_words(text)  # type: ignore[attr-defined]
            raise


def _plain_words(text: str) -> str:
    """A message of Typer's without the words of its libraries."""
    for jargon, plain in _JARGON.items():
        text = re.sub(jargon, plain, text)
    return text


def find_panel(parameter: Any) -> str:
    """The heading under which the help shows a parameter."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    return parameter.rich_help_panel or (COMMON if parameter.name == "help" else "Options")


class Commands(typer.Typer):
    """A Typer app whose commands show their options in panels."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": _Listing, **settings})

    def command(self, *names: Any, **settings: Any) -> Callable[[_Function], _Function]:
        """As in Typer."""
        return super().command(*names, cls=_Command, **settings)


class _Listing(TyperGroup):
    """Lists commands with their whole summaries, which Typer would cut off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One row per command: its name and the first paragraph of its help."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(n, " ".join((c.help or "").split("\n\n")[0].split())) for n, c in found if c]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _Group(_Listing):
    """Turns known problems into a short message and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in Typer, but also suggest the commands of groups."""
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
        except LowshotError as error:
            if isinstance(error, Interrupted):
                error.hint = error.hint or _how_to_continue(ctx.meta[_TYPED])
            flags = _flags_by_name(self, ctx.meta[_TYPED][0])
            error.message = f.reword(error.message, flags)
            error.hint = error.hint and f.reword(error.hint, flags)
            _fail(error)
        except KeyboardInterrupt:
            _fail(Interrupted("interrupted; existing files are intact"))
        except BrokenPipeError:
            # The reader is gone, such as `head`; stdout must not fail again when Python closes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.DONE) from None
        except OSError as error:
            place = error.filename or "a file"
            problem = LowshotError(
                f"{place}: {one_line(error)}", "check the free space and your permissions there"
            )
            _fail(problem)


def _flags_by_name(group: Any, typed: str) -> dict[str, str]:
    """The flag of each option by its Python name; the typed command takes precedence."""
    # Later entries override earlier ones.
    order = sorted(group.commands.items(), key=lambda entry: entry[0] == typed)
    commands = [
        one for _, found in order for one in getattr(found, "commands", {"": found}).values()
    ]
    options = (p for one in commands for p in one.params if p.param_type_name == "option")
    return {option.name: option.opts[0] for option in options}


def _how_to_continue(typed: Sequence[str]) -> str:
    """The command that continues an interrupted one; a sweep names its own."""
    resume = ["--resume"] if typed[0] == "train-base" and "--resume" not in typed else []
    how = "starts again" if typed[0] == "finetune" else "continues"
    return f"`{shlex.join([*torchrun.invocation(), *typed, *resume])}` {how}"


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
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from lowshot_cli.version import __version__

        typer.echo(f"lowshot {__version__}")
        raise typer.Exit


@dataclass(frozen=True)
class Call:
    """A command that was called.

    Attributes:
        config: resolved from defaults, YAML and flags.
        output: prints results and notes.
        typed: names of the options that were typed, such as `--shots`.
    """

    config: Config
    output: Output
    typed: frozenset[str]


def command(
    group: Commands,
    name: str,
    *,
    section: str | None = None,
    settings: Sequence[str] = f.ALL_SETTINGS,
    config_file: Callable[[Mapping[str, Any]], Path | None] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command, with a flag for every setting that it reads.

    The function takes a `Call`, then its own options by keyword.

    Args:
        group: the app or subcommand that it belongs to.
        name: as it is typed.
        section: of the config; its settings get flags.
        settings: common settings that get flags; without any the command reads no config.
        config_file: finds a YAML file from the command's own options if `--config` is not given.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = _own_parameters(function)
        of_section = list(f.setting_flags(section, ()))
        common = list(f.setting_flags(None, settings))
        names = {flag.name for flag in (*of_section, *common)}
        shared = _shared_parameters(with_config=bool(settings))

        def run(ctx: typer.Context, **values: Any) -> None:
            mine = {parameter.name: values[parameter.name] for parameter in own}
            path = values.get("config")
            if path is None and config_file:
                path = config_file(mine)
            # A repeatable option that was not typed is an empty list.
            given = {n: v for n, v in values.items() if n in names and v not in ((), [])}
            function(_begin(ctx, section, path, given), **mine)

        context = inspect.Parameter("ctx", _KEYWORD, annotation=typer.Context)
        parameters = [context, *of_section, *own, *common, *shared]
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        group.command(name)(run)
        return function

    return decorate


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _own_parameters(function: Callable[..., None]) -> list[inspect.Parameter]:
    """The options that a command has besides its settings; its first parameter is the `Call`."""
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    return [each.replace(kind=_KEYWORD) for each in own]


def _shared_parameters(*, with_config: bool) -> list[inspect.Parameter]:
    kinds = {"json": f.Json, "quiet": f.Quiet}
    found = [inspect.Parameter(n, _KEYWORD, default=False, annotation=k) for n, k in kinds.items()]
    if not with_config:
        return found
    config = inspect.Parameter("config", _KEYWORD, default=None, annotation=f.ConfigFile)
    show = inspect.Parameter("print_config", _KEYWORD, default=False, annotation=f.PrintConfig)
    return [config, show, *found]


def _begin(
    ctx: typer.Context, section: str | None, path: Path | None, given: Mapping[str, Any]
) -> Call:
    """Resolve the config and open the output, or print the config and stop."""
    import logging

    from lowshot_cli.cli.console import Output, prints_unicode

    # It warns about home and cache folders that it does not need.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    usual = {n: v for n, v in given.items() if is_from_environment(ctx, n)}
    typed = {n: v for n, v in given.items() if n not in usual}
    config = load_config(path, section, typed, environment=usual)
    if section == "train_base":
        config = config.on_dataset(DEFAULT_DATASET)
    if ctx.params.get("print_config"):
        typer.echo(config.to_yaml(ascii_only=not prints_unicode()), nl=False)
        raise typer.Exit
    if config.device == "mps":
        # PyTorch reads it when it is imported: what an Apple GPU lacks runs on the CPU.
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    torchrun.ensure_trains(section, config, dry_run=bool(ctx.params.get("dry_run")))
    line = shlex.join([*torchrun.invocation(), *ctx.meta[_TYPED]])
    is_quiet = bool(ctx.params["quiet"]) or torchrun.launch_environment().number > 0
    output = Output(as_json=bool(ctx.params["json"]), quiet=is_quiet, command=line)
    return Call(config, output, _typed_options(ctx))


def _typed_options(ctx: typer.Context) -> frozenset[str]:
    """Names of the options that were typed."""
    parameters: list[Any] = list(ctx.command.params)
    sources = {p.opts[0]: ctx.get_parameter_source(p.name) for p in parameters}
    return frozenset(n for n, source in sources.items() if source and source.name == "COMMANDLINE")


def open_standard_streams() -> None:
    """Make stdin, stdout and stderr usable however the program was started.

    A closed stream is opened to the null device, so that no file takes its number and its text.
    Characters that an encoding lacks are escaped, so that printing never fails.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest free number is that of the closed stream.
            os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
