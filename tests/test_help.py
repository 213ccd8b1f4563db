"""Help, version and completion answer at once: none of them waits for torch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result

import lowshot_cli
from lowshot_cli.cli import app

RunCommand = Callable[..., Result]

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = {
    name: command for name, command in GROUP.commands.items() if not hasattr(command, "commands")
}
# With the commands of groups, such as `data classes`.
ALL_COMMANDS: dict[str, Any] = COMMANDS | {
    f"{group} {name}": command
    for group, commands in GROUP.commands.items()
    for name, command in getattr(commands, "commands", {}).items()
}
COMMON = {
    "--dataset",
    "--data-dir",
    "--config",
    "--print-config",
    "--seed",
    "--device",
    "--workdir",
    "--json",
    "--quiet",
}
# One of these in the list of modules would be seconds of waiting.
HEAVY = {"torch", "torchvision", "scipy", "matplotlib"}


def _run(
    *arguments: object, probe: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    flags = ["-X", "importtime"] if probe else []
    return subprocess.run(
        [sys.executable, *flags, "-m", "lowshot_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def _modules(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level names of all modules that a probed run imported."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], [], ["sweep", "--help"], ["train-base", "--print-config"]],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_what_only_informs_does_not_import_torch(arguments: list[str]) -> None:
    done = _run(*arguments)
    modules = _modules(done)
    assert "lowshot_cli" in modules
    assert not modules & HEAVY
    assert re.search("Usage: lowshot|lowshot [0-9]|train_base:", done.stdout + done.stderr)


def test_a_command_that_works_does_import_torch(tmp_path: Path) -> None:
    assert "torch" in _modules(_run("evaluate", "--workdir", tmp_path))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("lowshot imp", "imprint"), ("lowshot sweep --tri", "--trials")],
)
def test_completion_offers_names_without_torch(typed: str, offered: str) -> None:
    position = str(len(typed.split()) - 1)
    request = {"COMP_WORDS": typed, "COMP_CWORD": position}
    done = _run(_LOWSHOT_COMPLETE="complete_bash", **request)
    assert done.stdout.split() == [offered]
    assert not _modules(done) & HEAVY


def test_completion_can_be_installed_without_torch() -> None:
    done = _run(_LOWSHOT_COMPLETE="source_bash")
    assert done.returncode == 0
    assert "_LOWSHOT_COMPLETE=complete_bash" in done.stdout
    assert not _modules(done) & HEAVY


def test_the_version_is_the_packages(lowshot: RunCommand) -> None:
    result = lowshot("--version")
    assert result.exit_code == 0
    assert result.stdout == f"lowshot {lowshot_cli.__version__}\n"


def test_the_program_is_called_lowshot_however_it_is_started() -> None:
    done = _run("sweep", "--help", probe=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: lowshot sweep ")
    assert done.stderr == ""


def test_the_first_page_of_help_names_every_command(lowshot: RunCommand) -> None:
    result = lowshot("--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert set(COMMANDS) >= {"train-base", "imprint", "finetune", "evaluate", "sweep"}
    listed = re.findall(r"^  ([a-z][\w-]*)  +\S", result.stdout, re.MULTILINE)
    assert listed == list(GROUP.commands)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_the_help_of_a_command_shows_each_option_with_an_explanation(
    lowshot: RunCommand, command: str
) -> None:
    result = lowshot(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stderr == ""
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", result.stdout))
    text = " ".join(result.stdout.split())
    for parameter in ALL_COMMANDS[command].params:
        assert parameter.help, f"{command} {parameter.name} is not explained"
        assert parameter.help in text
        if parameter.param_type_name == "option":
            assert set(parameter.opts) <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_common_options(command: str) -> None:
    options = {name for parameter in COMMANDS[command].params for name in parameter.opts}
    assert options >= COMMON


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_the_example_in_the_help_can_be_typed(lowshot: RunCommand, command: str) -> None:
    text = lowshot(*command.split(), "--help").stdout
    examples = re.findall(rf"Example: lowshot ({command}.*)", text)
    assert examples
    for example in examples:
        prints = any(p.name == "print_config" for p in ALL_COMMANDS[command].params)
        arguments = shlex.split(example) + (["--print-config"] if prints else [])
        result = lowshot(*arguments)
        assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_shown_in_the_help_are_those_that_hold(lowshot: RunCommand, command: str) -> None:
    text = " ".join(lowshot(command, "--help").stdout.split())
    printed = lowshot(command, "--print-config")
    assert printed.exit_code == 0, printed.stderr
    settings = yaml.safe_load(printed.stdout)
    settings |= settings.get(command.replace("-", "_"), {})
    checked = 0
    for parameter in COMMANDS[command].params:
        value, shown = settings.get(parameter.name), parameter.show_default
        if value is None or not isinstance(shown, str):
            continue
        actual = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        assert shown.split(":", maxsplit=1)[0] == actual, parameter.name
        assert f"default: ({shown})]" in text, parameter.name
        checked += 1
    assert checked >= 3


def test_an_unknown_command_or_option_names_the_nearest(lowshot: RunCommand) -> None:
    for arguments, nearest in ((["imprnt"], "imprint"), (["sweep", "--trails=3"], "--trials")):
        result = lowshot(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert nearest in result.stderr


def test_nothing_typed_shows_the_help(lowshot: RunCommand) -> None:
    result = lowshot()
    assert "train-base" in result.output
    assert result.output.startswith("Usage: lowshot") or "Usage:" in result.output
