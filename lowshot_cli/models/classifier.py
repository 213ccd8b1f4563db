"""The classifier in a library's weights, which a backbone leaves out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lowshot_cli.errors import CheckpointError, UsageError, first_few
from lowshot_cli.models.backbones import unresized
from lowshot_cli.models.efficientnet_lite import EfficientNetLite
from lowshot_cli.models.pretrained import PretrainedBackbone
from lowshot_cli.models.state_names import belongs, fitting

_WITH_IMAGES = (
    "adopt it with images of its classes: `dataset=folder`, and their folder as `data_dir`"
)
# Names that a message shows.
_SHOWN = 3


def read_classifier(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The classifier in a state dict, which a backbone leaves out, as it is.

    It may be a layer within the library's classifier, such as `fc.1` after dropout, and have any
    number of outputs C. That `weight @ features + bias` are the logits of the library's own model
    is tried on an image of noise.

    Args:
        backbone: from `build_backbone`, without a projection; its weights do not matter.
        tensors: from `read_weights`.

    Returns:
        Weights `(C, E)` and biases `(C,)`, of zeros if the layer has none, as float32.

    Raises:
        UsageError: a backbone that has no library's classifier, or whose logits are no linear
            function of its features.
        CheckpointError: the state dict has no such layer, or one of another shape, or its numbers
            are not finite.
    """
    inner = unresized(backbone)
    if not isinstance(inner, PretrainedBackbone | EfficientNetLite):
        raise UsageError(
            "the classifier of this `backbone` cannot be adopted without images",
            "give the images of its classes, or `backbone=timm:NAME`",
        )
    given, _ = fitting(tensors, inner.model.state_dict())
    name, weight = _last_layer(inner, given)
    bias = given.get(f"{name}.bias", torch.zeros(len(weight)))
    if bias.shape != weight.shape[:1]:
        raise CheckpointError(
            f"the weights' {name}.bias is {list(bias.shape)}, but {name}.weight has "
            f"{len(weight)} rows",
            "take another file",
        )
    if len(weight) == 1:
        raise CheckpointError(
            f"the classifier {name} has one output, so it cannot tell classes apart",
            _WITH_IMAGES,
        )
    # Some are 1x1 convolutions, (C, E, 1, 1).
    weight, bias = weight.flatten(1).float(), bias.float()
    unusable = [
        f"{name}.{kind}"
        for kind, tensor in (("weight", weight), ("bias", bias))
        if not bool(tensor.isfinite().all())
    ]
    if unusable:
        raise CheckpointError(
            f"the weights' {unusable[0]} holds numbers that are not finite", "take another file"
        )
    if isinstance(inner, PretrainedBackbone) and not _is_linear(inner, given, weight, bias):
        raise UsageError(
            f"the logits of {inner.name} are not a linear function of its features, so its "
            "classifier cannot be adopted without images",
            _WITH_IMAGES,
        )
    return weight, bias


def _last_layer(
    inner: PretrainedBackbone | EfficientNetLite, given: Mapping[str, Tensor]
) -> tuple[str, Tensor]:
    """Name and weight of the one layer of the classifier.

    Raises:
        CheckpointError: there is none, there are several, or it reads other features.
    """
    expected = inner.classifier[:1]
    layers = {
        name.removesuffix(".weight"): tensor
        for name, tensor in given.items()
        if belongs(name, expected) and name.endswith(".weight") and tensor.ndim > 1
    }
    if not layers:
        named = f": {expected[0]}.weight is not in them" if expected else ""
        raise CheckpointError(f"the weights hold no classifier{named}", _WITH_IMAGES)
    if len(layers) > 1:
        raise CheckpointError(
            f"the weights hold no classifier of one layer: it is {first_few(list(layers), _SHOWN)}",
            _WITH_IMAGES,
        )
    ((name, weight),) = layers.items()
    if weight.shape[1:].numel() != inner.embedding_size or not weight.is_floating_point():
        raise CheckpointError(
            f"the weights hold no classifier of this backbone's {inner.embedding_size} features: "
            f"{name}.weight is {list(weight.shape)} of {str(weight.dtype).removeprefix('torch.')}",
            _WITH_IMAGES,
        )
    return name, weight


@torch.no_grad()
def _is_linear(
    inner: PretrainedBackbone,
    given: Mapping[str, Tensor],
    weight: Tensor,
    bias: Tensor,
) -> bool:
    """Whether a classifier makes the logits of the library's own model of its features."""
    image = torch.rand(1, 3, inner.side, inner.side, generator=torch.Generator().manual_seed(0))
    # Both signs of each logit, so that an activation shows.
    weight, bias = torch.cat([weight, -weight]), torch.cat([bias, -bias])
    whole, last = inner.whole(len(weight)).eval(), inner.classifier[0]
    shape = whole.get_parameter(f"{last}.weight").shape
    own = {f"{last}.weight": weight.reshape(shape), f"{last}.bias": bias}
    state = {n: t.float() if t.is_floating_point() else t for n, t in given.items()}
    training = inner.model.training
    features = functional_call(inner.model.eval(), _known(inner.model, state), image)
    inner.model.train(training)
    theirs = functional_call(whole, _known(whole, {**state, **own}), image)
    ours = features @ weight.T + bias
    return theirs.shape == ours.shape and torch.allclose(
        theirs, ours, rtol=1e-3, atol=1e-3, equal_nan=True
    )


def _known(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that a model has."""
    return {name: state[name] for name in model.state_dict() if name in state}
