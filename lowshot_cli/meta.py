"""What a checkpoint says about itself besides tensors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dataset: str
    dataset_hash: str
    class_order_seed: int
    split: str
    holdout_per_class: int = Field(ge=1)
    base_counts: tuple[tuple[int, int], ...]
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
        if self.n_base > len(self.classes) or len(self.base_counts) != self.n_base:
            raise ValueError("base classes and their counts disagree")
        if len(self.supports) != len(self.classes) - self.n_base:
            raise ValueError("novel classes and their supports disagree")
        return self
