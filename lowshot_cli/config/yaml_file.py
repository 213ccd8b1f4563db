"""Reads configs from YAML files and flags, and explains what is wrong with them."""

from __future__ import annotations

import codecs
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from lowshot_cli.config.allowed import allowed_text
from lowshot_cli.config.schema import Config
from lowshot_cli.config.section import Section
from lowshot_cli.errors import ConfigError, UsageError, nearest

_Section = TypeVar("_Section", bound=Section)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2
_MOST_BYTES = 1024**2
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SECTIONS = {
    name: type(field.default)
    for name, field in Config.model_fields.items()
    if isinstance(field.default, Section)
}


def load_config(
    path: Path | None,
    section: str | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, Any] | None = None,
) -> Config:
    """Resolve defaults < `environment` < YAML at `path` < `flags` (None means not given).

    A flag whose name is a top-level field goes there, any other into `section`. What the
    environment says is a default: a config that was printed says where its work belongs.

    Args:
        path: of the YAML file; None for none.
        section: of the config that flags belong to.
        flags: settings by name.
        environment: top-level settings by name.

    Raises:
        ConfigError: the YAML is unreadable, or has an unknown key or a value out of range.
        UsageError: a flag is out of range.
    """
    values = _read_yaml(path) if path else {}
    try:
        Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            _explain(error, Config, values, str(path)), "see configs/ for examples"
        ) from None
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    top = {name: value for name, value in given.items() if name in Config.model_fields}
    rest = {name: value for name, value in given.items() if name not in top}
    usual = {n: v for n, v in (environment or {}).items() if values.get(n) is None}
    values = {**values, **usual, **top}
    if section:
        values[section] = {**values.get(section, {}), **rest}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            _explain(error, Config, values), "the help lists what is allowed"
        ) from None


def make_section(section: type[_Section], **given: object) -> _Section:
    """A section of the config, or all of it, from settings; None leaves a default.

    Raises:
        UsageError: one of them is out of range.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    try:
        return section(**settings)
    except ValidationError as error:
        raise UsageError(
            _explain(error, section, settings), "its description says what is allowed"
        ) from None


class _Loader(yaml.SafeLoader):
    """Reads plain values only, as `yaml.SafeLoader` does, and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"the key in line {line} is no text: put quotes around it")
            if key.value in lines:
                first = lines[key.value]
                raise ValueError(f"{key.value!r} is given twice, in lines {first} and {line}")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(
                f"{path} is too long for a config", f"at most {_MOST_BYTES:,} bytes are read"
            )
        # Editors and shells of Windows mark what they write.
        text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}", "name a text file") from None
    try:
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        for number, line in enumerate(text.splitlines(), 1):
            if "\t" in line[: len(line) - len(line.lstrip())]:
                what = f"{path}: line {number} is indented with a tab"
                raise ConfigError(what, "indent it with spaces") from None
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{path} is not valid YAML: {reason}", "correct the file there") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        found = ", not a list" if isinstance(values, list) else ""
        raise ConfigError(
            f"{path} must contain `key: value` lines{found}", "see configs/ for examples"
        )
    # A section without any settings is empty.
    return {key: {} if key in _SECTIONS and v is None else v for key, v in values.items()}


def _explain(
    error: ValidationError,
    model: type[Section],
    given: Mapping[str, object],
    source: str | None = None,
) -> str:
    """Explain each setting at fault; suggest the nearest known key for an unknown one.

    Args:
        error: from the schema.
        model: what was validated.
        given: the values that were validated.
        source: the file at fault; None if settings were given one by one.
    """
    bullets: dict[str, str] = {}
    said: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            known = list(_model_at(model, location[:-1]).model_fields)
            match = nearest(location[-1], known)
            advice = f"did you mean {match!r}?" if match else f"known: {', '.join(sorted(known))}"
            bullets[".".join(location)] = f"unknown key; {advice}"
            continue
        path = location[: 2 if location and location[0] in _SECTIONS else 1]
        name = ".".join(path) or "config"
        # A setting that takes several forms has a problem for each of them.
        own = said.setdefault(name, [])
        if problem["type"] == "value_error":
            own.append(problem["msg"].removeprefix("Value error, "))
        wanted = " or ".join(dict.fromkeys(own)) or f"should be {_allowed_at(model, path)}"
        got = f", got {_shown(_value_at(given, path, problem['input']))}"
        bullets[name] = wanted if "contradicts" in wanted else wanted + got
    # Without a file, settings go by their own names, without their section.
    names = {name: name if source else f"`{name.split('.')[-1]}`" for name in bullets}
    lines = [f"{names[name]}: {text}" for name, text in bullets.items()]
    start = f"{source}: " if source else ""
    if len(lines) == 1:
        return f"{start}{lines[0]}"
    return "\n".join([f"{start}{len(lines)} problems", *(f"  - {line}" for line in lines)])


def _model_at(model: type[Section], path: list[str]) -> type[Section]:
    return _SECTIONS.get(path[0], model) if path else model


def _allowed_at(model: type[Section], path: list[str]) -> str:
    field = _model_at(model, path[:-1]).model_fields.get(path[-1]) if path else None
    return allowed_text(field) if field else "a group of settings"


def _value_at(given: Mapping[str, object], path: list[str], otherwise: object) -> object:
    """The value as it was written, before any part of it was parsed."""
    value: object = given
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return otherwise
        value = value[key]
    return value


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = _SHORT.repr(value)
    return f"'{text[1:-1] if isinstance(value, str) else text}'"
