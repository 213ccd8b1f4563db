"""Everything a run can be told, as frozen models: defaults < YAML < flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lowshot_cli.config.methods import imprint_method, sweep_method
from lowshot_cli.errors import did_you_mean

DatasetName = Literal["cifar100", "folder", "glyphs", "none"]


Device = Literal["auto", "cpu", "cuda"]


Precision = Literal["auto", "fp32", "bf16"]


Split = Literal["seeded", "alphabetical"]


# The package's own backbones, and the libraries whose models are named `library:model`.
BACKBONES = ("resnet9", "resnet18")


LIBRARIES = ("torchvision", "timm")


# Dimensions of the embedding of the package's own backbones.
EMBEDDING_SIZE = 64


# Percent of the hold-out that may be taken for unknown images.
FALSE_ALARM = 5.0


# Published weights of a library's model, where a file could be named.
DEFAULT_WEIGHTS = "DEFAULT"


ImprintMethod = Annotated[str, AfterValidator(imprint_method)]


SweepMethod = Annotated[str, AfterValidator(sweep_method)]


Scope = Literal["head", "full"]


Loss = Literal["adaptive", "plain"]


FreezeBase = Literal["always", "alternate", "never"]


# Checkpoints of a work folder, each made from the one before.
CHAIN = ("base", "imprinted", "finetuned")


ExportFormat = Literal["onnx", "torch", "all"]


Executor = Literal["local", "ray"]


def _split_commas(value: object) -> object:
    """`1,5,10` on the command line is the list that YAML would write as [1, 5, 10]."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _names_or_number(value: object) -> object:
    """`40` is a number of classes, `apple,bus` a list of names; YAML may give either directly."""
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    return _split_commas(value)


def _all_or_names(value: object) -> object:
    return "all" if value == "all" else _names_or_number(value)


def _none_or_points(value: object) -> object:
    """`none` is a word in YAML and on the command line, so both ways of writing it mean bias 0."""
    return value.lower() if isinstance(value, str) else value


