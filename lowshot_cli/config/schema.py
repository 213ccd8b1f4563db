"""Everything a run can be told, as frozen models: defaults < YAML < flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from lowshot_cli.config.methods import (
    IMPRINT_METHODS,
    imprint_method,
    sweep_method,
)
from lowshot_cli.errors import did_you_mean

DatasetName = Literal["cifar100", "folder", "glyphs", "none"]


Device = Literal["auto", "cpu", "cuda"]


Precision = Literal["auto", "fp32", "bf16"]


Split = Literal["seeded", "alphabetical"]


DEFAULT_DATASET = "cifar100"
# Support images of a class of a dataset.
DEFAULT_SHOTS = 5


# Headings of the help.
COMMON = "Common options"
BASE_CLASSES, BACKBONE, TRAINING = "Base classes", "Backbone", "Training"
NEW_CLASSES, OPERATING_POINT, TRIALS = "New classes", "Operating point", "Which trials"


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


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """How a setting is shown to people, and given on the command line.

    Attributes:
        panel: heading of the help under which its flag stands; None for a setting without a flag.
        flag: its name on the command line, if other than the field's.
        metavar: what stands for its value in the help, if other than the type's.
        unset: what the default means, in words, where its value does not say so.
        env: environment variable that gives it as well.
        repeat: whether the flag is repeated for several values, which else stand between commas.
    """

    panel: str | None = None
    flag: str | None = None
    metavar: str | None = None
    unset: str | None = None
    env: str | None = None
    repeat: bool = False


def _setting(default: Any, description: str, panel: str | None = None, **how: Any) -> Any:
    """A field with all that is said of it anywhere: `description` is one sentence with the unit."""
    extra: dict[str, Any] = {"presentation": Presentation(panel=panel, **how)}
    return Field(default, description=description, json_schema_extra=extra)


def presentation(field: FieldInfo) -> Presentation:
    """How a setting is shown."""
    extra = field.json_schema_extra
    found: Any = extra.get("presentation") if isinstance(extra, dict) else None
    return found if isinstance(found, Presentation) else Presentation()


class TrainBaseConfig(Section):
    """How the base model is trained."""

    classes: Annotated[Count | Names | None, BeforeValidator(_names_or_number)] = _setting(
        None,
        "Base classes: how many, or names with commas between, such as apple,bus.",
        BASE_CLASSES,
        metavar="N|NAMES",
        unset="40, all of a folder",
    )
    split: Split = _setting("seeded", "Order in which `--classes N` counts.", BASE_CLASSES)
    class_order_seed: Annotated[int, Field(ge=0, lt=2**32)] = _setting(
        1993, "Whole number that decides the seeded order.", BASE_CLASSES
    )
    holdout: Count = _setting(
        50, "Training images of each base class that are held out.", BASE_CLASSES
    )
    backbone: Annotated[str, AfterValidator(_backbone)] = _setting(
        "resnet9",
        "Network: resnet9, resnet18, torchvision:NAME or timm:NAME, such as torchvision:resnet50.",
        BACKBONE,
        metavar="NAME",
    )
    width: Count = _setting(32, "Channels of the first stage of resnet9.", BACKBONE)
    embedding_size: Count | None = _setting(
        None,
        "Dimensions of the trained part of the embedding.",
        BACKBONE,
        unset="64, or the library model's own",
    )
    weights: StorableText | None = _setting(
        None,
        "Weights to start from: DEFAULT for the library's, or a file, such as model.pth "
        "(.safetensors, .pth or .pt). Images for a torchvision or timm model are then normalised "
        "as it expects.",
        BACKBONE,
        metavar="DEFAULT|FILE",
        unset="random",
    )
    input_size: Annotated[int, Field(ge=8, le=1024)] | None = _setting(
        None,
        "Side in pixels to which the network resizes images.",
        BACKBONE,
        unset="not resized; with weights, what they expect",
    )
    epochs: Annotated[int, Field(ge=0)] = _setting(
        54,
        "Epochs, passes over the training images; 0 imprints the base classes instead.",
        TRAINING,
    )
    batch_size: Annotated[int, Field(ge=2)] = _setting(128, "Images in a step.", TRAINING)
    lr: Rate = _setting(0.2, "Peak learning rate.", TRAINING)
    backbone_lr: Rate | None = _setting(
        None, "Peak learning rate of the backbone.", TRAINING, unset="that of --lr"
    )
    freeze_backbone: bool = _setting(
        False, "Train only the proxies and the projection before them.", BACKBONE
    )
    weight_decay: Amount = _setting(5e-4, "Weight decay.")
    warmup: Annotated[float, Field(gt=0, lt=1)] = _setting(
        0.2, "Share of the steps in which the learning rate rises to its peak."
    )
    mixup: Amount = _setting(
        0.2, "Parameter of the beta distribution that mixes pairs of images; 0 mixes none."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = _setting(
        0.0, "Probability that is taken from the true class and given to all alike."
    )
    crop: Annotated[int, Field(ge=0)] = _setting(3, "Largest random shift of an image, in pixels.")
    flip: bool | None = _setting(
        None, "Whether images are mirrored at random.", unset="as fits the dataset"
    )
    cutout: Annotated[int, Field(ge=0)] = _setting(
        8, "Side of the square that is erased at a random place, in pixels; 0 erases none."
    )
    rotation: Annotated[float, Field(ge=0, le=1)] = _setting(
        0.0, "Share of a batch that is turned by a quarter, half or three quarters."
    )
    precision: Precision = _setting(
        "auto", "Arithmetic of training; auto is bf16 where that is faster.", TRAINING
    )

    @model_validator(mode="before")
    @classmethod
    def _own_size(cls, values: Any) -> Any:
        """The package's own backbones have a size by default, so a dump says which."""
        if not isinstance(values, dict) or values.get("embedding_size") is not None:
            return values
        if values.get("backbone", "resnet9") not in BACKBONES:
            return values
        return {**values, "embedding_size": EMBEDDING_SIZE}


