"""Fine-tuning of proxies after imprinting: the novel ones alone, or all (section 3.2).

The backbone is frozen, so embeddings are computed once and a step is a matrix product. Sizes in
shapes: T trials, W novel classes and n supports per trial, N base samples, C base classes, D the
size of an embedding, R that of a proxy, which is D or, with an offset, D + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from lowshot_cli.config.schema import FinetuneConfig
from lowshot_cli.models.head import as_read, chunk_size

# Learning rates of unit and of linear proxies.
_UNIT_RATE, _LINEAR_RATE = 0.01, 1e-4


def class_weights(counts: Tensor, loss: str, n_base: int, novel_weight: float | None) -> Tensor:
    """Loss weight of a sample of each class.

    `adaptive` weighs a class by the inverse of its number of samples in one pass, so all classes
    count alike, however often their samples are repeated. `novel_weight` replaces that with a fixed
    ratio, novel to base; `plain` weighs all samples alike.

    Args:
        counts: `(C,)` number of samples of each class in one pass, base classes first.
        loss: `adaptive` or `plain`.
        n_base: how many of the classes are base classes.
        novel_weight: weight of a novel sample if a base sample has weight 1; None for no ratio.

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
    """Loss weight `(N,)` of each sample of one pass, given the labels `(N,)` of them all."""
    counts = torch.bincount(labels, minlength=n_base + ways)
    return class_weights(counts, config.loss, n_base, config.novel_weight)[labels]


@dataclass(frozen=True)
class BaseSamples:
    """Base embeddings that keep novel proxies away from the base classes.

    Attributes:
        embeddings: `(N, D)` unit embeddings; the bias must be set on others afterwards.
        labels: `(N,)` int64 base classes.
        proxies: `(C, R)` base proxies, unit or linear.
        scale: factor on the scores.
    """

    embeddings: Tensor
    labels: Tensor
    proxies: Tensor
    scale: float

    def log_sum_exp(self, embeddings: Tensor) -> Tensor:
        """Log-sum-exp of the base logits `(...)` of embeddings `(..., D)`."""
        parts = embeddings.reshape(-1, embeddings.shape[-1]).split(chunk_size(len(self.proxies)))
        read = (as_read(part, self.proxies) for part in parts)
        sums = [(self.scale * part @ self.proxies.T).logsumexp(-1) for part in read]
        return torch.cat(sums).view(embeddings.shape[:-1])

    def to(self, device: torch.device) -> BaseSamples:
        """The same on a device."""
        return BaseSamples(
            self.embeddings.to(device), self.labels.to(device), self.proxies.to(device), self.scale
        )


