"""The mean of the weights over the last part of training.

It generalises better than the weights of any one step (Izmailov et al., "Averaging weights leads to
wider optima and better generalization", UAI 2018).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Steps from one sample of the weights to the next.
_INTERVAL = 10


def sample_number(step: int, total: int, share: float) -> int:
    """Which sample of the mean the weights after a step are, from 1; 0 if they are none.

    Samples are counted back from the last step, which is always one.

    Args:
        step: number of the step, from 0.
        total: steps of the whole training.
        share: of the steps, the last ones, whose weights are averaged, 0..1.
    """
    span, left = math.ceil(share * total), total - 1 - step
    if left % _INTERVAL or left >= span:
        return 0
    return math.ceil(span / _INTERVAL) - left // _INTERVAL


@torch.no_grad()
def include(means: dict[str, Tensor], model: nn.Module, number: int) -> None:
    """Include a model's weights in their running means, in place.

    Args:
        means: mean of each floating tensor of the model's state, by name; empty at first.
        model: running statistics of BatchNorm are weights here; its counters are not.
        number: which sample the weights are, from 1.
    """
    for name, tensor in _floating(model).items():
        if number == 1:
            means[name] = tensor.clone()
        else:
            means[name].lerp_(tensor, 1 / number)


@torch.no_grad()
def use(means: dict[str, Tensor], model: nn.Module) -> None:
    """Set a model's weights to their means, in place."""
    for name, tensor in _floating(model).items():
        tensor.copy_(means[name])


def _floating(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
