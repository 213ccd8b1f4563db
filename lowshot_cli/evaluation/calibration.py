"""The images that say what the scores of a model are worth."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.errors import CheckpointError
from lowshot_cli.models.head import Head


def calibration_images(
    checkpoint: Checkpoint, setting: str, *, labelled: bool = False
) -> Iterator[tuple[Head, Tensor, Tensor]]:
    """The base images that set the bias, fold by fold, and the head that none of them shaped.

    Args:
        checkpoint: the model.
        setting: which setting needs them, for the error.
        labelled: whether photos without labels, as an adopted classifier has, will not do.

    Yields:
        The head of a fold, embeddings `(n, D)` fp32 and labels `(n,)` int64 of its images.

    Raises:
        CheckpointError: the checkpoint carries no such image.
    """
    holdout = checkpoint.holdout
    if not len(holdout.calibrating(holdout.labels)):
        raise CheckpointError(
            f"the checkpoint has no hold-out, which `{setting}` needs", "train a base model"
        )
    if labelled and holdout.unlabelled:
        raise CheckpointError(
            f"the checkpoint has no images with labels, which `{setting}` needs",
            "adopt the classifier with images of its classes: `dataset=folder`",
        )
    parts, labels = holdout.parts(holdout.embeddings), holdout.parts(holdout.labels)
    for head, part, own in zip(checkpoint.calibration_heads, parts, labels, strict=True):
        yield head, part.float(), own