def finetune_proxies(
    proxies: Tensor, support: Tensor, targets: Tensor, base: BaseSamples, config: FinetuneConfig
) -> Tensor:
    """Train the novel proxies of many trials at once, with the base proxies frozen.

    The loss of a sample x with label y is the cross-entropy over all classes (Qi et al. 2018,
    eq. 3), in which frozen base proxies appear only as L(x), the log-sum-exp of their logits. L(x)
    never changes, so it is computed once, and T trials of W novel classes are one batch of matrix
    products. For a novel class w with proxy p_w and bias b:

        P(w | x) = exp(s (x p_w + b)) / (exp(L(x)) + sum over v of exp(s (x p_v + b)))
        gradient with respect to p_w = sum over x of weight(x) s (P(w | x) - [y = w]) x

    The bias is trained with the proxies and dropped at the end. Without it, proxies could lower all
    novel logits together only by turning away from the base classes; how far to lower them is for
    the operating point to decide. Adam (Kingma and Ba, ICLR 2015) updates proxies and bias; unit
    proxies are normalised after every step.

    Args:
        proxies: `(T, W, R)` proxies to start from.
        support: `(T, n, D)` unit support embeddings of all novel classes of a trial.
        targets: `(n,)` int64 novel class 0..W-1 of each support, the same for every trial.
        base: samples and proxies of the base classes, the same for every trial.
        config: `steps`, `head_lr`, `prior_shots`, `loss` and `novel_weight` are read.

    Returns:
        `(T, W, R)` proxies, shrunk towards where they started.
    """
    trials, ways, size = proxies.shape
    is_unit, start = size == support.shape[-1], proxies  # (T, W, R)
    # One pass holds N base samples and n supports; the loss is the weighted mean over both.
    labels = torch.cat([base.labels, targets + len(base.proxies)])  # (N + n,)
    weights = sample_weights(labels, len(base.proxies), ways, config) / len(labels)
    base_weight, support_weight = weights.split([len(base.labels), len(targets)])  # (N,), (n,)
    onehot = F.one_hot(targets, ways).float().T  # (W, n), [y = w]
    base_lse, support_lse = base.log_sum_exp(base.embeddings), base.log_sum_exp(support)
    samples, support = as_read(base.embeddings, proxies), as_read(support, proxies)
    proxies, bias = proxies.clone(), proxies.new_zeros(trials, 1)  # (T, W, R), (T, 1)
    take_step = adam_steps([proxies, bias], learning_rate(config, is_linear=not is_unit))
    for _ in range(config.steps):
        # Base samples are the same for all trials, so one product serves all T x W proxies.
        scores = (proxies.view(-1, size) @ samples.T).view(trials, ways, -1)  # (T, W, N)
        logits = base.scale * (scores + bias[:, :, None])  # (T, W, N)
        on_base = _novel_softmax(logits, base_lse) * base_weight  # (T, W, N); [y = w] is 0
        # Supports, each trial's own.
        logits = base.scale * (proxies @ support.mT + bias[:, :, None])  # (T, W, n)
        error = _novel_softmax(logits, support_lse[:, None]) - onehot  # (T, W, n)
        on_support = error * support_weight  # (T, W, n)
        gradient = (on_base.view(trials * ways, -1) @ samples).view_as(proxies)
        gradient = base.scale * (gradient + on_support @ support)  # (T, W, R)
        push = base.scale * (on_base.sum((1, 2)) + on_support.sum((1, 2)))  # (T,), bias gradient
        if not is_unit:
            take_step([gradient, push[:, None]])
            continue
        # The part of a gradient along its proxy only changes the proxy's length, so remove it.
        radial = (gradient * proxies).sum(-1, keepdim=True)  # (T, W, 1)
        take_step([gradient - radial * proxies, push[:, None]])
        proxies.copy_(F.normalize(proxies, dim=-1))
    shots = torch.bincount(targets, minlength=ways)  # (W,)
    return shrink_towards_start(proxies, start, shots, config.prior_shots, is_unit=is_unit)


def learning_rate(config: FinetuneConfig, *, is_linear: bool) -> float:
    """`head_lr`, or its default.

    Adam moves every weight by about the rate in each step. Linear proxies, which nothing keeps at
    length 1, are discriminants already and lose by more than small steps.
    """
    return config.head_lr or (_LINEAR_RATE if is_linear else _UNIT_RATE)


