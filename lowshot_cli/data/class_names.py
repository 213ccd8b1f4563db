"""Names of a classifier's outputs, from a file as people have it."""

from __future__ import annotations

import ast
import codecs
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowshot_cli.config.values import class_name
from lowshot_cli.errors import DataError, first_few, one_line

_MOST_BYTES = 16 * 1024**2
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FORMS = "give one name a line, or JSON: a list, or the name of each number"
# Where the configs of Hugging Face and of timm hold them.
_KEYS = ("id2label", "label_names")
# Repeated names that a message shows.
_SHOWN = 3


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, in the order of the outputs.

    A text file has one a line, and no line is a comment. A file of JSON, or of Python's literals,
    has a list, a mapping of numbers from 0 on to names, or one of names to numbers, as Keras' class
    indices. An entry may be a pair of a WordNet id and a name, as in ImageNet's class index, where
    two names stand for two classes each: there the id is added to the name.

    Raises:
        DataError: the file cannot be read, or its names are not one for each output and distinct.
    """
    lines = _text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].lstrip()[:1] in ("{", "["):
        entries, place = _parsed("\n".join(lines), path), "outputs"
    else:
        while lines and not lines[-1].strip():
            lines.pop()
        entries, place = [line.strip() for line in lines], "lines"
    first = 1 if place == "lines" else 0
    if not entries:
        raise DataError(f"the class names {path} are empty", _FORMS)
    names: list[str] = []
    for number, entry in enumerate(entries, first):
        if not isinstance(entry, str) or not entry.strip():
            what = "is empty" if isinstance(entry, str) else f"is no text but {entry!r:.40}"
            raise DataError(
                f"the class names {path}: the name in {place[:-1]} {number} {what}", _FORMS
            )
        try:
            names.append(class_name(entry.strip()))
        except ValueError as error:
            raise DataError(
                f"the class names {path}: the name in {place[:-1]} {number} {error}", _FORMS
            ) from None
    _ensure_distinct(names, path, place, first)
    return tuple(names)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataError(f"{path} is too long for class names", _FORMS)
        # Editors and shells of Windows mark what they write.
        return content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no class names at {path}", "check the path") from None
    except UnicodeDecodeError:
        raise DataError(f"the class names {path} are no text in UTF-8", _FORMS) from None
    except OSError as error:
        raise DataError(f"cannot read the class names {path}: {one_line(error)}", _FORMS) from None


def _parsed(text: str, path: Path) -> list[Any]:
    """The entries of JSON or Python's literals, in the order of their numbers."""
    try:
        try:
            content = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            try:
                content = ast.literal_eval(text)
            except (SyntaxError, MemoryError):
                raise error from None
        for key in _KEYS:
            content = content.get(key, content) if isinstance(content, dict) else content
        if not isinstance(content, dict | list | tuple):
            raise ValueError("a set has no order")  # the only other literal in such brackets
        entries = _in_order(content) if isinstance(content, dict) else list(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the class names {path}: {one_line(error)}", _FORMS) from None
    return _without_ids(entries)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON whose keys are distinct."""
    found = dict(pairs)
    if len(found) != len(pairs):
        (key, _) = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{key!r} is there twice")
    return found


def _in_order(content: Mapping[Any, Any]) -> list[Any]:
    """The names of a mapping from numbers, or to them, in the order of the numbers."""
    pairs = list(content.items())
    if all(isinstance(value, int) for value in content.values()):
        pairs = [(value, key) for key, value in pairs]
    try:
        numbers = [int(key) for key, _ in pairs]
    except (ValueError, TypeError):
        raise ValueError("a mapping has to be from numbers to names, or back") from None
    if sorted(numbers) != list(range(len(pairs))):
        missing = next(n for n in range(len(pairs) + 1) if n not in numbers)
        raise ValueError(f"its numbers should be 0 to {len(pairs) - 1}, but {missing} is missing")
    return [name for _, name in sorted(zip(numbers, (n for _, n in pairs), strict=True))]


def _without_ids(entries: list[Any]) -> list[Any]:
    """Names in place of pairs of an id and a name; a repeated one is followed by its id."""
    if not all(isinstance(each, list | tuple) and len(each) == 2 for each in entries):
        return entries
    counts = Counter(str(name) for _, name in entries)
    return [f"{name} ({key})" if counts[str(name)] > 1 else name for key, name in entries]


def _ensure_distinct(names: Sequence[str], path: Path, place: str, first: int) -> None:
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names, first):
        places.setdefault(name, []).append(number)
    repeated = [
        f"{name!r} in {place} {first_few([str(n) for n in found], _SHOWN)}"
        for name, found in places.items()
        if len(found) > 1
    ]
    if repeated:
        raise DataError(
            f"the class names {path} have some twice: {first_few(repeated, _SHOWN)}",
            "tell these classes apart",
        )
