"""Tuning a pretrained network without losing what it could learn.

The more a network is tuned to its base classes, the more it drops what others need. The mean of
tuned and pretrained weights keeps most of both (Wortsman et al., "Robust fine-tuning of zero-shot
models", CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.training.task import BaseTask, embed_first

# Images of each class whose mean its proxy starts from.
_PER_CLASS = 25


@torch.no_grad()
def blend(backbone: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Move the weights of a backbone towards those it started from, in place.

    Running statistics of BatchNorm are weights here; its counters stay.

    Args:
        backbone: the tuned one.
        start: weights by name; any that are not here stay as they are.
        share: of the tuned weights in the result, 0..1.
    """
    for name, tensor in backbone.state_dict().items():
        if name in start and tensor.is_floating_point():
            tensor.copy_(torch.lerp(start[name].to(tensor.device), tensor, share))


def prototypes(network: EmbeddingNetwork, task: BaseTask) -> Tensor:
    """Proxies `(C, E)` to start training from: means of a few images a class, less their mean."""
    features, labels = embed_first(network, task, _PER_CLASS)  # (n, E), (n,)
    means = torch.stack([features[labels == label].mean(0) for label in range(len(task.names))])
    return F.normalize(means - means.mean(0), dim=1)
