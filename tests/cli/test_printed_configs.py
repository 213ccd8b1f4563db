"""A config that was printed, given back with `--config`, is the command that printed it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import typer
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo
from typer.main import get_command

from lowshot_cli.cli.flags import ALL_SETTINGS, PHOTO_SETTINGS, flag_name
from lowshot_cli.cli.main import app
from lowshot_cli.config.methods import IMPRINT_METHODS, SWEEP_METHODS
from lowshot_cli.config.presentation import presentation
from lowshot_cli.config.schema import Config, Section
from lowshot_cli.config.yaml_file import load_config
from tests.conftest import RunCommand

# Every command that prints its config: its section, and the common settings that it reads.
COMMANDS: dict[tuple[str, ...], tuple[str | None, Sequence[str]]] = {
    ("train-base",): ("train_base", ALL_SETTINGS),
    ("imprint",): ("imprint", ALL_SETTINGS),
    ("finetune",): ("finetune", ALL_SETTINGS),
    ("sweep",): ("sweep", ALL_SETTINGS),
    ("evaluate",): (None, ALL_SETTINGS),
    ("predict", "a.png"): (None, PHOTO_SETTINGS),
    ("export",): (None, PHOTO_SETTINGS),
    ("classes", "list"): (None, ["workdir"]),
    ("classes", "remove", "x"): (None, ["workdir"]),
    ("classes", "rename", "x", "y"): (None, ["workdir"]),
    ("data", "classes"): (None, ["dataset", "data_dir", "image_size", "skip_bad"]),
    ("data", "duplicates"): (None, ["dataset", "data_dir", "image_size", "skip_bad"]),
}
# What YAML would read as something else than text.
ODD = ["yes", "null", "~", "1e3", "0o17", "1_000", "2001-01-01", "<<", "=", "- a", "a: b", "#a"]
ODD += [
    "40",
    "all",
    "none",
    "-x",
    " mug ",
    "'",
    '"',
    "\x85",
    "\u2028",
    "\ufeff",
    "é",
    "👩‍🔬",
    "a\nb",
]
TEXT = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=9),
).filter(str.strip)
ENTRY = TEXT.map(lambda text: text.replace(",", "")).filter(str.strip)
PATH = st.sampled_from(["runs", "~/w", "a b/c=d", "../x", "yes", "1", "é", "/abs", "./-x"])
BUDGET = st.one_of(st.just("none"), st.just("None"), st.floats(0, 100).map(str))
BY_NAME: dict[str, st.SearchStrategy[str]] = {
    "classes": st.one_of(st.integers(1, 99).map(str), st.lists(ENTRY, min_size=1).map(",".join)),
    "novel": st.one_of(st.just("all"), st.just("all,"), st.lists(ENTRY, min_size=1).map(",".join)),
    "backbone": st.sampled_from(
        ["resnet9", "resnet18", "efficientnet-lite0", "timm:x", "torchvision:resnet50"]
    ),
    "weights": st.one_of(TEXT, PATH, st.just("DEFAULT")),
    "class_names": st.one_of(TEXT, PATH, st.just("imagenet")),
    "mean": st.sampled_from(["0.5", "0.485,0.456,0.406", "0, 0, 1"]),
    "std": st.sampled_from(["0.5", "0.229,0.224,0.225"]),
    "resize": st.integers(8, 4096).map(str),
    "method": st.sampled_from([*IMPRINT_METHODS, "calibrated"]),
    "methods": st.lists(st.sampled_from([*SWEEP_METHODS, "calibrated"]), min_size=1).map(",".join),
    "shots": st.lists(st.integers(1, 99).map(str), min_size=1, max_size=3).map(",".join),
    "max_forgetting": BUDGET,
    "data_dir": PATH,
    "workdir": PATH,
    "image_size": st.integers(8, 1024).map(str),
    "input_size": st.integers(8, 1024).map(str),
}


def _members(annotation: Any) -> list[Any]:
    parts = [_members(one) for one in get_args(annotation)]
    return [annotation, *(one for part in parts for one in part)]


def _values(name: str, field: FieldInfo) -> st.SearchStrategy[str]:
    """Texts for a setting; some are refused, which the test then passes over."""
    if name in BY_NAME:
        return BY_NAME[name]
    kinds = _members(field.annotation)
    words = [word for word in kinds if isinstance(word, str)]
    if words:
        return st.sampled_from(words)
    if float in kinds:
        return st.floats(0, 1, exclude_min=True, exclude_max=True).map(str)
    assert int in kinds, name
    return st.integers(2, 2**31).map(str)


@st.composite
def _typed(draw: st.DrawFn) -> tuple[tuple[str, ...], list[str]]:
    """A command and flags for some of its settings."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    section, common = COMMANDS[command]
    fields = {name: Config.model_fields[name] for name in common}
    if section:
        model = Config.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, Section)
        own = model.model_fields.items()
        fields |= {name: field for name, field in own if presentation(field).panel}
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=6))
    flags = []
    for name in chosen:
        flag = flag_name(name, fields[name])
        if presentation(fields[name]).repeat:
            flags += [f"{flag}={text}" for text in draw(st.lists(TEXT, max_size=3))]
        elif bool in _members(fields[name].annotation):
            flags.append(flag)
        else:
            flags.append(f"{flag}={draw(_values(name, fields[name]))}")
    return command, flags


