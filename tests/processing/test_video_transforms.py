"""Clips become tensors of the right shape, crops stay inside, and the default never leaves the range of a pixel."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from plait.processing.videos import (
    Crop,
    crop_and_resize,
    evaluation_clip,
    pretraining_clip,
    random_crop,
    stack_frames,
    training_clip,
    training_image,
    wrap,
)

FRAMES = torch.randint(0, 256, (3, 20, 30, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_every_transform_gives_channels_time_and_a_square() -> None:
    rng = random.Random(0)
    for clip in (
        evaluation_clip(FRAMES, 8),
        evaluation_clip(FRAMES, 8, "bicubic"),
        training_clip(FRAMES, 8, rng),
        training_clip(FRAMES, 8, rng, augment=False, official=True),
        pretraining_clip(FRAMES, 8, rng),
    ):
        assert clip.shape == (3, 3, 8, 8)
        assert clip.dtype == torch.float32
    assert training_image(Image.fromarray(FRAMES[0].numpy()), 8, rng).shape == (3, 8, 8)


def test_nearest_takes_existing_pixels() -> None:
    from plait.processing.videos import clip_to_tensor

    grey = FRAMES[:, ::2, ::3]
    torch.testing.assert_close(evaluation_clip(FRAMES, 10), clip_to_tensor(grey.long()))


def test_only_the_official_resize_leaves_the_range_and_wraps() -> None:
    edge = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    edge[:, :, 4:] = 255
    crop = Crop(0, 0, 8, 8)
    official, ours = crop_and_resize(edge, crop, 13, official=True), crop_and_resize(edge, crop, 13)
    assert official.min() < 0
    assert official.max() > 255
    assert ours.min() >= 0
    assert ours.max() <= 255
    assert torch.equal(wrap(official).long(), official % 256)


def test_a_flip_mirrors_and_a_crop_cuts() -> None:
    plain = crop_and_resize(FRAMES, Crop(2, 3, 6, 6), 6)
    assert torch.equal(plain, FRAMES[:, 2:8, 3:9].long())
    assert torch.equal(crop_and_resize(FRAMES, Crop(2, 3, 6, 6, True), 6), plain.flip(2))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (5, 100), (1, 1)])
def test_random_crops_stay_inside(height: int, width: int) -> None:
    for seed in range(50):
        crop = random_crop(height, width, random.Random(seed))
        assert crop.top >= 0
        assert crop.top + crop.height <= height
        assert crop.left >= 0
        assert crop.left + crop.width <= width
        assert min(crop.height, crop.width) >= 1


def test_the_same_seed_gives_the_same_clip() -> None:
    a, b = (training_clip(FRAMES, 8, random.Random(7)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, training_clip(FRAMES, 8, random.Random(8)))


def test_frames_of_one_clip_have_one_size() -> None:
    with pytest.raises(ValueError, match="frames of one size"):
        stack_frames([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))])
    with pytest.raises(ValueError, match="no frames"):
        stack_frames([])
