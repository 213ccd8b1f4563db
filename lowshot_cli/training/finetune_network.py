"""Fine-tuning of the whole network on the base images and the shots."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_cli.config.schema import FinetuneConfig
from lowshot_cli.data.augment import draw_crops, shift_and_mirror
from lowshot_cli.data.dataset import Pixels
from lowshot_cli.errors import TrainingError
from lowshot_cli.methods.finetuning import base_is_frozen, normalise, sample_weights
from lowshot_cli.models.embedding import EmbeddingNetwork, are_finite
from lowshot_cli.models.head import Head
from lowshot_cli.progress import Progress
from lowshot_cli.seeding import Stream, generator
from lowshot_cli.training.context import DEFAULT_CONTEXT, RunContext
from lowshot_cli.training.distributed import ProcessGroupView
from lowshot_cli.training.precision import autocast_type, pick_precision

# The largest shift of an image, in pixels.
_CROP = 3


@dataclass(frozen=True)
class NetworkData:
    """Images for fine-tuning the whole network.

    Attributes:
        base_pixels: N fit images `(3, H, W)` uint8, gathered a batch at a time.
        base_labels: `(N,)` int64 base classes.
        support_pixels: `(n, 3, H, W)` uint8 support images of all novel classes.
        support_labels: `(n,)` int64 novel classes, numbered after the base classes.
        flip: whether images may be mirrored.
    """

    base_pixels: Pixels
    base_labels: Tensor
    support_pixels: Tensor
    support_labels: Tensor
    flip: bool


def finetune_network(
    network: EmbeddingNetwork,
    head: Head,
    data: NetworkData,
    config: FinetuneConfig,
    *,
    seed: int,
    context: RunContext = DEFAULT_CONTEXT,
) -> Tensor:
    """Train backbone and proxies on the fit images and the shots, the backbone in place.

    The shots are repeated until a novel class has as many samples as an average base class, and
    the class weights count the repeated samples. BatchNorm keeps its statistics, which batches full
    of a few repeated images would distort. `distil` is the weight, in the loss, of the divergence
    from the network's earlier predictions for base classes (Li and Hoiem, "Learning without
    Forgetting", ECCV 2016, at temperature 1).

    Args:
        network: trained in place, in evaluation mode throughout.
        head: proxies to start from, and the scale.
        data: images of both kinds.
        config: `epochs`, `lr`, `batch_size`, `freeze_base`, `loss`, `novel_weight`, `precision` and
            `distil` are read.
        seed: decides order and augmentation.
        context: gets a report after each step. All ranks end with the same network and proxies.

    Returns:
        `(C, D)` unit proxies.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    steps = _Steps(network, head, data, config, context.ranks)
    total = config.epochs * math.ceil(len(steps.labels) / config.batch_size)
    for step, chosen, draws in _batches(len(steps.labels), config, seed):
        loss = steps.take(step, chosen, draws)
        if not math.isfinite(loss):
            raise _diverged(step, total, config)
        context.on_progress(Progress("fine-tuning", step + 1, total, "steps", {"loss": loss}))
    proxies = steps.trained.proxies.detach().cpu()
    if not are_finite([proxies, *network.state_dict().values()]):
        raise _diverged(total - 1, total, config)
    return proxies