def adam_steps(parameters: list[Tensor], rate: float) -> Callable[[Sequence[Tensor]], None]:
    """Adam as a function that takes gradients and updates the parameters in place.

    It computes what `torch.optim.Adam` does. The first construction of that class imports so much
    of PyTorch that it takes longer than the fine-tuning.
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


def shrink_towards_start(
    proxies: Tensor, start: Tensor, counts: Tensor, prior_shots: float, *, is_unit: bool = True
) -> Tensor:
    """Pull trained proxies back towards where they started.

    A few samples are noisy evidence, so a proxy keeps only n / (n + prior) of the way it has moved,
    as a posterior mean does under a prior that is worth `prior_shots` samples. Without any sample
    it stays where it started.

    Args:
        proxies: `(..., W, R)` trained proxies.
        start: `(..., W, R)` proxies before training.
        counts: `(W,)` number of samples of each class, n.
        prior_shots: samples that the start is worth; 0 keeps the proxies that were trained on any.
        is_unit: whether proxies have length 1, and keep it.

    Returns:
        `(..., W, R)` proxies.
    """
    share = counts / (counts + prior_shots).clamp(min=1e-9)  # (W,)
    shrunk = torch.lerp(start, proxies, share[:, None])  # (..., W, R)
    if is_unit:
        shrunk = F.normalize(shrunk, dim=-1)
    # A proxy that did not move stays the same bit for bit; normalising it again would round it.
    return torch.where((proxies == start).all(-1, keepdim=True), start, shrunk)


def _novel_softmax(logits: Tensor, base_lse: Tensor) -> Tensor:
    """Probabilities of the novel classes among all classes.

    Args:
        logits: `(T, W, n)` of the novel classes.
        base_lse: log-sum-exp of the base logits, `(n,)` or `(T, 1, n)`.

    Returns:
        `(T, W, n)`.
    """
    if logits.shape[1] == 1:  # exp(z) / (exp(z) + exp(L)), in one operation
        return torch.sigmoid(logits - base_lse)
    total = torch.logaddexp(logits.logsumexp(1, keepdim=True), base_lse)  # (T, 1, n)
    return (logits - total).exp()


def finetune_all_proxies(
    proxies: Tensor, support: Tensor, targets: Tensor, base: BaseSamples, config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """Train novel and base proxies together, the base proxies in every second step or in all.

    This runs for one model, not for thousands of trials, so autograd is fast enough.

    Args:
        proxies: `(W, D)` unit novel proxies to start from.
        support: `(n, D)` unit support embeddings.
        targets: `(n,)` int64 novel class 0..W-1 of each support.
        base: samples and proxies of the base classes.
        config: as for `finetune_proxies`; `freeze_base` is `alternate` or `never`.

    Returns:
        Base proxies `(C, D)` and novel proxies `(W, D)`, all unit and shrunk towards where they
        started.
    """
    start, n_base = proxies, len(base.proxies)
    shots = torch.bincount(targets, minlength=len(proxies))  # (W,)
    held = torch.bincount(base.labels, minlength=n_base)  # (C,)
    embeddings = torch.cat([base.embeddings, support])  # (N + n, D)
    labels = torch.cat([base.labels, targets + n_base])  # (N + n,)
    weights = sample_weights(labels, n_base, len(proxies), config)  # (N + n,)
    base_proxies, proxies, bias = base.proxies.clone(), proxies.clone(), proxies.new_zeros(1)
    parameters = [proxies, bias, base_proxies]
    # Two optimisers, so that a step with frozen base proxies leaves their momentum alone.
    rate = learning_rate(config, is_linear=False)
    move_novel, move_base = adam_steps(parameters[:2], rate), adam_steps(parameters[2:], rate)
    for parameter in parameters:
        parameter.requires_grad_()
    for step in range(config.steps):
        # (N + n, C + W); as above, only novel classes have a bias.
        cosines = torch.cat([embeddings @ base_proxies.T, embeddings @ proxies.T + bias], 1)
        losses = F.cross_entropy(base.scale * cosines, labels, reduction="none")  # (N + n,)
        *of_novel, of_base = torch.autograd.grad((losses * weights).mean(), parameters)
        move_novel(of_novel)
        moved = [proxies]
        if not base_is_frozen(config, step):
            move_base([of_base])
            moved.append(base_proxies)
        normalise(moved)
    return (
        shrink_towards_start(base_proxies.detach(), base.proxies, held, config.prior_shots),
        shrink_towards_start(proxies.detach(), start, shots, config.prior_shots),
    )


@torch.no_grad()
def normalise(parameters: list[Tensor]) -> None:
    """Scale each proxy of each `(n, D)` to length 1, in place."""
    for proxies in parameters:
        proxies.copy_(F.normalize(proxies, dim=1))


def base_is_frozen(config: FinetuneConfig, step: int) -> bool:
    """Whether base proxies stay as they are in a step: always, on even steps, or never."""
    return config.freezing == "always" or (config.freezing == "alternate" and step % 2 == 0)
