"""Augmentation acts on each image of a batch on its own."""

from __future__ import annotations

import torch

from lowshot_cli.data.augment import (
    draw_crops,
    draw_holes,
    mix_up,
    quarter_turns,
    shift_and_mirror,
    turn,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ramp(batch: int = 64, side: int = 12) -> torch.Tensor:
    image = torch.arange(3 * side * side, dtype=torch.int64) % 251
    return image.to(torch.uint8).view(1, 3, side, side).repeat(batch, 1, 1, 1)


def test_every_crop_is_a_window_of_the_reflected_image() -> None:
    images = _ramp()
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    windows = {
        padded[0, :, top : top + 12, left : left + 12].numpy().tobytes()
        for top in range(5)
        for left in range(5)
    }
    cropped = shift_and_mirror(images, *draw_crops(64, 2, False, _generator()))
    found = {image.numpy().tobytes() for image in cropped}
    assert found <= windows
    assert len(found) > 15


def test_no_images_are_moved_to_none() -> None:
    """A rank's part of a last batch may be empty."""
    nothing = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    moved = shift_and_mirror(nothing, torch.empty(0, 2).long(), torch.empty(0).bool())
    assert moved.shape == nothing.shape


def test_about_half_of_the_images_are_mirrored() -> None:
    images = _ramp(400)
    flipped = shift_and_mirror(images, *draw_crops(400, 0, True, _generator()))
    mirrored = sum(torch.equal(image, images[0].flip(2)) for image in flipped)
    kept = sum(torch.equal(image, images[0]) for image in flipped)
    assert mirrored + kept == 400
    assert 150 < mirrored < 250


def test_cutout_blanks_at_most_one_square() -> None:
    holes = draw_holes(100, 16, 6, _generator()).sum((1, 2, 3))
    assert holes.max() == 36
    assert holes.min() >= 9
    assert len(holes.unique()) > 3
    assert not draw_holes(100, 16, 0, _generator()).any()


def test_mixup_blends_each_image_with_its_partner() -> None:
    images = torch.randn(10, 3, 4, 4, generator=_generator())
    partners = torch.tensor([7, 3, 1, 0])
    blended = mix_up(images, partners, 0.7)
    assert torch.allclose(blended, 0.7 * images[:4] + 0.3 * images[partners], atol=1e-6)


def test_turned_images_are_classes_of_their_own() -> None:
    images, labels = _ramp(20).float(), torch.arange(20) % 4
    turned, found = turn(images, labels, quarter_turns(20, 0.5), 4)
    for place in range(20):
        right_angles = place // 3 + 1 if place < 9 else 0
        assert torch.equal(turned[place], images[place].rot90(right_angles, (1, 2)))
        assert found[place] == labels[place] + 4 * right_angles
    assert torch.equal(images, _ramp(20).float())
    assert torch.equal(turn(images, labels, quarter_turns(20, 0.0), 4)[0], images)
