"""How settings are shown to people, beyond their type and default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

# Headings of the help.
COMMON = "Common options"
BASE_CLASSES, BACKBONE, TRAINING = "Base classes", "Backbone", "Training"
NEW_CLASSES, OPERATING_POINT, TRIALS = "New classes", "Operating point", "Which trials"


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """How a setting is shown to people, and given on the command line.

    Attributes:
        panel: heading of the help that lists its flag; None for a setting without a flag.
        flag: its name on the command line, if not the field's.
        metavar: placeholder for its value in the help, if not the type's.
        unset: what the default means, in words, if its value does not show it.
        env: environment variable that also sets it.
        repeat: whether several values repeat the flag; otherwise commas separate them.
    """

    panel: str | None = None
    flag: str | None = None
    metavar: str | None = None
    unset: str | None = None
    env: str | None = None
    repeat: bool = False


def setting(default: Any, description: str, panel: str | None = None, **how: Any) -> Any:
    """A field with its presentation; `description` is one sentence, with the unit."""
    extra: dict[str, Any] = {"presentation": Presentation(panel=panel, **how)}
    return Field(default, description=description, json_schema_extra=extra)


def presentation(field: FieldInfo) -> Presentation:
    """How a setting is shown."""
    extra = field.json_schema_extra
    found: Any = extra.get("presentation") if isinstance(extra, dict) else None
    return found if isinstance(found, Presentation) else Presentation()