def storable(value: str) -> str:
    """Text that a checkpoint can hold.

    Raises:
        ValueError: it cannot, and why.
    """
    if "\0" in value or not value.strip():
        raise ValueError("should not be empty or hold NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("should be valid UTF-8") from None
    return value


def _path(value: Path) -> Path:
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("should be valid UTF-8") from None
    if "\0" in str(value):
        raise ValueError("should not hold NUL")
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("needs at least one entry")
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


def _backbone(value: str) -> str:
    """Models of a library are looked up where the library is at hand."""
    library, colon, model = value.partition(":")
    if value in BACKBONES or (colon and library in LIBRARIES and model):
        return value
    known = [*BACKBONES, *(f"{name}:{model or value}" for name in LIBRARIES)]
    hint = did_you_mean(value, known)
    choices = ", ".join([*BACKBONES, *(f"{name}:NAME" for name in LIBRARIES)])
    raise ValueError(f"should be one of {choices}" + (f" ({hint})" if hint else ""))


MaxForgetting = Annotated[
    Literal["none"] | Annotated[float, Field(ge=0, le=100)], BeforeValidator(_none_or_points)
]


Count = Annotated[int, Field(gt=0)]


StorableText = Annotated[str, AfterValidator(storable)]


FilePath = Annotated[Path, AfterValidator(_path)]


Names = Annotated[tuple[StorableText, ...], AfterValidator(_distinct)]


Shots = Annotated[tuple[Count, ...], AfterValidator(_distinct), BeforeValidator(_split_commas)]


Methods = Annotated[
    tuple[SweepMethod, ...], AfterValidator(_distinct), BeforeValidator(_split_commas)
]


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen part of the config in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainBaseConfig(Section):
    """How the base model is trained.

    `crop` and `cutout` in pixels, `lr` at the peak, `rotation` the share of a batch that is turned.
    `weights` is `DEFAULT` or a file, `input_size` the side in pixels that images are resized to;
    without an `embedding_size` a library's model keeps its own. `epochs: 0` imprints the base
    classes. `backbone_lr` is `lr` where it is not given.
    """

    classes: Annotated[Count | Names | None, BeforeValidator(_names_or_number)] = None
    split: Split = "seeded"
    class_order_seed: Annotated[int, Field(ge=0, lt=2**32)] = 1993
    holdout: Count = 50
    backbone: Annotated[str, AfterValidator(_backbone)] = "resnet9"
    width: Count = 32
    embedding_size: Count | None = None
    weights: StorableText | None = None
    input_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    epochs: Annotated[int, Field(ge=0)] = 54
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Rate = 0.2
    backbone_lr: Rate | None = None
    freeze_backbone: bool = False
    weight_decay: Amount = 5e-4
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2
    mixup: Amount = 0.2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    crop: Annotated[int, Field(ge=0)] = 3
    flip: bool | None = None
    cutout: Annotated[int, Field(ge=0)] = 8
    rotation: Annotated[float, Field(ge=0, le=1)] = 0.0
    precision: Precision = "auto"

    @model_validator(mode="before")
    @classmethod
    def _own_size(cls, values: Any) -> Any:
        """The package's own backbones have a size by default, so a dump says which."""
        if not isinstance(values, dict) or values.get("embedding_size") is not None:
            return values
        if values.get("backbone", "resnet9") not in BACKBONES:
            return values
        return {**values, "embedding_size": EMBEDDING_SIZE}


class ImprintConfig(Section):
    """How new classes are added. `max_forgetting` in points of base hold-out accuracy."""

    classes: Names | None = None
    shots: Count = 5
    method: ImprintMethod = "whitened"
    views: Count = 10
    max_forgetting: MaxForgetting | None = None


class FinetuneConfig(Section):
    """How imprinted rows are sharpened. `steps` of the head, `epochs` of the whole network.

    `prior_shots` says how many shots the row at the start is worth. `distil` weighs the old model's
    opinion of base classes while the whole network is trained, 0 leaving it out.
    """

    scope: Scope = "head"
    loss: Loss = "adaptive"
    novel_weight: Rate | None = None
    freeze_base: FreezeBase | None = None
    steps: Count = 100
    head_lr: Rate = 0.01
    prior_shots: Amount = 40.0
    epochs: Count = 2
    lr: Rate = 0.001
    batch_size: Annotated[int, Field(ge=2)] = 128
    distil: Amount = 0.0
    precision: Precision = "auto"
    max_forgetting: MaxForgetting | None = None

    @model_validator(mode="after")
    def _one_weighting(self) -> Self:
        if self.loss == "plain" and self.novel_weight is not None:
            raise ValueError("novel_weight belongs to loss: adaptive, not plain")
        return self

    @property
    def freezing(self) -> FreezeBase:
        """What `freeze_base` means where it is not given: always for the head, else alternate."""
        return self.freeze_base or ("always" if self.scope == "head" else "alternate")


class SweepConfig(Section):
    """Which trials are run: every novel class x shots x trials x methods.

    `drop_duplicates` leaves out test images that resemble a training image. With `sessions`, a
    trial adds `ways` classes in each of that many sessions, in class order.
    """

    trials: Count = 20
    shots: Shots = (1, 5, 10, 20)
    novel: Annotated[Literal["all"] | Count | Names, BeforeValidator(_all_or_names)] = "all"
    methods: Methods = ("imprint", "random", "whitened", "finetune-head")
    ways: Count = 1
    sessions: Count | None = None
    drop_duplicates: bool = False
    max_forgetting: MaxForgetting | None = None


class Config(Section):
    """The whole config; each command reads the common part and its own section."""

    dataset: DatasetName = "cifar100"
    data_dir: FilePath | None = None
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    skip_bad: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Device = "auto"
    workdir: FilePath = Path("runs")
    train_base: TrainBaseConfig = TrainBaseConfig()
    imprint: ImprintConfig = ImprintConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    sweep: SweepConfig = SweepConfig()

    @property
    def data_folder(self) -> Path:
        """Where the dataset lies: `data_dir`, or the user's data folder."""
        return self.data_dir or Path(platformdirs.user_data_dir("lowshot", appauthor=False))

    def portable(self) -> dict[str, Any]:
        """The config as JSON-ready values without folders and device, which differ by machine."""
        values = self.model_dump(mode="json", exclude={"data_dir", "workdir", "device"})
        if weights := values["train_base"]["weights"]:
            values["train_base"]["weights"] = Path(weights).name
        return values

    def to_yaml(self) -> str:
        """The resolved config as YAML that `--config` reads back.

        `train_base` stands in it only where it was given, because a sweep trains where it stands.
        """
        left_out = set() if "train_base" in self.model_fields_set else {"train_base"}
        values = self.model_dump(mode="json", exclude=left_out)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two dumped configs differ.

    What an older version did not know of was off.
    """
    lines: list[str] = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, f"{prefix}{key}.")
        elif before != after and (key in old or after):
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines
