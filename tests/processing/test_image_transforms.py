from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from plait.processing import images as transforms


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_square_image_of_the_right_size_is_only_normalised() -> None:
    image = noise(8, 8)
    pixels = transforms.square(image, 8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 33)])
def test_evaluation_crop_keeps_the_aspect_ratio(size: tuple[int, int]) -> None:
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels = transforms.shorter_side_and_centre_crop(Image.fromarray(ramp), 16, mean=(0, 0, 0), std=(1, 1, 1))
    assert pixels.shape == (3, 16, 16)
    red, green = pixels[0].mean(0), pixels[1].mean(1)
    short = min(width, height)
    assert float(red[-1] - red[0]) == pytest.approx(short / width, abs=0.08)
    assert float(green[-1] - green[0]) == pytest.approx(short / height, abs=0.08)


def test_boxes_follow_their_image() -> None:
    boxes = torch.tensor([[10.0, 5.0, 30.0, 20.0]])
    grounded = transforms.grounding(noise(40, 20), boxes, 16)
    assert grounded.boxes.tolist() == [[0.25, 0.25, 0.75, 1.0]]


def test_other_modes_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected an RGB image, got mode L"):
        transforms.to_tensor(Image.new("L", (4, 4)))
