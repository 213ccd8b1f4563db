"""Settings of base training; some defaults depend on the backbone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lowshot_cli.config.presentation import BACKBONE, BASE_CLASSES, TRAINING, setting
from lowshot_cli.config.section import Section
from lowshot_cli.config.values import (
    BACKBONES,
    DEFAULT_BACKBONE,
    DEFAULT_WEIGHTS,
    EMBEDDING_SIZE,
    PHOTO_BACKBONE,
    PRETRAINED,
    Amount,
    BackboneName,
    BaseClasses,
    Count,
    Deviations,
    Interpolation,
    Means,
    Precision,
    Rate,
    Side,
    Split,
    StorableText,
)
from lowshot_cli.errors import UsageError

# Defaults of the backbones that come with weights, where they differ from those of others.
_PRETRAINED_DEFAULTS = {
    "epochs": 0,
    "batch_size": 64,
    "lr": 1.0,
    "backbone_lr": 0.02,
    "weight_decay": 1e-4,
    "warmup": 0.1,
    "average": 0.0,
    "cutout": 0,
    "freeze_blocks": 3,
    # Rounding to bf16 moves its features by several percent, and is slower on processors.
    "precision": "fp32",
}
# Share of the tuned weights in a network that started from pretrained ones.
_BLEND = 0.7


class TrainBaseConfig(Section):
    """How the base model is trained."""

    classes: BaseClasses = setting(
        None,
        "Base classes: how many, or names separated by commas, such as apple,bus.",
        BASE_CLASSES,
        metavar="N|NAMES",
        unset="40; all classes of a folder",
    )
    class_names: StorableText | None = setting(
        None,
        "Names of the outputs of a classifier adopted with `--dataset none`: imagenet, or a file "
        "of one a line or JSON, such as names.txt.",
        BASE_CLASSES,
        metavar="imagenet|FILE",
        unset="those of --classes, or of published weights",
    )
    split: Split = setting(
        "seeded", "Order of classes from which `--classes N` takes the first.", BASE_CLASSES
    )
    class_order_seed: Annotated[int, Field(ge=0, lt=2**32)] = setting(
        1993, "Whole number that decides the seeded order.", BASE_CLASSES
    )
    holdout: Count = setting(
        50,
        "Training images of each base class to hold out; a network that stays as it is needs none.",
        BASE_CLASSES,
    )
    backbone: BackboneName = setting(
        DEFAULT_BACKBONE,
        "Network: resnet9, resnet18, efficientnet-lite0, efficientnet-lite2, torchvision:NAME or "
        "timm:NAME, such as torchvision:resnet50.",
        BACKBONE,
        metavar="NAME",
        unset=f"{DEFAULT_BACKBONE}; {PHOTO_BACKBONE} for a folder, or with --dataset none",
    )
    width: Count = setting(32, "Channels of the first stage of resnet9.", BACKBONE)
    embedding_size: Count | None = setting(
        None,
        "Dimensions of the trained part of the embedding.",
        BACKBONE,
        unset="64; an efficientnet's or library model's own",
    )
    weights: StorableText | None = setting(
        None,
        "Weights to start from: DEFAULT for the library's, or a file of safetensors or torch.save, "
        "such as model.pth. Images for a torchvision or timm model are then normalised as it "
        "expects.",
        BACKBONE,
        metavar="DEFAULT|FILE",
        unset="random; an efficientnet has its own",
    )
    blend: Annotated[float, Field(gt=0, le=1)] | None = setting(
        None,
        "Share of the trained weights in the base model; the rest are those it started from.",
        BACKBONE,
        unset=f"{_BLEND} where training starts from weights, else 1",
    )
    input_size: Side | None = setting(
        None,
        "Side in pixels to which the network resizes images.",
        BACKBONE,
        unset="not resized; with weights, what they expect; for an efficientnet, 160 if images "
        "are smaller than 64, or 128 to train it",
    )
    resize: Annotated[int, Field(ge=8, le=4096)] | None = setting(
        None,
        "Shorter side in pixels of a photo before it is cropped, with `--dataset none`.",
        BACKBONE,
        unset="the library's",
    )
    interpolation: Interpolation | None = setting(
        None,
        "Filter that resizes photos, with `--dataset none`: nearest, bilinear, bicubic, lanczos, "
        "box or hamming.",
        BACKBONE,
        metavar="FILTER",
        unset="the library's",
    )
    mean: Means | None = setting(
        None,
        "Mean of red, green and blue, with `--dataset none`, such as 0.485,0.456,0.406.",
        BACKBONE,
        metavar="R,G,B",
        unset="the library's",
    )
    std: Deviations | None = setting(
        None,
        "Standard deviation of red, green and blue, with `--dataset none`.",
        BACKBONE,
        metavar="R,G,B",
        unset="the library's",
    )
    epochs: Annotated[int, Field(ge=0)] = setting(
        32,
        "Epochs (passes over the training images); 0 leaves the network as it is.",
        TRAINING,
        unset="32; 0 for an efficientnet, or with --dataset none",
    )
    batch_size: Annotated[int, Field(ge=2)] = setting(
        128, "Images in a step.", TRAINING, unset="128; 64 for an efficientnet"
    )
    lr: Rate = setting(0.2, "Peak learning rate.", TRAINING, unset="0.2; 1 for an efficientnet")
    backbone_lr: Rate | None = setting(
        None,
        "Peak learning rate of the backbone.",
        TRAINING,
        unset="that of --lr; 0.02 for an efficientnet",
    )
    freeze_backbone: bool = setting(
        False, "Leave the network as it is, as `--epochs 0` does.", BACKBONE
    )
    freeze_blocks: Annotated[int, Field(ge=0)] = setting(
        0,
        "Groups of blocks of an efficientnet, from the first on, that training leaves as they are.",
        unset="3 for an efficientnet",
    )
    weight_decay: Amount = setting(
        5e-4, "Weight decay.", unset="0.0005; 0.0001 for an efficientnet"
    )
    warmup: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.2,
        "Share of the steps in which the learning rate rises to its peak.",
        unset="0.2; 0.1 for an efficientnet",
    )
    average: Annotated[float, Field(ge=0, le=1)] = setting(
        0.3333,
        "Share of the steps, the last ones, whose weights are averaged; 0 takes those of the last.",
        unset="0.3333; 0 for an efficientnet",
    )
    mixup: Amount = setting(
        0.2, "Parameter of the beta distribution by which pairs of images are mixed; 0 mixes none."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0, "Probability that is taken from the true class and spread over all classes."
    )
    crop: Annotated[int, Field(ge=0)] | None = setting(
        None,
        "Largest random shift of an image, in pixels.",
        unset="3; an eighth of the side for an efficientnet",
    )
    flip: bool | None = setting(
        None, "Whether images are mirrored at random.", unset="depends on the dataset"
    )
    cutout: Annotated[int, Field(ge=0)] = setting(
        8,
        "Side of the square that is erased at a random place, in pixels; 0 erases nothing.",
        unset="8; 0 for an efficientnet",
    )
    rotation: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0, "Share of a batch that is rotated by 90, 180 or 270 degrees."
    )
    precision: Precision = setting(
        "auto",
        "Arithmetic of training; auto is bf16 where that is faster.",
        TRAINING,
        unset="auto; fp32 for an efficientnet",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_backbone(cls, values: Any) -> Any:
        """Fill in the defaults that depend on the backbone, so that a dump shows them."""
        if not isinstance(values, dict):
            return values
        backbone = values.get("backbone", DEFAULT_BACKBONE)
        if backbone in PRETRAINED:
            return {**_PRETRAINED_DEFAULTS, **values}
        usual = {"crop": 3} | ({"embedding_size": EMBEDDING_SIZE} if backbone in BACKBONES else {})
        return {**values, **{n: v for n, v in usual.items() if values.get(n) is None}}

    @field_validator("blend")
    @classmethod
    def _needs_weights(cls, value: float | None, info: ValidationInfo) -> float | None:
        backbone = info.data.get("backbone", PHOTO_BACKBONE)
        if value is not None and not info.data.get("weights") and backbone not in PRETRAINED:
            raise ValueError(f"needs `weights` to start from, or `backbone={PHOTO_BACKBONE}`")
        return value

    @field_validator("freeze_blocks")
    @classmethod
    def _needs_blocks(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("backbone", PHOTO_BACKBONE) not in PRETRAINED:
            raise ValueError("should be 0 for a backbone that is no efficientnet")
        return value

    def refuse_adoption(self) -> None:
        """Refuse settings that only a classifier which is adopted without images has.

        Raises:
            UsageError: one of them is given.
        """
        for name in ("class_names", "resize", "interpolation", "mean", "std"):
            if getattr(self, name) is not None:
                raise UsageError(
                    f"`{name}` is for a classifier that is adopted without images",
                    "leave it out, or give `dataset=none`",
                )

    @property
    def start(self) -> str | None:
        """Weights to start from: those given, or a backbone's own; None for random ones."""
        return self.weights or (DEFAULT_WEIGHTS if self.backbone in PRETRAINED else None)

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone stays as it is, so that its head is made from embeddings alone."""
        return self.freeze_backbone or self.epochs == 0

    @property
    def share(self) -> float:
        """Share of the trained weights in the base model: `blend`, or its default."""
        return self.blend or (_BLEND if self.start else 1.0)
