"""Embeddings of images, computed once: the backbone is frozen, so they never change."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from lowshot_cli.data.augment import shift_and_mirror
from lowshot_cli.data.dataset import BATCH, Images, Pixels
from lowshot_cli.models.embedding import EmbeddingNetwork, channels_last
from lowshot_cli.models.fast_layers import use_fast_layers
from lowshot_cli.models.lite_network import LiteNetwork
from lowshot_cli.progress import OnProgress, Progress, silent
from lowshot_cli.storage.cache import DiskCache
from lowshot_cli.threads import map_in_order

# Images that one thread embeds at a time: of those up to a side in pixels, and of larger ones. The
# last bits of an embedding may depend on it, so it depends on nothing but network and image size.
_PIECE, _SMALL, _LARGE_PIECE = 64, 64, 16
# What tracing raises if a model's control flow depends on its input, as in some of timm's models.
_UNTRACEABLE = (TraceError, TypeError, RuntimeError)
_NORMS = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class Views:
    """Which augmented views of each image are averaged: `count` shifts, every second one mirrored.

    Attributes:
        count: number of views.
        flip: whether to mirror.
        seed: decides the shifts.
    """

    count: int
    flip: bool
    seed: int


@torch.inference_mode()
def embed(
    network: EmbeddingNetwork,
    pixels: Pixels,
    dtype: torch.dtype = torch.float32,
    views: Views | None = None,
) -> Tensor:
    """Embed images in evaluation mode.

    Args:
        network: is left unchanged, and in its mode.
        pixels: `(N, 3, H, W)` uint8; an `ImageSubset` is copied one batch at a time.
        dtype: fp32, or bf16 for autocast.
        views: average the embeddings of augmented views instead (Qi et al. 2018, section 3.2).

    Returns:
        `(N, D)` fp32 unit embeddings, or means of unit embeddings where `views` is given.
    """
    return _embed_fused(fused(network), pixels, dtype, views)


@torch.inference_mode()
def _embed_fused(
    network: EmbeddingNetwork, pixels: Pixels, dtype: torch.dtype, views: Views | None
) -> Tensor:
    if not len(pixels):  # one blank image shows what D is
        blank = torch.zeros((1, *pixels[:0].shape[1:]), dtype=torch.uint8)
        return _forward(network, blank, dtype)[:0]
    chunks, step = [], _batch_size(network, pixels[:0].shape[-1])
    for start in range(0, len(pixels), step):
        batch = pixels[start : start + step]
        if views is None:
            chunks.append(_forward(network, batch, dtype))
            continue
        total = torch.zeros(())
        for view in _make_views(batch, views):
            total = total + _forward(network, view, dtype)
        chunks.append(total / views.count)
    return torch.cat(chunks)


def fused(network: EmbeddingNetwork) -> EmbeddingNetwork:
    """A copy as of `folded` that on a CPU also fuses convolutions with what stands around them.

    A network that is already fused, as far as it can be, is returned as it is.
    """
    if _is_fused(network) or network.was_fused:
        return network
    network = folded(network)
    network.was_fused = True
    if network.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return network
    if isinstance(network.backbone, GraphModule):
        use_fast_layers(network.backbone)
    for lite in _lites(network):
        lite.use_fast_layers()
    return network


def folded(network: EmbeddingNetwork) -> EmbeddingNetwork:
    """A copy in evaluation mode whose BatchNorms are folded into the convolutions before them.

    An EfficientNet-Lite knows its layers, the others are traced, which takes longer than embedding
    a few images. A backbone whose control flow depends on its input cannot be traced and keeps its
    BatchNorms: it gives the same embeddings, more slowly.
    """
    network = copy.deepcopy(network).eval()
    lites = _lites(network)
    for lite in lites:
        lite.fold_norms()
    if lites:
        network.backbone._apply(channels_last)
        return network
    backbone = _with_plain_layers(network.backbone).eval()
    with suppress(*_UNTRACEABLE):
        network.backbone = fuse(backbone)._apply(channels_last)
    return network


def _lites(network: EmbeddingNetwork) -> list[LiteNetwork]:
    return [module for module in network.modules() if isinstance(module, LiteNetwork)]


def _is_fused(network: EmbeddingNetwork) -> bool:
    """Whether it is traced, or in evaluation mode and without BatchNorms."""
    return isinstance(network.backbone, GraphModule) or not (
        network.training or any(isinstance(module, _NORMS) for module in network.modules())
    )


def _with_plain_layers(module: nn.Module) -> nn.Module:
    """Split BatchNorms of timm, which apply an activation, into two layers that fuse; in place."""
    for name, child in module.named_children():
        act, drop = getattr(child, "act", None), getattr(child, "drop", None)
        drops = not isinstance(drop, nn.Identity)
        if isinstance(child, nn.BatchNorm2d) and isinstance(act, nn.Module) and not drops:
            plain = nn.BatchNorm2d(child.num_features, child.eps)
            plain.load_state_dict(child.state_dict())
            setattr(module, name, nn.Sequential(plain, act).to(child.weight.device))
        else:
            _with_plain_layers(child)
    return module


@torch.inference_mode()
def centre_of_stages(network: EmbeddingNetwork, pixels: Pixels) -> Tensor:
    """Mean `(M,)` of the network's stages over images `(N, 3, H, W)` uint8."""
    network = fused(network)
    parts = pixels.split(_batch_size(network, pixels[:0].shape[-1]))
    images = (network.normalisation.apply(part, network.device) for part in parts)
    total = torch.stack([network.stages(batch).cpu().double().sum(0) for batch in images]).sum(0)
    return (total / len(pixels)).float()


