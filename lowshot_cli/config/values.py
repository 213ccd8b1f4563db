"""Types of settings: their choices, their ranges, and the forms in which people write them."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from lowshot_cli.config.backbone_names import meant_backbone
from lowshot_cli.config.methods import imprint_method, sweep_method
from lowshot_cli.errors import UsageError

DatasetName = Literal["cifar100", "folder", "glyphs", "none"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
Split = Literal["seeded", "alphabetical"]
Scope = Literal["head", "full"]
Loss = Literal["adaptive", "plain"]
FreezeBase = Literal["always", "alternate", "never"]
# How any picture becomes a square, and Pillow's filters, as torchvision and timm name them.
Fit = Literal["crop", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
ExportFormat = Literal["onnx", "torch", "state-dict", "all"]
Executor = Literal["local", "ray"]
ImprintMethod = Annotated[str, AfterValidator(imprint_method)]
SweepMethod = Annotated[str, AfterValidator(sweep_method)]

DEFAULT_DATASET = "cifar100"
# The default backbone, and that of people's own photos.
DEFAULT_BACKBONE, PHOTO_BACKBONE = "resnet9", "efficientnet-lite0"
# Support images of a class of a dataset.
DEFAULT_SHOTS = 5
# The package's own backbones, those that come with weights, and libraries whose models are named
# `library:model`.
BACKBONES = ("resnet9", "resnet18")
PRETRAINED = ("efficientnet-lite0", "efficientnet-lite2")
LIBRARIES = ("torchvision", "timm")
# Dimensions of the embedding of the package's own backbones.
EMBEDDING_SIZE = 64
# Stands for a library's published weights, in place of a file.
DEFAULT_WEIGHTS = "DEFAULT"
# Stands for the names of ImageNet's 1,000 classes, in place of a file.
IMAGENET = "imagenet"
# Percent of hold-out images that may be taken for unknown ones, by default.
FALSE_ALARM = 5.0
# Checkpoints of a work folder, each made from the previous one.
CHAIN = ("base", "imprinted", "finetuned")


# Characters of a class's name, as long as folder names may be.
_LONGEST_NAME = 255
# A number, whether it is allowed or not; a class of such a name is put in quotes.
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")


def _split_commas(value: object) -> object:
    """`1,5,10` on the command line is the list that YAML would write as [1, 5, 10].

    A name that has a comma, or is a number, is put in double quotes: `"red, blue",green`.
    """
    if not isinstance(value, str):
        return value
    try:
        line = re.sub(r'"\s+,', '",', value.strip())  # the reader takes spaces before a quote alone
        (parts,) = csv.reader([line], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise ValueError("has a quote that is not closed, or a line break") from None
    return tuple(part.strip() for part in parts if part.strip())


def _names(value: object) -> object:
    for name in value if isinstance(value, list | tuple) else ():
        if not isinstance(name, str):
            raise ValueError(f"names are text, so put quotes around {_as_typed(name)}")
    return value


def _as_typed(value: object) -> str:
    return "yes, no, on, off, true and false" if isinstance(value, bool) else repr(value)


def _one_or_names(value: object) -> object:
    """One name stands for a list of it."""
    return (value,) if isinstance(value, str) else _names(value)


def _names_or_number(value: object) -> object:
    """`40` is a number of classes, `apple,bus` a list of names; YAML may give either directly."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return _split_commas(_names(value))


def _all_or_names(value: object) -> object:
    return "all" if value == "all" else _names_or_number(value)


def _none_or_points(value: object) -> object:
    """`none` in any case, in YAML or on the command line, means bias 0."""
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return value and "none"
    try:
        points = float(value) if isinstance(value, str | int | float) else -1.0
    except (ValueError, OverflowError):
        points = -1.0
    if isinstance(value, bool) or not 0 <= points <= 100:
        raise ValueError("should be points from 0 to 100, or none")
    return points


