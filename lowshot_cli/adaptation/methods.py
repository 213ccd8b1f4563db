"""How each method of `config/methods.py` makes the proxies of novel classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.data.supports import draw_directions
from lowshot_cli.errors import DataError
from lowshot_cli.methods.finetuning import finetune_proxies
from lowshot_cli.methods.imprinting import cluster_means, imprint, teen, whitened
from lowshot_cli.models.embedder import Views, embed
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


MakeProxies = Callable[[Supports, Checkpoint, Config], Tensor]


def make_proxies(method: str, supports: Supports, model: Checkpoint, config: Config) -> Tensor:
    """The proxies of novel classes on an unchanged base model.

    Args:
        method: a name in `BOUND`.
        supports: of the classes, with leading dimensions `...`.
        model: the base model.
        config: `finetune` is read by `finetune-head`.

    Returns:
        Unit proxies `(..., D)`. Methods with several proxies a class need leading dimensions
        `(T, W)` and return `(T, R, D)`, those of a class side by side.
    """
    return BOUND[method](supports, model, config)


def make_start(support: Tensor, model: Checkpoint) -> Tensor:
    """The proxies `(..., D)` that fine-tuning starts from, of supports `(..., k, D)`."""
    return _whitened(support, model)


def _imprint(support: Tensor, model: Checkpoint) -> Tensor:
    """The paper's method, on the trained part of embeddings."""
    return pad_to(imprint(support[..., : model.meta.embedding_size]), model.head.size)


def _whitened(support: Tensor, model: Checkpoint) -> Tensor:
    return whitened(support, *model.holdout.statistics)


def _teen(support: Tensor, model: Checkpoint) -> Tensor:
    """TEEN's method, on the trained part of embeddings."""
    size = model.meta.embedding_size
    return pad_to(teen(support[..., :size], model.head.base.proxies[:, :size]), model.head.size)


def _random(supports: Supports, model: Checkpoint, config: Config) -> Tensor:
    """A random direction in the trained part of embeddings: `(..., D)`."""
    directions = supports.directions(model.meta.embedding_size)
    return pad_to(directions, model.head.size).to(model.device)


def _nearest(supports: Supports, model: Checkpoint, config: Config) -> Tensor:
    """Every support image as a proxy, `(T, W·k, D)`, which is a nearest-neighbour classifier."""
    single = supports.embeddings.flatten(1, 2).unsqueeze(2)  # (T, W·k, 1, D)
    return _imprint(single, model)


def _proxies(supports: Supports, model: Checkpoint, config: Config) -> Tensor:
    """The mean of each of a class's clusters as a proxy, whitened: `(T, W·c, D)`."""
    clusters = cluster_means(supports.embeddings, _CLUSTERS)  # (T, W, c, D)
    return _whitened(clusters.flatten(1, 2).unsqueeze(2), model)


def _finetune_head(supports: Supports, model: Checkpoint, config: Config) -> Tensor:
    support = supports.embeddings
    start = _whitened(support, model)  # (T, W, D)
    trials, ways, shots, size = support.shape
    targets = torch.arange(ways, device=support.device).repeat_interleave(shots)  # (W·k,)
    samples = support.view(trials, ways * shots, size)  # (T, W·k, D)
    base = model.holdout.fit_half(model.head)
    return finetune_proxies(start, samples, targets, base, config.finetune)


BOUND: Mapping[str, MakeProxies] = {
    "imprint": lambda supports, model, config: _imprint(supports.embeddings, model),
    "random": _random,
    "augmented": lambda supports, model, config: _imprint(supports.views(), model),
    "whitened": lambda supports, model, config: _whitened(supports.embeddings, model),
    "teen": lambda supports, model, config: _teen(supports.embeddings, model),
    "nearest": _nearest,
    "proxies": _proxies,
    "finetune-head": _finetune_head,
}


def imprint_one(
    checkpoint: Checkpoint, network: EmbeddingNetwork, pixels: Tensor, label: int, config: Config
) -> tuple[Tensor, Tensor]:
    """The proxy `(D,)` of a class and the embeddings `(k, D)` of its support images.

    Args:
        checkpoint: the model that is taught.
        network: its embedding network.
        pixels: `(k, 3, S, S)` uint8 support images.
        label: number of the class, on which a random direction depends.
        config: `seed` and `imprint`.
    """
    options = config.imprint
    support = embed(network, pixels)
    views = augmented_views(options, checkpoint.meta.mirror)
    supports = Supports(
        support,
        lambda: embed(network, pixels, views=views),
        lambda size: draw_directions(config.seed, label, [0], size)[0],
    )
    return make_proxies(options.method, supports, checkpoint, config), support


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
