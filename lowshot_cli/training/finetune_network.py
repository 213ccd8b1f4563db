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
from lowshot_cli.progress import OnProgress, Progress, silent
from lowshot_cli.seeding import _generator
from lowshot_cli.training.distributed import ALONE, ProcessGroupView
from lowshot_cli.training.precision import pick_dtype


@dataclass(frozen=True)
class FullData:
    """Images for fine-tuning the whole network.

    Attributes:
        base_pixels: N fit images `(3, H, W)` uint8, gathered a batch at a time.
        base_labels: `(N,)` int64 base rows.
        support_pixels: `(n, 3, H, W)` uint8 support images of all novel classes.
        support_labels: `(n,)` int64 rows, counted on after the base rows.
        flip: whether images may be mirrored.
    """

    base_pixels: Pixels
    base_labels: Tensor
    support_pixels: Tensor
    support_labels: Tensor
    flip: bool


def finetune_full(
    network: EmbeddingNetwork,
    proxies: Tensor,
    scale: float,
    data: FullData,
    config: FinetuneConfig,
    seed: int,
    on_progress: OnProgress = silent,
    ranks: ProcessGroupView = ALONE,
) -> Tensor:
    """Train backbone and rows on the fit images and the shots, in place for the backbone.

    The shots are repeated until a novel class has as many samples as an average base class, and
    the class weights count the repeated samples. BatchNorm keeps its statistics: batches full of
    a few repeated images would bend them. With `distil` the loss has that much of the divergence
    from what the network said of base classes before (Li and Hoiem, "Learning without Forgetting",
    ECCV 2016, at temperature 1).

    Args:
        network: trained in place, in evaluation mode throughout.
        proxies: `(C, D)` unit rows, base first.
        scale: factor on the cosines.
        data: images of both kinds.
        config: `epochs`, `lr`, `batch_size`, `freeze_base`, `loss`, `novel_weight`, `precision` and
            `distil` are read.
        seed: decides order and augmentation.
        on_progress: told after each step.
        ranks: the processes that share the work; all of them end with the same network and rows.

    Returns:
        `(C, D)` unit rows.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    n_base = int(data.base_labels.max()) + 1
    order, labels = _with_repeated_support(data)
    weights = sample_weights(labels, n_base, len(proxies) - n_base, config)
    dtype = pick_dtype(config.precision, network.device, ranks)
    tuned = _Tuned(network, proxies.to(network.device), n_base, scale, dtype)
    base_rows, novel_rows = tuned.base_rows, tuned.novel_rows
    old_rows = proxies[:n_base].to(network.device)
    teacher = copy.deepcopy(network).requires_grad_(False) if config.distil else None
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        [*parameters, novel_rows], lr=config.lr, momentum=0.9, nesterov=True
    )
    base_optimiser = torch.optim.SGD([base_rows], lr=config.lr, momentum=0.9, nesterov=True)
    pixels = (data.base_pixels, data.support_pixels)
    total = config.epochs * math.ceil(len(order) / config.batch_size)
    network.eval()
    model = ranks.parallel(tuned)
    for step, batch, generator in _batches(len(order), config, seed):
        shifts, mirrored = draw_crops(len(batch), 3, data.flip, generator)
        # The last batch of an epoch may be shared unevenly, so losses are not averaged here.
        own, each = batch[ranks.part], len(batch) / ranks.count
        images = shift_and_mirror(
            _gather(pixels, order[own]), shifts[ranks.part], mirrored[ranks.part]
        )
        inputs = network.normalisation.apply(images, network.device)
        logits = model(inputs)
        losses = F.cross_entropy(logits, labels[own].to(network.device), reduction="none")
        loss = (losses * weights[own].to(network.device)).sum() / each
        if teacher is not None:
            said = (scale * _embedded(teacher, inputs, dtype) @ old_rows.T).softmax(1)
            now = logits[:, :n_base].log_softmax(1)
            loss = loss + config.distil * (F.kl_div(now, said, reduction="sum") / each)
        optimiser.zero_grad()
        base_optimiser.zero_grad()
        loss.backward()
        value = ranks.total(loss.item()) / ranks.count
        if not math.isfinite(value):
            raise _diverged(step, total, config)
        optimiser.step()
        moved: list[Tensor] = [novel_rows]
        if not base_is_frozen(config, step):
            base_optimiser.step()
            moved.append(base_rows)
        normalise(moved)
        facts = {"loss": value}
        on_progress(Progress("fine-tuning", step + 1, total, "steps", facts, step + 1 == total))
    trained = torch.cat([base_rows, novel_rows]).detach().cpu()
    if not are_finite([trained, *network.state_dict().values()]):
        raise _diverged(total - 1, total, config)
    return trained


class _Tuned(nn.Module):
    """Images `(B, 3, H, W)`, normalised, to logits `(B, C)`; everything that is trained."""

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
        self.base_rows = nn.Parameter(proxies[:n_base].clone())
        self.novel_rows = nn.Parameter(proxies[n_base:].clone())

    def forward(self, inputs: Tensor) -> Tensor:
        rows = torch.cat([self.base_rows, self.novel_rows])
        return self.scale * _embedded(self.network, inputs, self.dtype) @ rows.T


def _diverged(step: int, total: int, config: FinetuneConfig) -> TrainingError:
    epoch = step * config.epochs // total + 1
    return TrainingError(
        f"fine-tuning is no longer finite in epoch {epoch}, step {step + 1}; nothing was written",
        f"give a smaller --lr than {config.lr:g}",
    )


def _embedded(network: EmbeddingNetwork, inputs: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(network.device.type, dtype, enabled=dtype != torch.float32):
        return network.one_view(inputs)


def _with_repeated_support(data: FullData) -> tuple[Tensor, Tensor]:
    """Sample numbers and labels of one epoch; numbers from len(base) on are support images."""
    n_fit = len(data.base_labels)
    per_class = n_fit // len(data.base_labels.unique())
    numbers, labels = [torch.arange(n_fit)], [data.base_labels]
    for label in data.support_labels.unique():
        members = (data.support_labels == label).nonzero().squeeze(1)
        repeated = members.repeat(max(1, round(per_class / len(members))))
        numbers.append(n_fit + repeated)
        labels.append(data.support_labels[repeated])
    return torch.cat(numbers), torch.cat(labels)


def _gather(pixels: tuple[Pixels, Tensor], numbers: Tensor) -> Tensor:
    base, support = pixels
    result = torch.empty((len(numbers), *support.shape[1:]), dtype=torch.uint8)
    is_base = numbers < len(base)
    result[is_base] = base[numbers[is_base]]
    result[~is_base] = support[numbers[~is_base] - len(base)]
    return result


def _batches(
    count: int, config: FinetuneConfig, seed: int
) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    """Step number, sample positions and a generator of the step's own, over all epochs."""
    step = 0
    for epoch in range(config.epochs):
        shuffle = _generator(seed, epoch, -1)
        for batch in torch.randperm(count, generator=shuffle).split(config.batch_size):
            yield step, batch, _generator(seed, epoch, step)
            step += 1
