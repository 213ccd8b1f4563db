"""The classifier as a state dict that torchvision or timm loads into a model of its own."""

from __future__ import annotations

from torch import Tensor, nn

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.checkpoint.metadata import Meta
from lowshot_cli.errors import UsageError, one_line
from lowshot_cli.models.backbones import unresized
from lowshot_cli.models.efficientnet_lite import LITES, EfficientNetLite, of_timm
from lowshot_cli.models.pretrained import PretrainedBackbone, library_model

_HINT = "`format=onnx` exports the whole model"


def library_name(backbone: str) -> str:
    """What the library calls a backbone: `torchvision:NAME` or `timm:NAME`."""
    return f"timm:{of_timm(backbone)}" if backbone in LITES else backbone


def own_model(meta: Meta) -> nn.Module:
    """The library's own model, untrained, with one output for each class.

    It reads normalised images `(B, 3, S, S)` and returns logits `(B, C)`.
    """
    side = meta.input_size or meta.image_size
    return library_model(library_name(meta.backbone), side, len(meta.classes))


def ensure_possible(meta: Meta) -> None:
    """Check that the last layer of the library's own model can hold the classifier.

    Raises:
        UsageError: it cannot.
    """
    name = library_name(meta.backbone)
    if ":" not in name:
        raise UsageError(
            f"{name} is lowshot's own: no model of torchvision or timm could load its state dict",
            _HINT,
        )
    if not meta.adopted:
        raise UsageError(
            f"the last layer of {name} cannot hold this classifier, which reads embeddings of "
            "length 1 instead of the network's features as they are",
            f"{_HINT}; a classifier adopted with `dataset=none` fits",
        )


def state_dict(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of the library's own model, under its own names, with one output a class.

    The model returns the logits of the checkpoint: those of the base classes are the ones that the
    classifier made when it was adopted.

    Raises:
        UsageError: the model cannot hold the classifier.
    """
    meta, head = checkpoint.meta, checkpoint.head
    ensure_possible(meta)
    backbone = checkpoint.network().backbone
    inner = unresized(backbone)
    assert isinstance(inner, PretrainedBackbone | EfficientNetLite)
    model, layer = own_model(meta), inner.classifier[0]
    own = model.state_dict()
    weight, biases = head.layer()  # (C, D), (C,)
    # Some classifiers are 1x1 convolutions, (C, D, 1, 1).
    last = {f"{layer}.weight": weight.reshape(own[f"{layer}.weight"].shape)}
    if f"{layer}.bias" in own:
        last[f"{layer}.bias"] = biases
    elif bool(biases.any()):
        raise UsageError(
            f"the last layer of {library_name(meta.backbone)} has no biases, which the taught "
            "classes need",
            _HINT,
        )
    try:
        # From a plain mapping, as people will.
        model.load_state_dict({**inner.model.state_dict(), **last})
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{library_name(meta.backbone)} cannot load a plain state dict: {one_line(error, 120)}",
            _HINT,
        ) from None
    return {
        name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()
    }
