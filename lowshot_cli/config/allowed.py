"""What a setting may be, read off its type: for messages and for the help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_KINDS = {int: "whole number", float: "number"}
_SINGLE = {bool: "true or false", str: "text", Path: "a path"}
# The seeds' upper bounds are those of their type, which tell a reader of the help nothing.
_HUGE = 2**32


def range_text(field: FieldInfo) -> str:
    """The range of a setting, such as `8 to 1024`; empty if it has no limit on one side."""
    bounds = _bounds((*field.metadata, *_constraints(field.annotation)))
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    return "" if low is None or high is None or high >= _HUGE else f"{low:g} to {high:g}"


def allowed_text(field: FieldInfo) -> str:
    """What a setting may be, such as `a whole number from 8 to 1024`."""
    *others, last = dict.fromkeys(_forms(field.annotation, field.metadata))
    return f"{', '.join(others)} or {last}" if others else last


def parts(annotation: Any) -> list[Any]:
    """The members of a union except None, or the type itself."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for part in get_args(annotation) if part is not NoneType]
    return [annotation]


def _forms(annotation: Any, metadata: Any) -> Iterator[str]:
    for part in parts(annotation):
        if get_origin(part) is Annotated:
            yield from _forms(part.__origin__, (*metadata, *_flat(part.__metadata__)))
        elif part is not annotation:
            yield from _forms(part, metadata)
        elif get_origin(part) is Literal:
            choices = get_args(part)
            yield choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        elif get_origin(part) is tuple:
            (item,) = _forms(get_args(part)[0], ())
            plural = "names" if item == "text" else item.removeprefix("a ").replace("er", "ers", 1)
            yield f"a list of {plural}"
        elif part in _KINDS:
            yield f"a {_KINDS[part]}{_limits(_bounds(metadata), whole=part is int)}"
        else:
            yield _SINGLE.get(part, "a group of settings")


def _limits(bounds: dict[str, float], *, whole: bool) -> str:
    low, high = bounds.get("ge"), bounds.get("le")
    if whole:  # a whole number above 0 is at least 1
        low = bounds["gt"] + 1 if "gt" in bounds else low
        high = bounds["lt"] - 1 if "lt" in bounds else high
        bounds = {}
    if low is not None and high is not None:
        return f" from {low} to {high}"
    said = [f"of at least {low}"] if low is not None else []
    said += [f"of at most {high}"] if high is not None else []
    said += [f"above {bounds['gt']}"] if "gt" in bounds else []
    said += [f"below {bounds['lt']}"] if "lt" in bounds else []
    return f" {' and '.join(said)}" if said else ""


def _bounds(constraints: Any) -> dict[str, Any]:
    return {
        name: bound
        for constraint in constraints
        for name in ("ge", "gt", "le", "lt")
        if (bound := getattr(constraint, name, None)) is not None
    }


def _constraints(annotation: Any) -> Iterator[Any]:
    """The metadata in the `Annotated` of a type and of the members of its unions."""
    if get_origin(annotation) is Annotated:
        yield from _flat(annotation.__metadata__)
        yield from _constraints(annotation.__origin__)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _constraints(part)


def _flat(metadata: Any) -> Iterator[Any]:
    for extra in metadata:
        yield from extra.metadata if isinstance(extra, FieldInfo) else (extra,)
