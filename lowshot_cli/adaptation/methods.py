"""How each method makes the proxy of a class."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lowshot_cli.checkpoint.checkpoint import Checkpoint
from lowshot_cli.config.schema import Config, ImprintConfig
from lowshot_cli.data.supports import draw_directions
from lowshot_cli.errors import DataError
from lowshot_cli.methods.imprinting import calibrated, imprint, whitened
from lowshot_cli.models.embedder import Views, embed
from lowshot_cli.models.embedding import EmbeddingNetwork
from lowshot_cli.models.head import pad_to


def _imprint_one(
    checkpoint: Checkpoint,
    network: EmbeddingNetwork,
    pixels: Tensor,
    label: int,
    config: Config,
) -> tuple[Tensor, Tensor]:
    options = config.imprint
    support = embed(network, pixels)
    if options.method == "random":
        direction = draw_directions(config.seed, label, [0], checkpoint.meta.embedding_size)[0]
        return pad_to(direction, checkpoint.head.size), support
    if options.method == "augmented":
        views = embed(network, pixels, views=augmented_views(options, checkpoint.meta.mirror))
        return make_proxies("imprint", views, checkpoint), support
    return make_proxies(options.method, support, checkpoint), support


def check_row(name: str, row: Tensor) -> None:
    """A class whose images differ in nothing from the others has no direction of its own.

    Raises:
        DataError: it is one.
    """
    if not bool(row.any()):
        raise DataError(
            f"the images of {name!r} have no direction of their own: to the model they are what "
            "the base classes are on average",
            "look at them, or try another --method",
        )


def make_proxies(method: str, support: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Novel rows `(..., D)` that follow from supports `(..., k, D)` and the base model alone."""
    return _ROWS[method](support, checkpoint)


def _imprint(support: Tensor, model: Checkpoint) -> Tensor:
    """The paper's method, which reads the trained part of embeddings."""
    return pad_to(imprint(support[..., : model.meta.embedding_size]), model.head.size)


def _calibrated(support: Tensor, model: Checkpoint) -> Tensor:
    """TEEN's method, which reads the trained part of embeddings."""
    size = model.meta.embedding_size
    rows = calibrated(support[..., :size], model.head.base.proxies[:, :size])
    return pad_to(rows, model.head.size)


_ROWS: dict[str, Callable[[Tensor, Checkpoint], Tensor]] = {
    "whitened": lambda support, model: whitened(support, *model.statistics),
    "imprint": _imprint,
    "calibrated": _calibrated,
}


def augmented_views(options: ImprintConfig, mirror: bool) -> Views:
    """The views that the method `augmented` averages, the same for every image."""
    return Views(options.views, mirror, seed=0)
