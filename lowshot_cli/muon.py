"""Muon: momentum whose update of each weight matrix is made orthogonal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic Newton-Schulz iteration that Jordan et al. fitted for few steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 3


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for convolutions followed by a normalisation.

    Such a convolution's output does not change with the length of its weights, so they are kept at
    a fixed length and `lr` is a share of it.

    Args:
        parameters: weights `(O, I, k, k)`.
        lr: step length per step, in units in which an orthogonal matrix has singular values 1.
        momentum: share of the past gradients; applied as Nesterov does.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"]
                momentum.mul_(group["momentum"]).add_(weight.grad)
                nesterov = weight.grad.add(momentum, alpha=group["momentum"])
                matrix = nesterov.reshape(len(weight), -1)
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(orthogonalise(matrix).view(weight.shape), alpha=-group["lr"])


def orthogonalise(matrix: Tensor) -> Tensor:
    """Push the singular values of `(m, n)` towards 1 and keep the singular vectors."""
    first, third, fifth = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = first * wide + (third * gram + fifth * gram @ gram) @ wide
    result: Tensor = wide.T if tall else wide
    return result
