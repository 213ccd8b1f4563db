"""A part of the config, which every other part follows."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lowshot_cli.config.allowed import parts


class Section(BaseModel):
    """A frozen part of the config in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def with_settings(self, section: str, **settings: object) -> Self:
        """The same with other settings in one of its sections."""
        changed = getattr(self, section).model_copy(update=settings)
        return self.model_copy(update={section: changed})

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` and `yes` for numbers, which Python would take for 1."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and bool not in parts(field.annotation):
            raise PydanticCustomError("no_number", "should be no switch")
        return value
