"""Operations keep shape and type, do nothing at the right place, and are the same for all frames of a clip."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from plait.processing.images import CLIP_OPS, IMAGE_OPS, PRETRAINING_OPS, apply, augment_clip, augment_image

FRAME = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", sorted({*IMAGE_OPS, *PRETRAINING_OPS, "Color", "Posterize", "Solarize"}))
@pytest.mark.parametrize("level", [0, 5, 10])
def test_shape_and_type_stay(name: str, level: int) -> None:
    before = FRAME.copy()
    changed = apply(name, FRAME, level)
    assert (changed.shape, changed.dtype) == (FRAME.shape, np.uint8)
    assert np.array_equal(FRAME, before)


@pytest.mark.parametrize("name", ["Identity", "Brightness", "Color", "Contrast", "Sharpness"])
def test_colours_stay_at_factor_one(name: str) -> None:
    assert np.abs(apply(name, FRAME, 5).astype(int) - FRAME).max() <= (1 if name == "Contrast" else 0)


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_geometry_stays_at_level_zero_and_signs_point_to_opposite_sides(name: str) -> None:
    assert np.array_equal(apply(name, FRAME, 0), FRAME)
    assert not np.array_equal(apply(name, FRAME, 8), apply(name, FRAME, 8, -1))


def test_translation_moves_whole_pixels_and_fills_with_grey() -> None:
    moved = apply("TranslateX", FRAME, 3)
    assert np.array_equal(moved[:, :-3], FRAME[:, 3:])
    assert (moved[:, -3:] == 128).all()


def test_sharpening_clamps_and_officially_wraps() -> None:
    frame = np.full((5, 5, 3), 10, np.uint8)
    frame[2, 2] = 250
    dark, wrapped = apply("Sharpness", frame, 10), apply("Sharpness", frame, 10, official=True)
    assert dark[2, 2, 0] == 255
    assert wrapped[2, 2, 0] < 250


def test_tables_turn_bright_values_round_and_drop_low_bits() -> None:
    frame = np.array([[[0, 127, 128], [200, 255, 64]]], np.uint8)
    assert apply("Solarize", frame, 5).tolist() == [[[0, 127, 127], [55, 0, 64]]]
    assert apply("Posterize", frame, 5).tolist() == [[[0, 64, 128], [192, 192, 64]]]


def test_colour_fades_towards_grey() -> None:
    spreads = [np.ptp(apply("Color", FRAME, level).astype(int), axis=-1).mean() for level in (0, 2, 5, 8)]
    assert spreads == sorted(spreads)
    assert spreads[0] < 0.2 * spreads[2]


def test_all_frames_of_a_clip_change_alike() -> None:
    clip = torch.from_numpy(FRAME)[None].repeat(3, 1, 1, 1)
    seen = set()
    for seed in range(12):
        changed = augment_clip(clip, CLIP_OPS, random.Random(seed))
        assert torch.equal(changed, changed[:1].expand_as(changed))
        seen.add(changed.numpy().tobytes())
    assert len(seen) > 6


def test_images_are_left_alone_a_quarter_of_the_time() -> None:
    image = Image.fromarray(FRAME)
    ops = ("HorizontalFlip",)
    same = sum(augment_image(image, ops, random.Random(s), count=1).tobytes() == image.tobytes() for s in range(200))
    assert 80 < same < 120


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an operation among"):
        apply("Invert", FRAME, 5)
