"""Flags: those of settings, made from the schema, and those that several commands share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from typer import Argument, BadParameter, Option

from lowshot_cli.cli import completion
from lowshot_cli.config.allowed import parts, range_text
from lowshot_cli.config.presentation import COMMON, presentation
from lowshot_cli.config.schema import Config
from lowshot_cli.config.section import Section
from lowshot_cli.config.values import FALSE_ALARM, user_path

# Settings that commands share: where images come from, and the rest.
DATASET_SETTINGS = ("dataset", "data_dir", "image_size", "skip_bad", "strict")
PHOTO_SETTINGS = ("dataset", "data_dir", "skip_bad", "strict", "seed", "device", "workdir")
ALL_SETTINGS = (*DATASET_SETTINGS, "seed", "device", "workdir")

CHECKPOINTS, UNKNOWN, EXPORT = "Checkpoints", "Unknown classes", "Export"
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}
_COMPLETIONS: Mapping[tuple[str, str], Callable[..., list[str]]] = {
    ("imprint", "classes"): completion.new_classes,
    ("imprint", "method"): completion.imprint_methods,
    ("sweep", "methods"): completion.sweep_methods,
}
# A setting in an error message, as Python spells it: `shots`, `replace=True`, `threads=2`.
_SETTING = re.compile(r"`(\w+)(?:=([^`\s]+))?`")


def typed_path(text: str) -> Path:
    """A path as it was typed, with `~` for a home folder; an empty one is not the current folder.

    Raises:
        BadParameter: it is empty.
    """
    if not text:
        raise BadParameter("should not be empty")
    return user_path(text)


def option(
    name: str,
    text: str,
    *,
    panel: str = "Options",
    metavar: str | None = None,
    default: str | None = None,
    within: str | None = None,
    **settings: Any,
) -> Any:
    """An option with its help, which ends with the default in brackets.

    Args:
        name: as it is typed, such as `--out`.
        text: one sentence about it.
        panel: heading of the help that lists it.
        metavar: placeholder for its value; None for a switch.
        default: the default in words; an option with a value shows `none` without it.
        within: range of the value, in words.
        settings: further ones for Typer.
    """
    default = default or ("none" if metavar else None)
    return Option(
        name,
        help=_with_details(text, default, within, settings.get("envvar")),
        rich_help_panel=panel,
        metavar=metavar,
        show_default=False,
        show_envvar=False,
        **settings,
    )


def argument(metavar: str, text: str, *, default: str | None = None, **settings: Any) -> Any:
    """An argument with its help."""
    return Argument(
        metavar=metavar, help=_with_details(text, default), show_default=False, **settings
    )


def _with_details(
    text: str, default: str | None, within: str | None = None, env: str | None = None
) -> str:
    said = [within or "", f"env: {env}" if env else "", f"default: {default}" if default else ""]
    details = "; ".join(filter(None, said))
    return f"{text} [{details}]" if details else text


def setting_flags(section: str | None, common: Sequence[str]) -> Iterator[inspect.Parameter]:
    """The parameters of a command for the settings of its section, then for common ones.

    Args:
        section: name of the field of `Config` that holds the section, if any.
        common: names of top-level settings.
    """
    top = Config.model_fields
    if section:
        model = top[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, Section)
        for name, field in model.model_fields.items():
            if presentation(field).panel:
                yield _parameter(section, name, field)
    for name in common:
        yield _parameter("", name, top[name])


def flag_name(name: str, field: FieldInfo) -> str:
    """The flag of a setting, as it is typed."""
    return presentation(field).flag or f"--{name.replace('_', '-')}"


def default_text(field: FieldInfo) -> str:
    """The default of a setting in words."""
    value = field.default
    if unset := presentation(field).unset:
        return unset
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _parameter(section: str, name: str, field: FieldInfo) -> inspect.Parameter:
    how, (kind, metavar) = presentation(field), _typed(field)
    switch = kind is bool
    flag = option(
        flag_name(name, field),
        field.description or "",
        panel=how.panel or COMMON,
        metavar=None if switch else how.metavar or metavar,
        default=None if switch else default_text(field),
        within=range_text(field),
        envvar=how.env,
        autocompletion=_COMPLETIONS.get((section, name)),
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind | None, flag])


def _typed(field: FieldInfo) -> tuple[Any, str]:
    """The type that the command line reads for a setting, and the placeholder for its value.

    A setting that is no switch or choice is read as text, which the schema then parses.
    """
    if presentation(field).repeat:
        return list[str], "NAME"
    kinds = [
        get_args(part)[0] if get_origin(part) is Annotated else part
        for part in parts(field.annotation)
    ]
    kind = kinds[0] if len(kinds) == 1 else str
    if get_origin(kind) is Literal:
        return kind, "|".join(get_args(kind))
    return (bool if kind is bool else str), _METAVARS.get(kind, "TEXT")


def reword(text: str, flags: Mapping[str, str]) -> str:
    """Turn settings in a message of the engine into flags, for the command line.

    Args:
        text: names settings between backticks as Python spells them: `replace=True`, `shots`.
        flags: the flag of each setting by its Python name.
    """

    def as_flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in flags:
            return found.group(0)
        return flags[name] if value in (None, "True") else f"{flags[name]} {value}"

    return _SETTING.sub(as_flag, text)


ConfigFile = Annotated[
    Path | None,
    option(
        "--config",
        "YAML file, such as configs/quickstart.yaml; flags override it.",
        panel=COMMON,
        metavar="FILE",
        parser=typed_path,
    ),
]
PrintConfig = Annotated[
    bool, option("--print-config", "Print the resolved config as YAML and stop.", panel=COMMON)
]
Json = Annotated[bool, option("--json", "Print results as JSON.", panel=COMMON)]
Quiet = Annotated[bool, option("--quiet", "Print no progress and no notes.", panel=COMMON)]
DryRun = Annotated[
    bool,
    option(
        "--dry-run",
        "Estimate the work, its time and its memory, and write nothing.",
        panel=COMMON,
    ),
]
CheckpointFile = Annotated[
    Path | None,
    option(
        "--checkpoint",
        "Start from this file, such as runs/base.safetensors.",
        panel=CHECKPOINTS,
        metavar="FILE",
        default="the one in the work folder",
        autocompletion=completion.checkpoints,
        parser=typed_path,
    ),
]
ModelFile = Annotated[
    Path | None,
    option(
        "--checkpoint",
        "Model to use, such as runs/imprinted.safetensors.",
        panel=CHECKPOINTS,
        metavar="FILE",
        default="the latest in the work folder",
        autocompletion=completion.checkpoints,
        parser=typed_path,
    ),
]
Out = Annotated[
    Path | None,
    option(
        "--out",
        "Write the checkpoint to this file, such as mug.safetensors.",
        panel=CHECKPOINTS,
        metavar="FILE",
        default="in the work folder",
        parser=typed_path,
    ),
]
Overwrite = Annotated[bool, option("--overwrite", "Replace an existing file.", panel=CHECKPOINTS)]
FalseAlarm = Annotated[
    float | None,
    option(
        "--false-alarm",
        "Percent of known images that may be taken for unknown ones.",
        panel=UNKNOWN,
        metavar="PERCENT",
        default=f"{FALSE_ALARM:g}",
        min=0,
        max=100,
    ),
]
