"""Whatever a setting is given, the answer is a value or one line that says what is allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from lowshot_cli.cli.flags import flag_name
from lowshot_cli.config.presentation import presentation
from lowshot_cli.config.schema import Config
from lowshot_cli.config.section import Section
from lowshot_cli.config.yaml_file import load_config
from lowshot_cli.errors import ConfigError
from tests.conftest import RunCommand

JUNK: tuple[object, ...] = (
    *("", "x", "-1", "1,2", "nan", "1e999", "true", "\0"),
    *(True, -1, 1.5, 10**400, float("nan"), float("inf"), None, [], [1], ["x", "x"], {"a": 1}),
)
JARGON = re.compile(r"Input|parse|integer|a valid|instance|dictionary|tuple|Config\b|error")
ALLOWED = re.compile(
    r"should (?:be|not) |needs at least one|has an entry twice|put quotes around|unknown key"
)
SECTIONS = {
    n: type(f.default) for n, f in Config.model_fields.items() if isinstance(f.default, Section)
}
SETTINGS: dict[str, FieldInfo] = {
    **Config.model_fields,
    **{f"{name}.{n}": f for name, model in SECTIONS.items() for n, f in model.model_fields.items()},
}


def _yaml(path: Path, name: str, value: object) -> Path:
    section, _, key = name.rpartition(".")
    path.write_text(json.dumps({section: {key: value}} if section else {key: value}))
    return path


@pytest.mark.parametrize("name", SETTINGS)
def test_junk_in_yaml_is_answered_with_what_is_allowed(tmp_path: Path, name: str) -> None:
    refused = 0
    for junk in JUNK:
        path = _yaml(tmp_path / "c.yaml", name, junk)
        try:
            load_config(path)
        except ConfigError as error:
            said, refused = error.message.removeprefix(str(path)), refused + 1
            assert said.startswith(f": {name}")
            assert ALLOWED.search(said), said
            assert not JARGON.search(said.partition(", got")[0]), said
            assert "\n" not in said
    assert refused > 3


FLAGS = {
    (
        name.rpartition(".")[0].replace("_", "-") or "train-base",
        flag_name(name.rpartition(".")[2], field),
    )
    for name, field in SETTINGS.items()
    if presentation(field).panel and bool not in (field.annotation,)
}


@pytest.mark.parametrize(("command", "flag"), sorted(FLAGS))
def test_junk_in_a_flag_is_answered_with_what_is_allowed(
    lowshot: RunCommand, command: str, flag: str
) -> None:
    for junk in ("", "-1"):
        result = lowshot(command, f"{flag}={junk}", "--print-config")
        if result.exit_code:
            (said,) = [line for line in result.stderr.splitlines() if "rror: " in line]
            assert result.exit_code == 2
            assert flag in said
            assert re.search(r"should (?:be|not)|needs at least|is not one of", said), said
            assert not JARGON.search(said.partition("rror: ")[2]), said
        else:
            assert (flag, junk) in TAKEN


# A file, a folder and a class of that name may exist.
TAKEN = {
    ("--weights", "-1"),
    ("--class-names", "-1"),
    ("--background", "-1"),
    ("--data-dir", "-1"),
    ("--workdir", "-1"),
    ("--class", "-1"),
}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "x", "--top", "many"), "'--top': it should be a whole number"),
        (("imprint", "--trial", "1.5"), "'--trial': it should be a whole number"),
        (("data", "duplicates", "--at-least", "x"), "'--at-least': it should be a number"),
        (("export", "--format", "pdf"), "'--format': 'pdf' is not one of"),
    ],
)
def test_junk_in_an_option_that_is_no_setting_is_told_in_the_same_words(
    lowshot: RunCommand, arguments: tuple[str, ...], said: str
) -> None:
    result = lowshot(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("image_size", "4", "should be a whole number from 8 to 1024, got '4'"),
        ("train_base.epochs", 1.5, "should be a whole number of at least 0, got '1.5'"),
        ("train_base.epochs", True, "should be a whole number of at least 0, got 'True'"),
        ("train_base.lr", 0, "should be a number above 0, got '0'"),
        ("train_base.warmup", 1, "should be a number above 0 and below 1, got '1'"),
        ("train_base.average", 2, "should be a number from 0 to 1, got '2'"),
        ("train_base.flip", "x", "should be true or false, got 'x'"),
        ("train_base.holdout", None, "should be a whole number of at least 1, got nothing"),
        ("train_base.classes", 0, "should be a whole number of at least 1 or a list of names"),
        ("sweep.novel", 0, "should be all, a whole number of at least 1 or a list of names"),
        ("sweep.shots", "1,x", "should be a list of whole numbers of at least 1, got '1,x'"),
        ("sweep.methods", "imprnt", "did you mean 'imprint'"),
        ("device", "gpu", "should be one of auto, cpu, cuda, mps"),
        ("train_base.classes", [True], "put quotes around yes, no"),
        ("train_base.classes", '"red', "has a quote that is not closed"),
    ],
)
def test_what_is_allowed_is_said_in_plain_words(
    tmp_path: Path, name: str, given: object, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_yaml(tmp_path / "c.yaml", name, given))
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("seed", "3", 3),
        ("train_base.epochs", "32", 32),
        ("train_base.lr", "1e-3", 0.001),
        ("train_base.classes", "40", 40),
        ("train_base.flip", "yes", True),
        ("sweep.shots", "1, 5", (1, 5)),
        ("imprint.max_forgetting", "0.5", 0.5),
    ],
)
def test_numbers_given_as_text_count(tmp_path: Path, name: str, given: str, meant: object) -> None:
    config: Any = load_config(_yaml(tmp_path / "c.yaml", name, given))
    for part in name.split("."):
        config = getattr(config, part)
    assert config == meant
