"""Activations of a layer, summarised over their pixels."""

from __future__ import annotations

import torch
from torch import Tensor

# Keeps the gradient of a square root finite where an activation is 0.
_FLOOR = 1e-6


def root(means: Tensor) -> Tensor:
    """Square roots `(B, M)` fp32 of mean activations `(B, M)` that are never negative.

    Without the square roots a few large activations would outweigh all others.
    """
    return (means.float() + _FLOOR).sqrt()


def mean_and_spread(activations: Tensor) -> Tensor:
    """Means and root mean squares `(B, 2M)` fp32 over the pixels of activations `(B, M, H, W)`."""
    values = activations.float()
    return torch.cat([values.mean((2, 3)), root(values.square().mean((2, 3)))], 1)
