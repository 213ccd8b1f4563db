"""Augmentation of whole batches of uint8 images, drawn per sample."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(pixels: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `crop` pixels and mirror every second one.

    Args:
        pixels: `(B, 3, H, W)` uint8.
        crop: largest shift in pixels; what lies beyond the edge is the image reflected.
        flip: whether to mirror.
        generator: source of the draws.

    Returns:
        `(B, 3, H, W)` uint8.
    """
    batch = len(pixels)
    shifts = torch.randint(-crop, crop + 1, (batch, 2), generator=generator)
    mirrored = torch.zeros(batch, dtype=torch.bool)
    if flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
    return shift_and_mirror(pixels, shifts, mirrored)


def shift_and_mirror(pixels: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
    """Move each image and mirror some; what lies beyond the edge is the image reflected.

    Args:
        pixels: `(B, 3, H, W)` uint8.
        shifts: `(B, 2)` int64, pixels down and to the right.
        mirrored: `(B,)` bool.
    """
    batch, _, height, width = pixels.shape
    rows = _reflect(shifts[:, :1] + torch.arange(height), height)
    columns = _reflect(shifts[:, 1:] + torch.arange(width), width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = (rows * width)[:, :, None] + columns[:, None, :]
    flat = pixels.reshape(batch, 3, height * width)
    gathered = flat.gather(2, index.view(batch, 1, -1).expand(batch, 3, height * width))
    return gathered.view_as(pixels)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold indices just outside 0..size-1 back at the border pixels."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def cut_out(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Set one square of `size` pixels, anywhere, to the mean colour (DeVries and Taylor 2017).

    Args:
        images: `(B, 3, H, W)` fp32, normalised, so that 0 is the mean colour.
        size: side of the square in pixels; parts beyond the edge are lost; 0 leaves the images be.
        generator: source of the draws.
    """
    if size == 0:
        return images
    batch, _, height, width = images.shape
    masks = []
    for length in (height, width):
        start = torch.randint(0, length, (batch, 1), generator=generator) - size // 2
        place = torch.arange(length)
        masks.append((place >= start) & (place < start + size))
    hole = (masks[0][:, :, None] & masks[1][:, None, :])[:, None]
    return images.masked_fill(hole.to(images.device), 0.0)


def turn(images: Tensor, labels: Tensor, share: float, n_classes: int) -> tuple[Tensor, Tensor]:
    """Turn a share of a batch by 90, 180 and 270 degrees and call that classes of their own.

    A network that tells turned images apart sees more in an image than its own classes need, and
    classes it has not met yet profit from that (Lee, Hwang, Shin: "Self-supervised label
    augmentation via input transformations", ICML 2020).

    Args:
        images: `(B, 3, S, S)` fp32.
        labels: `(B,)` int64 below `n_classes`.
        share: of the images that are turned, a third of them by each angle.
        n_classes: C; an image turned by r right angles gets the label r·C + label.

    Returns:
        Images and labels, the turned ones first.
    """
    each = int(share * len(labels)) // 3
    if each == 0:
        return images, labels
    images, labels = images.clone(), labels.clone()
    for right_angles in (1, 2, 3):
        part = slice((right_angles - 1) * each, right_angles * each)
        images[part] = images[part].rot90(right_angles, (2, 3))
        labels[part] += right_angles * n_classes
    return images, labels


def mix_up(images: Tensor, weight: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend every image with another one of the batch (Zhang et al., mixup, ICLR 2018).

    Args:
        images: `(B, 3, H, W)` fp32.
        weight: share of the first image, 0..1.
        generator: source of the pairing.

    Returns:
        The blended images and the partner of each, `(B,)` int64.
    """
    partners = torch.randperm(len(images), generator=generator)
    return torch.lerp(images[partners.to(images.device)], images, weight), partners
