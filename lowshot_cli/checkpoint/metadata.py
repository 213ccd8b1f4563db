"""What a checkpoint says about itself besides tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


def read_meta(path: Path) -> Meta | None:
    """What a checkpoint says of itself, by its header alone; None where it cannot be read."""
    import json

    from lowshot_cli.storage.tensors import SHORT_HEADER

    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > SHORT_HEADER:
                return None
            header = json.loads(file.read(length))
        return Meta.model_validate_json(header["__metadata__"]["lowshot"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


Finite = Annotated[float, Field(allow_inf_nan=False)]


Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)]


Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SupportRecord(_Record):
    """Where a novel class's support images came from; `indices` point into its training split."""

    method: str
    indices: tuple[int, ...]
    files: tuple[str, ...] | None
    pixel_hashes: tuple[str, ...]


class Meta(_Record):
    """What a checkpoint says about itself. Counts are (right, total) of the base test images.

    Images have `image_size` pixels a side, which the backbone resizes to `input_size`, if any.
    `renamed` maps the name of a class to the one it has in the dataset, where the two differ.
    """

    format: Literal[1] = 1
    classes: tuple[str, ...]
    n_base: int = Field(ge=1)
    backbone: str
    width: int = Field(ge=1, le=4096)
    embedding_size: int = Field(ge=1, le=65536)
    mirror: bool
    image_size: int = Field(ge=8, le=1024)
    input_size: int | None = Field(default=None, ge=8, le=1024)
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    dataset: str
    dataset_hash: str
    class_order_seed: int
    split: str
    holdout_per_class: int = Field(ge=1)
    base_counts: tuple[tuple[Count, Count], ...]
    parent: str | None = None
    config: dict[str, Any]
    version: str
    history: tuple[dict[str, Any], ...]
    supports: tuple[SupportRecord, ...] = ()
    renamed: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Meta:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class name stands twice")
        if not isinstance(self.config.get("train_base"), dict):
            raise ValueError("the config of the base model is missing")
        if not all(isinstance(step.get("options"), dict) for step in self.history):
            raise ValueError("a step of the history has no options")
        if any(right > total for right, total in self.base_counts):
            raise ValueError("more base test images are right than there are")
        if self.n_base > len(self.classes) or len(self.base_counts) != self.n_base:
            raise ValueError("base classes and their counts disagree")
        if len(self.supports) != len(self.classes) - self.n_base:
            raise ValueError("novel classes and their supports disagree")
        return self
