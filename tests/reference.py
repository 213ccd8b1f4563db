"""The command reference in `lowshot_cli/cli/README.md`: `python -m tests.reference` writes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from lowshot_cli.cli.app import find_panel
from lowshot_cli.cli.flags import COMMON
from lowshot_cli.cli.main import app
from lowshot_cli.config.methods import METHODS

REFERENCE = Path(__file__).parent.parent / "lowshot_cli" / "cli" / "README.md"
BEGIN = "<!-- Written by `python -m tests.reference`; change the code instead. -->"
END = "<!-- End of the command reference. -->"


def all_commands() -> dict[str, Any]:
    """Every command by what is typed after `lowshot`, those of groups included."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        found |= {f"{name} {last}": c for last, c in below.items()} if below else {name: command}
    return found


def reference() -> str:
    """What stands between the markers; the same in every environment."""
    parts: list[str] = []
    common: dict[str, str] = {}
    for name, command in all_commands().items():
        rows = {id(p): _row(p) for p in command.params}
        common |= {p.name: rows[id(p)] for p in command.params if find_panel(p) == COMMON}
        parts += _command(name, command, rows)
    parts += _details("Methods", _methods())
    parts += _details("Common options", _table("option", common.values()))
    return "\n".join(parts)


def _methods() -> Iterator[str]:
    yield from ("| method | its proxy | offered by |", "|---|---|---|")
    for method in METHODS.values():
        commands = "`imprint`, `sweep`" if method.in_imprint else "`sweep`"
        yield f"| `{method.name}` | {_escaped(method.summary)} | {commands} |"


def _command(name: str, command: Any, rows: dict[int, str]) -> list[str]:
    paragraphs = [" ".join(text.split()) for text in command.help.split("\n\n")]
    said = [text for text in paragraphs if not text.startswith("Example:")]
    examples = [text.removeprefix("Example: ") for text in paragraphs if text not in said]
    usage = " ".join(["lowshot", name, "[OPTIONS]", *map(_place, _of(command, "argument"))])
    lines = [*map(_escaped, said), "", "```", usage, "```", "", "Examples:"]
    lines += ["", "```", *examples, "```", ""]
    own = [rows[id(p)] for p in command.params if find_panel(p) != COMMON]
    lines += _table("option", own) if own else []
    names = ", ".join(f"`{p.opts[0]}`" for p in command.params if find_panel(p) == COMMON)
    return _details(f"lowshot {name}", [*lines, "", f"Common options: {names}."])


def _of(command: Any, kind: str) -> list[Any]:
    return [p for p in command.params if p.param_type_name == kind]


def _place(argument: Any) -> str:
    """An argument in the line of usage."""
    name = argument.metavar if argument.required else f"[{argument.metavar}]"
    return f"{name}..." if argument.nargs == -1 else str(name)


def _row(parameter: Any) -> str:
    """A row of the table; the help ends with ranges, variables and the default in brackets."""
    meaning, bracket, details = parameter.help.removesuffix("]").rpartition(" [")
    if not bracket:
        meaning, details = parameter.help, ""
    limits, _, default = details.rpartition("default: ")
    limits = re.sub(r"env: (\w+)", r"or `\1` in the environment", limits)
    if limits:
        meaning = f"{meaning.removesuffix('.')} ({limits.removesuffix('; ')})."
    if not default:
        default = "off" if getattr(parameter, "is_flag", False) else "–"
    return f"| `{_shown(parameter)}` | {_escaped(meaning)} | {_escaped(default)} |"


def _shown(parameter: Any) -> str:
    """How it is typed, with what stands for its value."""
    metavar = (parameter.metavar or "").replace("|", r"\|")
    if parameter.param_type_name == "argument":
        return metavar
    return f"{parameter.opts[0]} {metavar}".rstrip()


def _table(first: str, rows: Iterable[str]) -> list[str]:
    return [f"| {first} | meaning | default |", "|---|---|---|", *rows]


def _details(summary: str, lines: Iterable[str]) -> list[str]:
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"]


def _escaped(text: str) -> str:
    """Text as Markdown shows it literally, but for code in backquotes."""
    return "".join(_literal(text))


def _literal(text: str) -> Iterator[str]:
    for number, part in enumerate(text.split("`")):
        code = number % 2 == 1
        literal = part if code else part.replace("*", r"\*").replace("<", "&lt;")
        literal = literal.replace("|", r"\|")
        yield f"`{literal}`" if code else literal


def refreshed(page: str) -> str:
    """The page with its reference written anew.

    Raises:
        ValueError: it lacks the markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    REFERENCE.write_text(refreshed(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
