"""All settings, as frozen models; they are resolved as defaults < YAML < flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import platformdirs
import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from lowshot_cli.config.methods import IMPRINT_METHODS, SWEEP_ONLY, UNBIASED
from lowshot_cli.config.presentation import (
    COMMON,
    NEW_CLASSES,
    OPERATING_POINT,
    TRAINING,
    TRIALS,
    setting,
)
from lowshot_cli.config.section import Section
from lowshot_cli.config.train_base import TrainBaseConfig
from lowshot_cli.config.values import (
    DEFAULT_DATASET,
    DEFAULT_SHOTS,
    PHOTO_BACKBONE,
    Amount,
    Count,
    DatasetName,
    Device,
    FilePath,
    Fit,
    FreezeBase,
    ImprintMethod,
    Loss,
    MaxForgetting,
    Methods,
    NewClasses,
    NovelClasses,
    Precision,
    Rate,
    Scope,
    Seed,
    Shots,
    Side,
)


def _budget(unset: str) -> Any:
    return setting(
        None,
        "Points of base accuracy that the bias of novel classes may cost, such as 0.5; `none` "
        "means no bias.",
        OPERATING_POINT,
        metavar="POINTS|none",
        unset=unset,
    )


class ImprintConfig(Section):
    """How new classes are added."""

    classes: NewClasses | None = setting(
        None,
        'Class to add, such as apple or "my mug"; repeat it for several.',
        NEW_CLASSES,
        flag="--class",
        metavar="NAME",
        repeat=True,
    )
    shots: Count | None = setting(
        None,
        "Support images of each class.",
        NEW_CLASSES,
        unset=f"{DEFAULT_SHOTS}; all of your own photos",
    )
    method: ImprintMethod = setting(
        "whitened",
        f"How the new proxy is made: {', '.join(IMPRINT_METHODS)}.",
        NEW_CLASSES,
        metavar="METHOD",
    )
    views: Count = setting(10, "Augmented views of each image that `augmented` averages.")
    max_forgetting: MaxForgetting | None = _budget(f"2; none for {' and '.join(UNBIASED)}")


class FinetuneConfig(Section):
    """How imprinted classes are fine-tuned."""

    scope: Scope = setting("head", "Train the proxies, or the whole network.", TRAINING)
    loss: Loss = setting(
        "adaptive",
        "Weigh all classes alike (adaptive), or all images alike (plain).",
        TRAINING,
    )
    novel_weight: Rate | None = setting(
        None,
        "Fixed weight of a novel sample, such as 40; a base sample has weight 1.",
        TRAINING,
        unset="computed from the samples",
    )
    freeze_base: FreezeBase | None = setting(
        None,
        "When the proxies of base classes stay fixed.",
        TRAINING,
        unset="always for head, alternate for full",
    )
    steps: Count = setting(100, "Optimiser steps of `--scope head`.", TRAINING)
    head_lr: Rate | None = setting(
        None, "Learning rate of `scope: head`.", unset="0.01; 0.0001 beside linear discriminants"
    )
    prior_shots: Amount = setting(
        40.0, "Weight of the starting proxy against the support images, in numbers of images."
    )
    epochs: Count = setting(2, "Epochs of `--scope full`.", TRAINING)
    lr: Rate = setting(0.001, "Learning rate of `--scope full`.", TRAINING)
    batch_size: Annotated[int, Field(ge=2)] = setting(128, "Images in a step.", TRAINING)
    distil: Amount = setting(
        0.0,
        "Weight of distillation from the old model on base classes with `scope: full`; 0 is off.",
    )
    precision: Precision = setting(
        "auto", "Arithmetic of `scope: full`; auto is bf16 where that is faster."
    )
    max_forgetting: MaxForgetting | None = _budget("2")

    @model_validator(mode="after")
    def _one_weighting(self) -> Self:
        if self.loss == "plain" and self.novel_weight is not None:
            raise ValueError("novel_weight needs loss: adaptive, not plain")
        return self

    @property
    def freezing(self) -> FreezeBase:
        """`freeze_base`, or its default: always for the head, alternate for the whole network."""
        return self.freeze_base or ("always" if self.scope == "head" else "alternate")


class SweepConfig(Section):
    """Which trials to run: every novel class x shots x trials x methods."""

    trials: Count = setting(20, "Trials of each class and number of shots.", TRIALS)
    shots: Shots = setting(
        (1, 5, 10, 20),
        "Numbers of support images, separated by commas.",
        TRIALS,
        metavar="N,N,...",
    )
    novel: NovelClasses = setting(
        "all",
        "Novel classes: all, a number to sample, or names, such as apple,bus.",
        TRIALS,
        metavar="all|N|NAMES",
    )
    methods: Methods = setting(
        ("imprint", "random", "whitened", "finetune-head"),
        f"Methods, separated by commas: those of `imprint`, and {', '.join(SWEEP_ONLY)}.",
        TRIALS,
        flag="--method",
        metavar="METHODS",
    )
    ways: Count = setting(1, "Novel classes that a trial adds together.", TRIALS)
    sessions: Count | None = setting(
        None,
        "Sessions of a sequence; each adds `ways` more classes, in class order.",
        unset="no sequence",
    )
    drop_duplicates: bool = setting(
        False, "Leave out test images that resemble a training image.", TRIALS
    )
    max_forgetting: MaxForgetting | None = _budget(f"2; none for {' and '.join(UNBIASED)}")
    train_base: bool = setting(
        False, "Train the base model first, as `train_base` says, if the work folder has none."
    )


class Config(Section):
    """The whole config; each command reads the common settings and its own section."""

    dataset: DatasetName | None = setting(
        None,
        "Where images come from.",
        COMMON,
        unset=f"{DEFAULT_DATASET}, or the model's",
    )
    data_dir: FilePath | None = setting(
        None,
        "Folder that holds the dataset, or a .zip of one, such as photos/.",
        COMMON,
        metavar="FOLDER|ZIP",
        unset="the user's data folder",
        env="LOWSHOT_DATA",
    )
    image_size: Side | None = setting(
        None, "Side of the images in pixels.", COMMON, unset="the dataset's"
    )
    fit: Fit | None = setting(
        None,
        "Crop photos to their centre, or pad them so that all of each is seen.",
        COMMON,
        unset="crop, or the model's",
    )
    background: FilePath | None = setting(
        None,
        "Folder of ordinary photos, such as photos/, of anything but the new classes; calibrates a "
        "classifier that was adopted without images.",
        COMMON,
        metavar="FOLDER",
        unset="none, or the model's",
    )
    skip_bad: bool = setting(False, "Leave out image files that cannot be read.", COMMON)
    strict: bool = setting(
        False, "Refuse files that look like input and would not be used.", COMMON
    )
    seed: Seed = setting(0, "Whole number that decides every draw.", COMMON)
    device: Device = setting(
        "auto",
        "Device to compute on; auto is cuda if there is a GPU for it; mps is Apple's GPU.",
        COMMON,
    )
    workdir: FilePath = setting(
        Path("runs"),
        "Work folder, for checkpoints and run folders.",
        COMMON,
        metavar="FOLDER",
        env="LOWSHOT_WORKDIR",
    )
    train_base: TrainBaseConfig = TrainBaseConfig()
    imprint: ImprintConfig = ImprintConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    sweep: SweepConfig = SweepConfig()

    @model_validator(mode="before")
    @classmethod
    def _backbone_of_photos(cls, values: Any) -> Any:
        """Fill in what depends on the dataset, so that a dump shows it.

        That is the backbone of a folder, and of a classifier without images, which has no epochs.
        """
        if not isinstance(values, dict) or values.get("dataset") not in ("folder", "none"):
            return values
        options = values.get("train_base", {})
        if not isinstance(options, dict):
            return values
        usual: dict[str, Any] = {"backbone": PHOTO_BACKBONE}
        if values["dataset"] == "none":
            usual["epochs"] = 0
        return {**values, "train_base": {**usual, **options}}

    @field_validator("strict")
    @classmethod
    def _not_both(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("skip_bad"):
            raise ValueError("contradicts `skip_bad=True`: leave one of them out")
        return value

    @property
    def data_folder(self) -> Path:
        """Folder that holds the dataset: `data_dir`, or the user's data folder."""
        return self.data_dir or Path(platformdirs.user_data_dir("lowshot", appauthor=False))

    def portable(self) -> dict[str, Any]:
        """The config as JSON values, without what differs by machine or decides about errors."""
        left_out = {"data_dir", "background", "workdir", "device", "strict"}
        values = self.model_dump(mode="json", exclude=left_out)
        options = values["train_base"]
        for name in ("weights", "class_names"):
            if options[name]:
                options[name] = Path(options[name]).name
        return values

    def to_yaml(self, *, ascii_only: bool = False) -> str:
        """The resolved config as YAML that `--config` reads back."""
        values = self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=not ascii_only)

    def on_dataset(self, name: str) -> Config:
        """The same config, on this dataset if it names none."""
        return self if self.dataset else self.model_copy(update={"dataset": name})