def _budget(unset: str) -> Any:
    return _setting(
        None,
        "Points of base accuracy that the bias of novel classes may cost, such as 0.5; `none` "
        "means no bias.",
        OPERATING_POINT,
        metavar="POINTS|none",
        unset=unset,
    )


class ImprintConfig(Section):
    """How new classes are added."""

    classes: Names | None = _setting(
        None,
        'Class to add, such as apple or "my mug"; repeat it for several.',
        NEW_CLASSES,
        flag="--class",
        metavar="NAME",
        repeat=True,
    )
    shots: Count | None = _setting(
        None,
        "Support images of each class.",
        NEW_CLASSES,
        unset=f"{DEFAULT_SHOTS}; all of your own photos",
    )
    method: ImprintMethod = _setting(
        "whitened",
        f"How the new proxy is made: {', '.join(IMPRINT_METHODS)}.",
        NEW_CLASSES,
        metavar="METHOD",
    )
    views: Count = _setting(10, "Augmented views of each image that `augmented` averages.")
    max_forgetting: MaxForgetting | None = _budget("2; none for imprint and random")


class FinetuneConfig(Section):
    """How imprinted proxies are sharpened."""

    scope: Scope = _setting("head", "Train the proxies, or the whole network.", TRAINING)
    loss: Loss = _setting(
        "adaptive", "Weigh base and novel classes by their images, or all images alike.", TRAINING
    )
    novel_weight: Rate | None = _setting(
        None,
        "Fixed weight of a novel sample, that of a base sample being 1, such as 40.",
        TRAINING,
        unset="from the batches",
    )
    freeze_base: FreezeBase | None = _setting(
        None,
        "When the proxies of base classes stay as they are.",
        TRAINING,
        unset="always for head, alternate for full",
    )
    steps: Count = _setting(100, "Optimiser steps of `--scope head`.", TRAINING)
    head_lr: Rate = _setting(0.01, "Learning rate of `scope: head`.")
    prior_shots: Amount = _setting(
        40.0, "How many support images the proxy at the start is worth against those at hand."
    )
    epochs: Count = _setting(2, "Epochs of `--scope full`.", TRAINING)
    lr: Rate = _setting(0.001, "Learning rate of `--scope full`.", TRAINING)
    batch_size: Annotated[int, Field(ge=2)] = _setting(128, "Images in a step.", TRAINING)
    distil: Amount = _setting(
        0.0,
        "Weight of the old model's opinion of base classes with `scope: full`; 0 leaves it out.",
    )
    precision: Precision = _setting(
        "auto", "Arithmetic of `scope: full`; auto is bf16 where that is faster."
    )
    max_forgetting: MaxForgetting | None = _budget("2")

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
    """Which trials are run: every novel class x shots x trials x methods."""

    trials: Count = _setting(20, "Trials of each class and number of shots.", TRIALS)
    shots: Shots = _setting(
        (1, 5, 10, 20),
        "Numbers of support images, with commas between.",
        TRIALS,
        metavar="N,N,...",
    )
    novel: Annotated[Literal["all"] | Count | Names, BeforeValidator(_all_or_names)] = _setting(
        "all",
        "Novel classes: all, a number to sample, or names, such as apple,bus.",
        TRIALS,
        metavar="all|N|NAMES",
    )
    methods: Methods = _setting(
        ("imprint", "random", "whitened", "finetune-head"),
        "Methods, with commas between: those of `imprint`, and nearest, proxies, finetune-head, "
        "finetune-full.",
        TRIALS,
        flag="--method",
        metavar="METHODS",
    )
    ways: Count = _setting(1, "Novel classes that a trial adds together.", TRIALS)
    sessions: Count | None = _setting(
        None,
        "Sessions of a sequence, each of which adds `ways` more classes in class order.",
        unset="no sequence",
    )
    drop_duplicates: bool = _setting(
        False, "Leave out test images that resemble a training image.", TRIALS
    )
    max_forgetting: MaxForgetting | None = _budget("2; none for imprint and random")
    train_base: bool = _setting(
        False, "Train the base model first, as `train_base` says, where the work folder has none."
    )


class Config(Section):
    """The whole config; each command reads the common part and its own section."""

    dataset: DatasetName | None = _setting(
        None,
        "Where images come from.",
        COMMON,
        unset=f"the model's, or {DEFAULT_DATASET}",
    )
    data_dir: FilePath | None = _setting(
        None,
        "Folder that holds the dataset, or a .zip of one, such as photos/.",
        COMMON,
        metavar="FOLDER|ZIP",
        unset="the user's data folder",
        env="LOWSHOT_DATA",
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = _setting(
        None, "Side of the images in pixels.", COMMON, unset="the dataset's"
    )
    skip_bad: bool = _setting(False, "Leave out image files that cannot be read.", COMMON)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = _setting(
        0, "Whole number that decides every draw.", COMMON
    )
    device: Device = _setting("auto", "Where to compute; auto is the GPU if there is one.", COMMON)
    workdir: FilePath = _setting(
        Path("runs"),
        "Folder of the checkpoints and runs.",
        COMMON,
        metavar="FOLDER",
        env="LOWSHOT_WORKDIR",
    )
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
        """The resolved config as YAML that `--config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def on_dataset(self, name: str) -> Config:
        """The same config with this dataset where it names none."""
        return self if self.dataset else self.model_copy(update={"dataset": name})


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
