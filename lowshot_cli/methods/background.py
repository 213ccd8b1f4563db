"""What the proxies of novel classes are made from, beside their supports: the base classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowshot_cli.methods.discriminant import Statistics
from lowshot_cli.methods.finetuning import BaseSamples


@dataclass(frozen=True)
class Background:
    """The base classes, from which novel ones have to be told apart.

    Attributes:
        samples: base images that fine-tuning reads, with base proxies `(C, R)` and scale.
        statistics: of base images.
        trained: E, the size of the trained part of embeddings, for which alone the paper's method
            makes proxies of a cosine head.
        is_linear: whether proxies are linear (`Head.is_linear`).
        is_adopted: whether the base classes are those of a classifier that was adopted as it is.
            `statistics` are then those of unlabelled photos; of nothing if there are none.
    """

    samples: BaseSamples
    statistics: Statistics
    trained: int
    is_linear: bool = False
    is_adopted: bool = False

    @property
    def is_blind(self) -> bool:
        """Whether nothing is known beside the base proxies."""
        return self.is_adopted and not self.statistics.total

    @property
    def anchor(self) -> Tensor:
        """What is added to linear proxies, `(R,)`: the mean row of a classifier, else nothing.

        Discriminants sum to nearly nothing, the rows of a classifier to anything.
        """
        return self.proxies.mean(0) if self.is_adopted else torch.zeros_like(self.proxies[0])

    @property
    def proxies(self) -> Tensor:
        """Base proxies `(C, R)`."""
        return self.samples.proxies

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.samples.proxies.device

    def to(self, device: torch.device) -> Background:
        """The same on a device."""
        return replace(self, samples=self.samples.to(device), statistics=self.statistics.to(device))
