"""Augmentation of whole batches of uint8 images, drawn per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_shifts(count: int, most: int, generator: torch.Generator) -> Tensor:
    """Draw a shift of up to `most` pixels each way for each image, `(count, 2)` int64."""
    return torch.randint(-most, most + 1, (count, 2), generator=generator)


def draw_crops(
    count: int, crop: int, flip: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a shift of up to `crop` pixels for each image, and whether it is mirrored.

    Args:
        count: B, the number of images.
        crop: largest shift in pixels.
        flip: whether to mirror.
        generator: source of the draws.

    Returns:
        `(B, 2)` int64 and `(B,)` bool, for `shift_and_mirror`.
    """
    shifts = draw_shifts(count, crop, generator)
    mirrored = torch.zeros(count, dtype=torch.bool)
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
    return shifts, mirrored


def shift_and_mirror(pixels: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Shift each image and mirror some; the image is reflected at its edges.

    Args:
        pixels: `(B, 3, H, W)` uint8.
        shifts: `(B, 2)` int64, pixels down and to the right.
        mirrored: `(B,)` bool.
    """
    batch, _, height, width = pixels.shape
    rows = _reflect(shifts[:, :1] + torch.arange(height), height)  # (B, H), the source of each row
    columns = _reflect(shifts[:, 1:] + torch.arange(width), width)  # (B, W)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = ((rows * width)[:, :, None] + columns[:, None, :]).to(pixels.device)  # (B, H, W)
    flat = pixels.reshape(batch, 3, height * width)
    gathered = flat.gather(2, index.view(batch, 1, height * width).expand(batch, 3, height * width))
    return gathered.view_as(pixels)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices just outside 0..size-1 at the border pixels."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def draw_holes(count: int, side: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw one square of `size` pixels anywhere in each image, to be set to the mean colour.

    This is cutout (DeVries and Taylor 2017).

    Args:
        count: B, the number of images.
        side: side S of each image in pixels.
        size: side of the square in pixels; parts beyond the edge are lost; 0 draws nothing.
        generator: source of the draws.

    Returns:
        `(B, 1, S, S)` bool.
    """
    if size == 0:
        return torch.zeros(count, 1, side, side, dtype=torch.bool)
    masks = []
    place = torch.arange(side)
    for _ in range(2):
        start = torch.randint(0, side, (count, 1), generator=generator) - size // 2  # (B, 1)
        masks.append((place >= start) & (place < start + size))
    return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]


def quarter_turns(count: int, share: float) -> Tensor:
    """The number of right angles by which to turn each image of a batch, `(count,)` int64.

    The first `share` of the batch is turned: its first third by one, then by two, then by three.
    """
    each = int(share * count) // 3
    turns = torch.zeros(count, dtype=torch.int64)
    turns[: 3 * each] = torch.arange(1, 4).repeat_interleave(each)
    return turns


def turn(images: Tensor, labels: Tensor, turns: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Turn images by right angles, and make the turned ones classes of their own.

    A network that recognises turned images must learn more about an image than its own classes
    need, which helps with classes it has not seen yet (Lee, Hwang, Shin: "Self-supervised label
    augmentation via input transformations", ICML 2020).

    Args:
        images: `(B, 3, S, S)` fp32.
        labels: `(B,)` int64 below `n_classes`.
        turns: `(B,)` int64, right angles by which to turn each.
        n_classes: C; an image turned by r right angles gets the label r·C + label.
    """
    if not bool(turns.any()):
        return images, labels
    images = images.clone()
    for right_angles in (1, 2, 3):
        part = (turns == right_angles).to(images.device)
        images[part] = images[part].rot90(right_angles, (2, 3))
    return images, labels + n_classes * turns.to(labels.device)


def mix_up(images: Tensor, partners: Tensor, weight: float) -> Tensor:
    """Blend images with others of the batch (Zhang et al., mixup, ICLR 2018).

    Args:
        images: `(N, 3, H, W)` fp32.
        partners: `(B,)` int64, B <= N: which images the first B are blended with.
        weight: share of the first image, 0..1.

    Returns:
        `(B, 3, H, W)`.
    """
    return torch.lerp(images[partners], images[: len(partners)], weight)


def with_partners(own: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """The images of a batch that are needed to mix some of them with their partners.

    Args:
        own: `(b,)` int64, places in the batch of the images to mix.
        partners: `(B,)` int64, a permutation: the partner of each image of the batch.

    Returns:
        `(n,)` int64, `own` followed by those partners of `own` that are not in it; and `(b,)`
        int64, the position of each one's partner among these n.
    """
    wanted = partners[own]  # (b,)
    places = torch.cat([own, wanted[~torch.isin(wanted, own)]])  # (n,)
    position = torch.empty_like(partners)  # (B,), of which n are filled in
    position[places] = torch.arange(len(places))
    return places, position[wanted]
