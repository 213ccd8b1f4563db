"""Everything in a checkpoint that is not a tensor; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lowshot_cli.config.values import normal_name
from lowshot_cli.data.framing import CROP, Framing
from lowshot_cli.errors import CheckpointError, one_line
from lowshot_cli.storage.header import read_header

# The key of `Meta`, as JSON, in the metadata of the safetensors file.
METADATA_KEY = "lowshot"

# The command that makes each stage of a work folder.
MAKERS = {"base": "train-base", "imprinted": "imprint", "finetuned": "finetune"}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SupportRecord(_Record):
    """Where a novel class's support images came from; `indices` point into the training split."""

    method: str
    indices: tuple[int, ...]
    files: tuple[str, ...] | None
    pixel_hashes: tuple[str, ...]


class Meta(_Record):
    """A checkpoint's metadata.

    `base_counts` are (right, total) of each base class's test images under the pristine base model;
    None since a base class was removed, as images that were taken for it may be right without it.
    Images have `image_size` pixels a side, which the backbone resizes to `input_size`, if any.
    `renamed` maps the name of a class to the one it has in the dataset, if the two differ.
    `max_forgetting` is the budget in points of base accuracy for which the bias of the novel
    classes was solved, None if there is none; in format 1 only the history records it.
    A `linear` head, which format 3 introduced, was made from embeddings of base images; one that is
    `cosine` was trained with the network, or adopted with it.
    `listing` numbers the rules by which the dataset's image files were listed.
    The head of an `adopted` model, which format 4 introduced, is a classifier as it was found; it
    reads the features of the network as they are.
    `framing` is how photos become squares of `image_size`; one other than the default needs
    format 4, which earlier versions refuse, as they would crop.
    """

    format: Literal[1, 2, 3, 4] = 2
    head: Literal["cosine", "linear"] = "cosine"
    adopted: bool = False
    classes: tuple[str, ...]
    n_base: int = Field(ge=1)
    backbone: str
    width: int = Field(ge=1, le=4096)
    embedding_size: int = Field(ge=1, le=65536)
    mirror: bool
    image_size: int = Field(ge=8, le=1024)
    input_size: int | None = Field(default=None, ge=8, le=1024)
    framing: Framing = CROP
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    dataset: str
    dataset_hash: str
    class_order_seed: int
    split: str
    holdout_per_class: int = Field(ge=1)
    base_counts: tuple[tuple[Count, Count], ...] | None
    max_forgetting: Annotated[float, Field(ge=0, le=100)] | None = None
    parent: str | None = None
    config: dict[str, Any]
    version: str
    listing: Literal[1, 2] = 1
    history: tuple[dict[str, Any], ...]
    supports: tuple[SupportRecord, ...] = ()
    renamed: dict[str, str] = {}

    @property
    def base_classes(self) -> tuple[str, ...]:
        """Names of the base classes in head order."""
        return self.classes[: self.n_base]

    @property
    def novel_classes(self) -> tuple[str, ...]:
        """Names of the novel classes in head order."""
        return self.classes[self.n_base :]

    @property
    def base_changed(self) -> bool:
        """Whether fine-tuning may have changed network or base proxies since the base training."""
        return any(step.get("command") == "finetune" and _frees_base(step) for step in self.history)

    @field_validator("classes")
    @classmethod
    def _in_normal_form(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        normal = tuple(map(normal_name, names))
        # Older versions told apart what looks alike.
        return normal if len(set(normal)) == len(normal) else names

    @field_validator("renamed")
    @classmethod
    def _names_in_normal_form(cls, renamed: dict[str, str]) -> dict[str, str]:
        return {normal_name(name): normal_name(own) for name, own in renamed.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Meta:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class name occurs twice")
        if not isinstance(self.config.get("train_base"), dict):
            raise ValueError("the config of the base model is missing")
        if not all(isinstance(step.get("options"), dict) for step in self.history):
            raise ValueError("a step of the history has no options")
        if (self.framing != CROP or self.adopted) and self.format < 4:
            raise ValueError("a framing of its own or an adopted head needs format 4")
        if self.adopted and (self.head != "linear" or self.mirror):
            raise ValueError("an adopted head is linear, and sees one view")
        counts = self.base_counts
        if counts is not None and any(right > total for right, total in counts):
            raise ValueError("more base test images are right than there are")
        n_counts = self.n_base if counts is None else len(counts)
        if self.n_base > len(self.classes) or n_counts != self.n_base:
            raise ValueError("base classes and their counts disagree")
        if len(self.supports) != len(self.classes) - self.n_base:
            raise ValueError("novel classes and their supports disagree")
        return self


def _frees_base(step: Mapping[str, Any]) -> bool:
    options = step["options"]
    always = options.get("freeze_base") in (None, "always")
    return not (options.get("scope") == "head" and always)


def read_metadata(path: Path) -> Meta:
    """A checkpoint's metadata, from its header alone.

    Raises:
        CheckpointError: the file is absent, its header is damaged, or it is not a checkpoint.
    """
    if not path.is_file():
        raise absent(path)
    try:
        metadata = read_header(path).get("__metadata__")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return parse_metadata(path, metadata if isinstance(metadata, dict) else {})


def parse_metadata(path: Path, metadata: Mapping[str, Any]) -> Meta:
    """A checkpoint's metadata, from those of its safetensors file.

    Raises:
        CheckpointError: they are missing or broken.
    """
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of lowshot's", how_to_make(path)
        )
    try:
        return Meta.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(
            f"{path} has broken metadata: {where}: {first['msg']}", how_to_make(path)
        ) from None
    except ValueError as error:  # such as text that is not UTF-8
        raise CheckpointError(
            f"{path} has broken metadata: {one_line(error)}", how_to_make(path)
        ) from None


def absent(path: Path) -> CheckpointError:
    """The error that there is no checkpoint at a path."""
    if path.is_dir():
        return CheckpointError(
            f"{path} is a folder, not a checkpoint", "name a file in it, such as base.safetensors"
        )
    return CheckpointError(f"no checkpoint at {path}", how_to_make(path))


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error that a file is not a checkpoint, or a damaged one."""
    if path.is_dir():
        return absent(path)
    # One that may not be read may be whole, so nothing is advised that would replace it.
    is_denied = isinstance(error, PermissionError)
    hint = "check your permissions there" if is_denied else how_to_make(path)
    return CheckpointError(f"{path} is not a readable checkpoint: {one_line(error)}", hint)


def how_to_make(path: Path) -> str:
    """The command that makes a checkpoint of this name, as a hint."""
    maker = MAKERS.get(path.stem)
    return f"`lowshot {maker}` makes it" if maker else "check the path"
