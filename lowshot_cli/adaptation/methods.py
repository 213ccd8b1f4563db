"""How each method of `config/methods.py` makes the proxies of novel classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.data.supports import draw_directions
from lowshot_cli.errors import DataError
from lowshot_cli.methods.adopted import cautious_proxies
from lowshot_cli.methods.background import Background
from lowshot_cli.methods.discriminant import shrunk_mean
from lowshot_cli.methods.finetuning import finetune_proxies
from lowshot_cli.methods.imprinting import cluster_means, imprint, teen, whitened
from lowshot_cli.models.embedder import Views, embed, fused
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import pad_to

# Proxies per class of the method `proxies`.
_CLUSTERS = 2


@dataclass(frozen=True)
class Supports:
    """What proxies are made from. The leading dimensions `...` are trials and classes, if any.

    Attributes:
        embeddings: `(..., k, D)` unit embeddings of the support images.
        views: makes `(..., k, D)`, the embeddings averaged over augmented views.
        directions: makes `(..., size)` random unit directions, given their size.
    """

    embeddings: Tensor
    views: Callable[[], Tensor]
    directions: Callable[[int], Tensor]


MakeProxies = Callable[[Supports, Background, Config], Tensor]


def make_proxies(method: str, supports: Supports, background: Background, config: Config) -> Tensor:
    """The proxies of novel classes on an unchanged base model.

    Args:
        method: a name in `BOUND`.
        supports: of the classes, with leading dimensions `...`.
        background: the base classes, of the model or of a fold.
        config: `finetune` is read by `finetune-head`.

    Returns:
        Proxies `(..., R)`, unit or linear as those of the base classes are. Methods with several
        proxies a class need leading dimensions `(T, W)` and return `(T, P, R)`, those of a class
        side by side.
    """
    return BOUND[method](supports, background, config)


def _imprint(support: Tensor, background: Background) -> Tensor:
    """The paper's method; for a cosine head on the trained part of embeddings.

    For a linear head a class is as likely as its mean is near, in the units of base classes.
    """
    if background.is_blind:
        return cautious_proxies(support, background.proxies)
    if background.is_linear:
        return background.anchor + background.statistics.round_proxies(support.mean(-2))
    size = support.shape[-1]
    return pad_to(imprint(support[..., : background.trained]), size)


def make_whitened(support: Tensor, background: Background) -> Tensor:
    """Whitened proxies `(..., R)`, which fine-tuning starts from, of supports `(..., k, D)`."""
    statistics = background.statistics
    if background.is_linear:
        mean = shrunk_mean(support, statistics.centre)
        return background.anchor + statistics.novel_proxies(mean)
    return whitened(support, statistics.centre, statistics.whiten)


def _teen(support: Tensor, background: Background) -> Tensor:
    """TEEN's method; for a cosine head on the trained part of embeddings."""
    if background.is_linear:
        means, centre = background.statistics.means, background.statistics.centre
        calibrated = teen(support - centre, F.normalize(means - centre, dim=1))  # (..., D)
        length = (support.mean(-2) - centre).norm(dim=-1, keepdim=True)  # (..., 1)
        return background.statistics.round_proxies(centre + length * calibrated)
    size, trained = support.shape[-1], background.trained
    proxies = F.normalize(background.proxies[:, :trained], dim=1)
    return pad_to(teen(support[..., :trained], proxies), size)


def _random(supports: Supports, background: Background, config: Config) -> Tensor:
    """A random direction `(..., R)`, in the trained part of embeddings for a cosine head."""
    size = supports.embeddings.shape[-1]
    if not background.is_linear:
        return pad_to(supports.directions(background.trained), size).to(background.device)
    directions = supports.directions(size).to(background.device)
    # At the centre of the base classes it scores what these do on average.
    known, centre = background.proxies, background.statistics.centre
    usual = (known[:, :size] @ centre + known[:, size]).mean()
    offsets = usual - directions @ centre  # (...)
    return torch.cat([directions, offsets[..., None]], -1)


def _nearest(supports: Supports, background: Background, config: Config) -> Tensor:
    """Every support image as a proxy, `(T, W·k, R)`, which is a nearest-neighbour classifier."""
    single = supports.embeddings.flatten(1, 2).unsqueeze(2)  # (T, W·k, 1, D)
    return _imprint(single, background)


def _proxies(supports: Supports, background: Background, config: Config) -> Tensor:
    """The mean of each of a class's clusters as a proxy, whitened: `(T, W·c, R)`."""
    clusters = cluster_means(supports.embeddings, _CLUSTERS)  # (T, W, c, D)
    return make_whitened(clusters.flatten(1, 2).unsqueeze(2), background)


def _finetune_head(supports: Supports, background: Background, config: Config) -> Tensor:
    support = supports.embeddings
    start = make_whitened(support, background)  # (T, W, R)
    trials, ways, shots, size = support.shape
    targets = torch.arange(ways, device=support.device).repeat_interleave(shots)  # (W·k,)
    samples = support.view(trials, ways * shots, size)  # (T, W·k, D)
    return finetune_proxies(start, samples, targets, background.samples, config.finetune)


BOUND: Mapping[str, MakeProxies] = {
    "imprint": lambda supports, background, config: _imprint(supports.embeddings, background),
    "random": _random,
    "augmented": lambda supports, background, config: _imprint(supports.views(), background),
    "whitened": lambda supports, background, config: make_whitened(supports.embeddings, background),
    "teen": lambda supports, background, config: _teen(supports.embeddings, background),
    "nearest": _nearest,
    "proxies": _proxies,
    "finetune-head": _finetune_head,
}


def imprint_each(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    pixels: Sequence[Tensor],
    labels: Sequence[int],
    config: Config,
) -> list[tuple[Tensor, Tensor]]:
    """The proxies of classes and the embeddings of their support images, embedded all at once.

    Args:
        checkpoint: the model that is taught.
        network: its embedding network.
        pixels: for each class `(k, 3, S, S)` uint8 support images.
        labels: number of each class, on which a random direction depends.
        config: `seed` and `imprint`.

    Returns:
        For each class proxies `(1 + F, R)`, of the model and with cross-fitting of each fold, and
        embeddings `(k, D)`.
    """
    options, network = config.imprint, fused(network)
    joined, counts = torch.cat(list(pixels)), [len(images) for images in pixels]
    views = augmented_views(options, checkpoint.meta.mirror)

    @cache
    def viewed() -> list[Tensor]:
        return list(embed(network, joined, views=views).split(counts))

    def make(place: int, label: int, support: Tensor) -> Tensor:
        supports = Supports(
            support,
            lambda: viewed()[place],
            lambda size: draw_directions(config.seed, label, [0], size)[0],
        )
        made = (make_proxies(options.method, supports, b, config) for b in checkpoint.backgrounds)
        return torch.stack(list(made))

    embedded = zip(labels, embed(network, joined).split(counts), strict=True)
    return [(make(n, label, support), support) for n, (label, support) in enumerate(embedded)]


def check_proxy(name: str, proxy: Tensor) -> None:
    """Refuse a proxy of zeros: its images do not differ from the average of the base classes.

    Raises:
        DataError: the proxy is zero.
    """
    if not bool(proxy.any()):
        raise DataError(
            f"the images of {name!r} have no direction of their own: to the model they look like "
            "the average of the base classes",
            "look at them, or try another `method`",
        )


def augmented_views(options: ImprintConfig, mirror: bool) -> Views:
    """The views that the method `augmented` averages, the same for every image."""
    return Views(options.views, mirror, seed=0)