def _make_views(pixels: Tensor, views: Views) -> Iterator[Tensor]:
    """Augmented views `(B, 3, H, W)` of a batch, one at a time.

    A view shifts and mirrors every image alike, so an embedding depends on its image alone.
    """
    generator = torch.Generator().manual_seed(views.seed)
    reach = max(1, pixels.shape[-1] // 8)
    shifts = torch.randint(-reach, reach + 1, (views.count, 1, 2), generator=generator)
    for number, shift in enumerate(shifts):
        mirrored = torch.full((len(pixels),), views.flip and number % 2 == 1)
        yield shift_and_mirror(pixels, shift.expand(len(pixels), 2), mirrored)


def _forward(network: EmbeddingNetwork, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    device = network.device
    images = network.normalisation.apply(pixels, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        embeddings: Tensor = network(images)
    return embeddings.float().cpu()


def _is_small(network: EmbeddingNetwork, side: int) -> bool:
    """Whether activations are small enough for many images at once; on a GPU they always are."""
    return network.device.type != "cpu" or (network.input_size or side) <= _SMALL


def _batch_size(network: EmbeddingNetwork, side: int) -> int:
    """How many images of `side` pixels to embed at once where all threads share the work."""
    return BATCH if _is_small(network, side) else _LARGE_PIECE


def _piece_size(network: EmbeddingNetwork, side: int) -> int:
    """How many images to embed in one piece of work: on a GPU, which has one thread, a batch."""
    return min(_batch_size(network, side), _PIECE if network.device.type == "cpu" else BATCH)


def fingerprint(network: EmbeddingNetwork, dtype: torch.dtype, views: Views | None = None) -> str:
    """Hash of what decides an embedding besides the pixels: weights, preprocessing, arithmetic."""
    digest = hashlib.blake2b(digest_size=16)
    about = (
        network.normalisation,
        network.mirror,
        network.unit,
        network.weights,
        str(dtype),
        network.device.type,
        torch.__version__,
        views,
        (_PIECE, _SMALL, _LARGE_PIECE, use_fast_layers.__name__),
    )
    digest.update(repr(about).encode())
    digest.update(str(network.backbone).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Piece:
    """Some images of a class.

    Attributes:
        of_class: place of the class among those asked for, and whether the cache has it whole.
        make: returns their embeddings.
    """

    of_class: tuple[int, bool]
    make: Callable[[], Tensor]


@dataclass(frozen=True)
class Embedder:
    """Embeds classes of images, through the cache.

    Attributes:
        network: its weights must not change while the embedder is used.
        dtype: fp32 or bf16.
        cache: keeps embeddings; None embeds everything again.
        on_progress: gets a report after each class.
    """

    network: EmbeddingNetwork
    dtype: torch.dtype = torch.float32
    cache: DiskCache | None = None
    on_progress: OnProgress = silent

    def classes(
        self, images: Images, labels: Sequence[int], views: Views | None = None
    ) -> list[Tensor]:
        """Embeddings `(n_c, D)` of all images of each class, in the order of `labels`."""
        return list(self.each(images, labels, views))

    def each(
        self, images: Images, labels: Sequence[int], views: Views | None = None
    ) -> Iterator[Tensor]:
        """The same, one class at a time, so that not all need be in memory."""
        keys = self._keys(images, labels, views)
        total, done = self._missing(images, labels, keys), 0
        several = total > 0 and self.network.device.type == "cpu"
        pieces = map_in_order(
            lambda piece: (piece, piece.make()),
            self._pieces(images, labels, keys, views),
            torch.get_num_threads() if several else 1,
        )
        for (place, is_kept), parts in groupby(pieces, lambda made: made[0].of_class):
            first, *rest = (embeddings for _, embeddings in parts)
            if is_kept:
                yield first
                continue
            embeddings = torch.cat([first, *rest])
            if self.cache:
                self.cache.write(keys[place], {"embeddings": embeddings})
            done += len(embeddings)
            total = max(total, done)
            self.on_progress(Progress("embedding", done, total))
            yield embeddings
        if self.cache and done:
            self.cache.trim()

    def _pieces(
        self, images: Images, labels: Sequence[int], keys: Sequence[str], views: Views | None
    ) -> Iterator[_Piece]:
        """Classes as they are in the cache, the others a few images at a time."""
        for place, (label, key) in enumerate(zip(labels, keys, strict=True)):
            kept = (self.cache.read(key) if self.cache else None) or {}
            if "embeddings" in kept:
                yield _Piece((place, True), partial(kept.__getitem__, "embeddings"))
                continue
            members = images.picked(images.of_class(label))
            size = _piece_size(self.network, members.side)
            for start in range(0, max(1, len(members)), size):
                part = members.part(slice(start, start + size))
                make = partial(_embed_fused, self._fused, part, self.dtype, views)
                yield _Piece((place, False), make)

    @cached_property
    def _fused(self) -> EmbeddingNetwork:
        network = fused(self.network)
        if not _is_fused(network):
            note = "this backbone cannot be optimised, so embedding takes longer than it could"
            self.on_progress(Progress("embedding", 0, 1, note=note))
        return network

    def missing(self, images: Images, labels: Sequence[int], views: Views | None = None) -> int:
        """How many of these images are not in the cache."""
        return self._missing(images, labels, self._keys(images, labels, views))

    def _missing(self, images: Images, labels: Sequence[int], keys: Sequence[str]) -> int:
        absent = [
            label
            for label, key in zip(labels, keys, strict=True)
            if not (self.cache and self.cache.path(key).is_file())
        ]
        return sum(len(images.of_class(label)) for label in absent)

    def _keys(self, images: Images, labels: Sequence[int], views: Views | None) -> list[str]:
        prefix = fingerprint(self.network, self.dtype, views)
        return [f"{prefix}-{images.digest(label)}" for label in labels]