class _Trained(nn.Module):
    """Everything that is trained: maps normalised images `(B, 3, H, W)` to logits `(B, C)`."""

    def __init__(
        self,
        network: EmbeddingNetwork,
        proxies: Tensor,
        n_base: int,
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.network, self.scale, self.dtype = network, scale, dtype
        self.base_proxies = nn.Parameter(proxies[:n_base].clone())
        self.novel_proxies = nn.Parameter(proxies[n_base:].clone())

    @property
    def proxies(self) -> Tensor:
        """All proxies `(C, D)`, base classes first."""
        return torch.cat([self.base_proxies, self.novel_proxies])

    def forward(self, inputs: Tensor) -> Tensor:
        proxies = self.proxies
        return self.scale * _embed(self.network, inputs, self.dtype) @ proxies.T


class _Steps:
    """Takes the steps of fine-tuning; the arguments are those of `finetune_network`."""

    def __init__(
        self,
        network: EmbeddingNetwork,
        head: Head,
        data: NetworkData,
        config: FinetuneConfig,
        ranks: ProcessGroupView,
    ) -> None:
        self.data, self.config, self.ranks, n_base = data, config, ranks, head.n_base
        self.samples, self.labels = _repeat_support(data)  # (M,), (M,)
        ways = len(head.proxies) - n_base
        self.weights = sample_weights(self.labels, n_base, ways, config)  # (M,)
        dtype = autocast_type(pick_precision(config.precision, network.device, ranks))
        network.eval()
        proxies = head.proxies.to(network.device)
        self.trained = _Trained(network, proxies, n_base, head.scale, dtype)
        self.teacher = copy.deepcopy(self.trained).requires_grad_(False) if config.distil else None
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            [*parameters, self.trained.novel_proxies], lr=config.lr, momentum=0.9, nesterov=True
        )
        # Separate, so that steps with frozen base proxies leave their momentum alone.
        self.base_optimiser = torch.optim.SGD(
            [self.trained.base_proxies], lr=config.lr, momentum=0.9, nesterov=True
        )
        self.model = ranks.parallel(self.trained)

    def take(self, step: int, chosen: Tensor, draws: torch.Generator) -> float:
        """Take a step and return its loss; if that is not finite, nothing changes.

        Args:
            step: number of the step.
            chosen: `(B,)` int64, which of an epoch's samples the whole batch holds.
            draws: decides the augmentation.
        """
        part, device = self.ranks.part, self.trained.network.device
        shifts, mirrored = draw_crops(len(chosen), _CROP, self.data.flip, draws)  # (B, 2), (B,)
        # Ranks may get uneven parts of an epoch's last batch, so each divides by an even share.
        own, share = chosen[part], len(chosen) / self.ranks.count  # (b,)
        images = _gather(self.data, self.samples[own])  # (b, 3, H, W)
        images = shift_and_mirror(images, shifts[part], mirrored[part])
        inputs = self.trained.network.normalisation.apply(images, device)
        logits = self.model(inputs)  # (b, C)
        losses = F.cross_entropy(logits, self.labels[own].to(device), reduction="none")  # (b,)
        loss = (losses * self.weights[own].to(device)).sum() / share
        if self.teacher is not None:
            loss = loss + self.config.distil * (self._distil(inputs, logits) / share)
        self.optimiser.zero_grad()
        self.base_optimiser.zero_grad()
        loss.backward()
        value = self.ranks.total(loss.item()) / self.ranks.count
        if not math.isfinite(value):
            return value
        self.optimiser.step()
        moved: list[Tensor] = [self.trained.novel_proxies]
        if not base_is_frozen(self.config, step):
            self.base_optimiser.step()
            moved.append(self.trained.base_proxies)
        normalise(moved)
        return value

    def _distil(self, inputs: Tensor, logits: Tensor) -> Tensor:
        """Divergence, summed over images, from the network's predictions before fine-tuning."""
        teacher = self.teacher
        assert teacher is not None
        scaled = teacher.scale * _embed(teacher.network, inputs, teacher.dtype)  # (b, D)
        expected = (scaled @ teacher.base_proxies.T).softmax(1)  # (b, C_base)
        predicted = logits[:, : expected.shape[1]].log_softmax(1)
        return F.kl_div(predicted, expected, reduction="sum")


def _diverged(step: int, total: int, config: FinetuneConfig) -> TrainingError:
    epoch = step * config.epochs // total + 1
    return TrainingError(
        f"fine-tuning diverged in epoch {epoch}, step {step + 1}; nothing was written",
        f"give a smaller `lr` than {config.lr:g}",
    )


def _embed(network: EmbeddingNetwork, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(network.device.type, dtype, enabled=dtype != torch.float32):
        return network.one_view(inputs)


def _repeat_support(data: NetworkData) -> tuple[Tensor, Tensor]:
    """Image numbers and labels, both `(M,)` int64, of one epoch's samples.

    Numbers below the count of fit images are fit images, the others support images.
    """
    n_fit = len(data.base_labels)
    per_class = n_fit // len(data.base_labels.unique())
    numbers, labels = [torch.arange(n_fit)], [data.base_labels]
    for label in data.support_labels.unique():
        members = (data.support_labels == label).nonzero().squeeze(1)  # (k,)
        repeated = members.repeat(max(1, round(per_class / len(members))))
        numbers.append(n_fit + repeated)
        labels.append(data.support_labels[repeated])
    return torch.cat(numbers), torch.cat(labels)


def _gather(data: NetworkData, numbers: Tensor) -> Tensor:
    """Images `(b, 3, H, W)` uint8 by their numbers `(b,)`, from fit and support images."""
    base, support = data.base_pixels, data.support_pixels
    images = torch.empty((len(numbers), *support.shape[1:]), dtype=torch.uint8)
    is_base = numbers < len(base)
    images[is_base] = base[numbers[is_base]]
    images[~is_base] = support[numbers[~is_base] - len(base)]
    return images


def _batches(
    count: int, config: FinetuneConfig, seed: int
) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    """For each step of all epochs: its number, its samples `(B,)` and its own generator."""
    step = 0
    for epoch in range(config.epochs):
        # Within an epoch, key 0 draws the order, and key s + 1 the augmentation of step s.
        shuffle = generator(seed, Stream.FINETUNE_STEP, epoch, 0)
        for chosen in torch.randperm(count, generator=shuffle).split(config.batch_size):
            yield step, chosen, generator(seed, Stream.FINETUNE_STEP, epoch, step + 1)
            step += 1