def _channels(value: object) -> object:
    """`0.485,0.456,0.406` of red, green and blue; one number stands for all three."""
    parts = _split_commas(value)
    parts = parts if isinstance(parts, list | tuple) else (parts,)
    try:
        numbers = [float(part) for part in parts]
    except (ValueError, TypeError, OverflowError):
        numbers = []
    if len(numbers) not in (1, 3) or not all(0 <= number <= 1 for number in numbers):
        raise ValueError("should be three numbers from 0 to 1, of red, green and blue")
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def _positive(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if not min(values):
        raise ValueError("should be above 0")
    return values


def storable(value: str) -> str:
    """Check that a checkpoint can hold the text.

    Raises:
        ValueError: it cannot; the message says why.
    """
    if "\0" in value or not value.strip():
        raise ValueError("should not be empty or contain NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("should be valid UTF-8") from None
    return value


def normal_name(value: str) -> str:
    """A class's name in the one form in which names are kept and compared.

    Accented letters can be encoded in several ways that look alike; Unicode's normal form C, the
    composed one, is what keyboards write.
    """
    return unicodedata.normalize("NFC", value)


def class_name(value: str) -> str:
    """The form in which a class's name is kept, of one that a person gave.

    Raises:
        ValueError: it cannot be the name of a class; the message says why.
    """
    if len(storable(value)) > _LONGEST_NAME:
        raise ValueError(f"should have at most {_LONGEST_NAME} characters, not {len(value)}")
    return normal_name(value)


def user_path(value: str | Path) -> Path:
    """A path as a person wrote it, with `~` for a home folder."""
    try:
        return Path(value).expanduser()
    except RuntimeError:  # no such user
        return Path(value)


def _not_empty(value: object) -> object:
    if value == "":  # it would be the current folder
        raise ValueError("should not be empty")
    return value


def given_path(value: str | Path) -> Path:
    """A path that was given from Python, with `~` for a home folder.

    Raises:
        UsageError: it is empty, which is not the current folder.
    """
    if not str(value):
        raise UsageError("a path is empty", "name a file or folder")
    return user_path(value)


def _path(value: Path) -> Path:
    value = user_path(value)
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("should be valid UTF-8") from None
    if "\0" in str(value):
        raise ValueError("should not contain NUL")
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("needs at least one entry")
    if len(set(values)) != len(values):
        raise ValueError("has an entry twice")
    return values


def _backbone(value: str) -> str:
    """Check the form of the name; a library's model is looked up when it is built."""
    library, colon, model = value.partition(":")
    own = (*BACKBONES, *PRETRAINED)
    if value in own or (colon and library in LIBRARIES and model):
        return value
    meant = meant_backbone(value, own, LIBRARIES)
    choices = ", ".join([*own, *(f"{name}:NAME" for name in LIBRARIES)])
    hint = f" (did you mean {meant!r}?)" if meant else ""
    raise ValueError(f"should be one of {choices}{hint}")


MaxForgetting = Annotated[
    Literal["none"] | Annotated[float, Field(ge=0, le=100)], BeforeValidator(_none_or_points)
]
Count = Annotated[int, Field(gt=0)]
StorableText = Annotated[str, AfterValidator(storable)]
ClassName = Annotated[str, AfterValidator(class_name)]
FilePath = Annotated[Path, AfterValidator(_path), BeforeValidator(_not_empty)]
Names = Annotated[tuple[ClassName, ...], AfterValidator(_distinct)]
NewClasses = Annotated[Names, BeforeValidator(_one_or_names)]
Shots = Annotated[tuple[Count, ...], AfterValidator(_distinct), BeforeValidator(_split_commas)]
Methods = Annotated[
    tuple[SweepMethod, ...], AfterValidator(_distinct), BeforeValidator(_split_commas)
]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
BaseClasses = Annotated[Count | Names | None, BeforeValidator(_names_or_number)]
NovelClasses = Annotated[Literal["all"] | Count | Names, BeforeValidator(_all_or_names)]
BackboneName = Annotated[str, AfterValidator(_backbone)]
Means = Annotated[tuple[float, float, float], BeforeValidator(_channels)]
Deviations = Annotated[Means, AfterValidator(_positive)]
Side = Annotated[int, Field(ge=8, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
