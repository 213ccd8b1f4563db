"""Fine-tuning of rows after imprinting: the novel ones alone, or all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from lowshot_cli.config.schema import FinetuneConfig
from lowshot_cli.models.head import chunk_size


def class_weights(counts: Tensor, loss: str, n_base: int, novel_weight: float | None) -> Tensor:
    """Loss weight of a sample of each class.

    `adaptive` weighs a class by the inverse of how many of its samples the batches really hold, so
    every class has the same say, whether its samples are repeated or not. `novel_weight` replaces
    that with a fixed ratio, novel to base; `plain` weighs all samples alike.

    Args:
        counts: `(C,)` samples of each class that one pass over the batches holds.
        loss: `adaptive` or `plain`.
        n_base: how many of the classes are base classes.
        novel_weight: weight of a novel sample, that of a base sample being 1.

    Returns:
        `(C,)` fp32, scaled so that the weights of all samples average 1.
    """
    counts = counts.float()
    if loss == "plain":
        weights = torch.ones_like(counts)
    elif novel_weight is not None:
        weights = torch.ones_like(counts)
        weights[n_base:] = novel_weight
    else:
        weights = torch.where(counts > 0, 1 / counts.clamp(min=1), torch.zeros_like(counts))
    return weights * counts.sum() / (weights * counts).sum()


def sample_weights(labels: Tensor, n_base: int, ways: int, config: FinetuneConfig) -> Tensor:
    """Loss weight `(N,)` of each sample whose labels `(N,)` make up one pass."""
    counts = torch.bincount(labels, minlength=n_base + ways)
    return class_weights(counts, config.loss, n_base, config.novel_weight)[labels]


@dataclass(frozen=True)
class BaseSamples:
    """Base embeddings that hold novel rows off.

    Attributes:
        embeddings: `(N, D)` unit embeddings that set no bias afterwards.
        labels: `(N,)` int64 base rows.
        proxies: `(C, D)` base rows.
        scale: factor on the cosines.
    """

    embeddings: Tensor
    labels: Tensor
    proxies: Tensor
    scale: float

    def log_sum_exp(self, embeddings: Tensor) -> Tensor:
        """Log-sum-exp of the base logits `(...)` of embeddings `(..., D)`."""
        parts = embeddings.reshape(-1, embeddings.shape[-1]).split(chunk_size(len(self.proxies)))
        sums = [(self.scale * part @ self.proxies.T).logsumexp(-1) for part in parts]
        return torch.cat(sums).view(embeddings.shape[:-1])


def finetune_rows(
    rows: Tensor, support: Tensor, targets: Tensor, base: BaseSamples, config: FinetuneConfig
) -> Tensor:
    """Train the novel rows of many trials at once, base rows frozen.

    Frozen base rows enter the softmax only through their log-sum-exp, which never changes. A bias
    is trained along, so that the row's direction need not make up for calibration, and dropped.
    Adam (Kingma and Ba, ICLR 2015) on rows and bias; rows are normalised after every step.

    Args:
        rows: `(T, W, D)` unit rows to start from.
        support: `(T, n, D)` unit support embeddings of all novel classes of a trial.
        targets: `(n,)` int64 novel class 0..W-1 of each, the same for every trial.
        base: samples and rows of the base classes, the same for every trial.
        config: `steps`, `head_lr`, `prior_shots`, `loss` and `novel_weight` are read.

    Returns:
        `(T, W, D)` unit rows, pulled back to where they started.
    """
    trials, ways, size = rows.shape
    start, shots = rows, torch.bincount(targets, minlength=ways)
    labels = torch.cat([base.labels, targets + len(base.proxies)])
    weights = sample_weights(labels, len(base.proxies), ways, config) / len(labels)
    base_weight, support_weight = weights.split([len(base.labels), len(targets)])
    onehot = F.one_hot(targets, ways).float().T
    base_lse, support_lse = base.log_sum_exp(base.embeddings), base.log_sum_exp(support)

    rows, bias = rows.clone(), rows.new_zeros(trials, 1)
    take_step = adam_steps([rows, bias], config.head_lr)
    for _ in range(config.steps):
        # Gradients of the cross-entropy: (probability - target) x weight x scale x embedding.
        cosines = (rows.view(-1, size) @ base.embeddings.T).view(trials, ways, -1)
        on_base = _novel_softmax(base.scale * (cosines + bias[:, :, None]), base_lse) * base_weight
        logits = base.scale * (rows @ support.mT + bias[:, :, None])
        on_support = (_novel_softmax(logits, support_lse[:, None]) - onehot) * support_weight
        gradient = (on_base.view(trials * ways, -1) @ base.embeddings).view_as(rows)
        gradient = base.scale * (gradient + on_support @ support)
        push = base.scale * (on_base.sum((1, 2)) + on_support.sum((1, 2)))
        # Only the part along the sphere turns a row.
        take_step([gradient - (gradient * rows).sum(-1, keepdim=True) * rows, push[:, None]])
        rows.copy_(F.normalize(rows, dim=-1))
    return shrink_towards_start(rows, start, shots, config.prior_shots)


def adam_steps(parameters: list[Tensor], rate: float) -> Callable[[Sequence[Tensor]], None]:
    """Adam: a function that takes gradients and moves the parameters, in place.

    The same as `torch.optim.Adam`, which takes longer to be set up for the first time, as much of
    PyTorch is loaded for it, than to fine-tune.
    """
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    counts = [torch.tensor(0.0) for _ in parameters]

    @torch.no_grad()
    def take_step(gradients: Sequence[Tensor]) -> None:
        adam(
            parameters,
            list(gradients),
            means,
            squares,
            [],
            counts,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    return take_step


def shrink_towards_start(rows: Tensor, start: Tensor, counts: Tensor, prior_shots: float) -> Tensor:
    """Rows between where they started and where their samples drew them.

    What few samples teach is mostly noise, so a row moves by n / (n + prior) of the way, the
    shrinkage of a posterior mean whose prior is worth `prior_shots` samples.

    Args:
        rows: `(..., W, D)` trained unit rows.
        start: `(..., W, D)` unit rows before training.
        counts: `(W,)` samples of each row's class, n.
        prior_shots: samples that the start is worth; 0 keeps the trained rows.

    Returns:
        `(..., W, D)` unit rows.
    """
    share = counts / (counts + prior_shots)
    pulled = F.normalize(torch.lerp(start, rows, share[:, None]), dim=-1)
    # A row that stood still stays so bit for bit.
    return torch.where((rows == start).all(-1, keepdim=True), start, pulled)


def _novel_softmax(logits: Tensor, base_lse: Tensor) -> Tensor:
    """Novel probabilities of logits `(T, W, n)`, the base log-sum-exp being broadcast to them."""
    if logits.shape[1] == 1:
        return torch.sigmoid(logits - base_lse)
    total = torch.logaddexp(logits.logsumexp(1, keepdim=True), base_lse)
    return (logits - total).exp()


def finetune_all_rows(
    rows: Tensor, support: Tensor, targets: Tensor, base: BaseSamples, config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """Train novel rows with the base rows released, on every second step or on all.

    Args:
        rows: `(W, D)` unit novel rows to start from.
        support: `(n, D)` unit support embeddings.
        targets: `(n,)` int64 novel class 0..W-1 of each.
        base: samples and rows of the base classes.
        config: as for `finetune_rows`; `freeze_base` is `alternate` or `never`.

    Returns:
        Base rows `(C, D)` and novel rows `(W, D)`, all unit and pulled back to where they started.
    """
    start, shots = rows, torch.bincount(targets, minlength=len(rows))
    held = torch.bincount(base.labels, minlength=len(base.proxies))
    embeddings = torch.cat([base.embeddings, support])
    labels = torch.cat([base.labels, targets + len(base.proxies)])
    weights = sample_weights(labels, len(base.proxies), len(rows), config)
    base_rows, rows, bias = base.proxies.clone(), rows.clone(), rows.new_zeros(1)
    parameters = [rows, bias, base_rows]
    move_novel = adam_steps(parameters[:2], config.head_lr)
    move_base = adam_steps(parameters[2:], config.head_lr)
    for parameter in parameters:
        parameter.requires_grad_()
    for step in range(config.steps):
        cosines = torch.cat([embeddings @ base_rows.T, embeddings @ rows.T + bias], 1)
        losses = F.cross_entropy(base.scale * cosines, labels, reduction="none")
        *of_novel, of_base = torch.autograd.grad((losses * weights).mean(), parameters)
        move_novel(of_novel)
        moved = [rows]
        if not base_is_frozen(config, step):
            move_base([of_base])
            moved.append(base_rows)
        normalise(moved)
    return (
        shrink_towards_start(base_rows.detach(), base.proxies, held, config.prior_shots),
        shrink_towards_start(rows.detach(), start, shots, config.prior_shots),
    )


@torch.no_grad()
def normalise(parameters: list[Tensor]) -> None:
    """Scale the rows of each `(n, D)` to length 1, in place."""
    for rows in parameters:
        rows.copy_(F.normalize(rows, dim=1))


def base_is_frozen(config: FinetuneConfig, step: int) -> bool:
    """Whether the base rows stay as they are in a step: always, on even steps, or never."""
    return config.freezing == "always" or (config.freezing == "alternate" and step % 2 == 0)