APP = get_command(app)


def _print_config(folders: tuple[str | None, str | None], *arguments: object) -> str | None:
    """What `--print-config` prints with these LOWSHOT_WORKDIR and LOWSHOT_DATA; None if refused."""
    names = ("LOWSHOT_WORKDIR", "LOWSHOT_DATA")
    found = {name: value for name, value in zip(names, folders, strict=True) if value is not None}
    stdout, words = io.StringIO(), [*map(str, arguments), "--print-config"]
    # `CliRunner` would build all commands anew, which takes most of the time.
    with (
        mock.patch.dict(os.environ, found),
        redirect_stdout(stdout),
        redirect_stderr(io.StringIO()),
    ):
        for name in set(names) - set(found):
            os.environ.pop(name, None)
        try:
            code = APP.main(words, prog_name="lowshot", standalone_mode=False)
        except typer.BadParameter:
            return None
    assert code in (0, 2)
    return stdout.getvalue() if code == 0 else None


def _many(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples, deadline=None, suppress_health_check=list(HealthCheck)
    )


def _check(path: Path, call: tuple[tuple[str, ...], list[str]], before: Any, after: Any) -> None:
    """Print a config, give it back where the environment has changed, and compare."""
    command, flags = call
    first = _print_config(before, *command, *flags)
    assume(first is not None)
    assert first is not None
    path.write_text(first, encoding="utf-8", newline="")
    # A data folder that was not given is that of the environment, then as now.
    now = after if yaml.safe_load(first)["data_dir"] else (after[0], before[1])
    assert _print_config(now, *command, "--config", path) == first
    operands = [flag for flag in flags if flag.startswith("--class=")]
    assert _print_config(now, *command, *operands, "--config", path) == first


FOLDERS = st.tuples(st.none() | PATH, st.none() | PATH)


@_many(50)
@given(_typed(), FOLDERS, FOLDERS)
@example(
    (("imprint",), ["--class=yes", "--class=\x85", "--method=calibrated"]), (None, None), ("w", "d")
)
@example((("sweep",), ["--novel=all,", "--method=calibrated,imprint"]), ("~/w", None), (None, None))
def test_a_printed_config_resolves_to_itself(
    tmp_path_factory: pytest.TempPathFactory, call: Any, before: Any, after: Any
) -> None:
    _check(tmp_path_factory.getbasetemp() / "printed.yaml", call, before, after)


@pytest.mark.slow
@_many(5_000)
@given(_typed(), FOLDERS, FOLDERS)
def test_thousands_of_printed_configs_resolve_to_themselves(
    tmp_path_factory: pytest.TempPathFactory, call: Any, before: Any, after: Any
) -> None:
    _check(tmp_path_factory.getbasetemp() / "printed.yaml", call, before, after)


def test_it_says_what_it_says_in_any_encoding(
    lowshot: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stdout)
    APP.main(["imprint", "--class=café", "--print-config"], "lowshot", standalone_mode=False)
    stdout.flush()
    (tmp_path / "c.yaml").write_bytes(stdout.buffer.getvalue())
    assert load_config(tmp_path / "c.yaml").imprint.classes == ("café",)


def test_a_printed_config_teaches_the_same_model(lowshot: RunCommand, workdir: Path) -> None:
    """The dataset is that of the base model, which is not the default one."""
    model = workdir / "imprinted.safetensors"
    typed = ["--class", "omega", "--shots", "3", "--method", "calibrated", "--seed", "4"]
    printed, answers, models = lowshot("imprint", *typed, "--print-config").stdout, [], []
    Path("c.yaml").write_text(printed)
    config = ["--config", "c.yaml"]
    for words, more in ((typed, [*typed[2:], "--class=Z"]), (config, [*config, "--class=Z"])):
        first = lowshot("imprint", *words)
        again = lowshot("imprint", *more, "--add", "--json")
        assert (first.exit_code, again.exit_code) == (0, 0), first.stderr + again.stderr
        answers.append((first.stdout, again.stdout))
        models.append(model.read_bytes())
    assert answers[0] == answers[1]
    assert models[0] == models[1]
