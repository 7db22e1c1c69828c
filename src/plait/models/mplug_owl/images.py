"""Images and frames as mPLUG-Owl was trained on them: squashed to a square, CLIP's mean and deviation.

PIL image -> RGB -> bicubic resize to side x side (training: a random crop, perhaps mirrored) -> (3, side, side)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from plait.processing.image_transforms import CLIP_MEAN, CLIP_STD, normalize, resize, to_tensor

SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


class Draw(NamedTuple):
    """What one training image was cut to, in pixels, and whether it was mirrored."""

    top: int
    left: int
    height: int
    width: int
    hflip: bool


def pixels(
    image: Image.Image,
    side: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    *,
    official: bool = False,
) -> Tensor:
    """An image of any size to (3, side, side) float32, its aspect not kept.

    official: resize before converting to RGB, as released; it differs for palettes and transparency.
    """
    squashed = resize(image if official else image.convert("RGB"), side, side)
    return normalize(to_tensor(squashed.convert("RGB")), mean, std)


def draw(
    width: int,
    height: int,
    generator: torch.Generator | None = None,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Draw:
    """A random crop of a share `scale` of the area and an aspect in `ratio`, mirrored half of the time.

    Draws as torchvision's RandomResizedCrop and RandomHorizontalFlip do from the same generator.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * float(torch.empty(1).uniform_(*scale, generator=generator))
        aspect = float(torch.exp(torch.empty(1).uniform_(low, high, generator=generator)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return Draw(top, left, h, w, _flip(generator))
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, round(width / aspect)) if width / height < ratio[0] else (round(height * aspect), height)
    return Draw((height - h) // 2, (width - w) // 2, h, w, _flip(generator))


def _flip(generator: torch.Generator | None) -> bool:
    return float(torch.rand(1, generator=generator)) < 0.5


def training_pixels(
    image: Image.Image, side: int, drawn: Draw, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """The drawn part of an image to (3, side, side)."""
    box = (drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height)
    part = resize(image.convert("RGB").crop(box), side, side)
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.hflip else part
    return normalize(to_tensor(part), mean, std)
