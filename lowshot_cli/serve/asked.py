"""What requests may ask for: parameters of their addresses, and bodies of JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lowshot_cli.config.values import ExportFormat, class_name
from lowshot_cli.errors import UsageError

# How OpenAPI describes a body of images.
IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class _Asked(BaseModel):
    """Parameters of an address, none of which is passed over."""

    model_config = ConfigDict(extra="forbid")


class Predicting(_Asked):
    """As the options of `lowshot predict`."""

    top: int = Field(3, ge=1, description="How many of the most probable classes to list.")
    false_alarm: float | None = Field(
        None, ge=0, le=100, description="Percent of known images that may be taken for unknown."
    )
    confidence: float | None = Field(
        None, description="Share of sets of classes, such as 0.9, that hold the right one."
    )
    before: bool = Field(False, description="Ask the model before the last change.")
    compare: bool = Field(False, description="Add what that model says too, as `before`.")


class Teaching(_Asked):
    """How a class is taught."""

    replace: bool = Field(False, description="Teach a class anew that the model knows.")


class Forcing(_Asked):
    """How a class is changed."""

    force: bool = Field(False, description="Allow a base class to be changed.")


class Undoing(_Asked):
    """What is taken back."""

    of: str | None = Field(None, description="Only if this `revision` of the model is in use.")


class Exporting(_Asked):
    """As the option of `lowshot export`."""

    format: ExportFormat = "onnx"


class NewName(_Asked):
    """Another name for a class."""

    name: str


class Budget(_Asked):
    """Another budget for the bias."""

    max_forgetting: float = Field(ge=0, le=100, allow_inf_nan=False)


def checked_name(name: str) -> str:
    """The name of a new class, in the form in which it is kept.

    Raises:
        UsageError: it is not allowed.
    """
    try:
        return class_name(name)
    except ValueError as error:
        hint = "write it in the address, as in POST /classes/mug"
        raise UsageError(f"the name of the class {error}", hint) from None
