"""Images to tensors: PIL image -> bicubic resize, crop -> (3, height, width) float32 in [0, 1] -> normalised.

PIL's bicubic filter antialiases when it shrinks; published inputs were made with it (ONE-PEACE, section 5.2 of its
released layout).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class GroundingInput(NamedTuple):
    """An image with boxes on it: pixels, boxes in [0, 1] of the resized image, (width, height) resize ratios."""

    pixel_values: Tensor
    boxes: Tensor
    ratios: Tensor


def square(image: Image, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """Resize to `size` x `size` whatever the aspect ratio, then normalise. Returns float32 (3, size, size)."""
    return normalize(to_tensor(resize(image, size, size)), mean, std)


def shorter_side_and_centre_crop(
    image: Image, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """ImageNet evaluation: shorter side to `size`, centre crop, normalise. Returns float32 (3, size, size)."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    image = resize(image, *((size, scaled) if width <= height else (scaled, size)))
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return normalize(to_tensor(image.crop((left, top, left + size, top + size))), mean, std)


def grounding(image: Image, boxes: Tensor, size: int) -> GroundingInput:
    """Square input with its boxes.

    boxes: (num_boxes, 4) as x0, y0, x1, y1 in pixels of `image`; they are scaled like the image and divided by `size`.
    """
    ratios = torch.tensor([size / image.width, size / image.height])
    return GroundingInput(square(image, size), boxes * ratios.repeat(2) / size, ratios)


def boxes_to_pixels(boxes: Tensor, width: Tensor | int, height: Tensor | int) -> Tensor:
    """Predicted boxes in [0, 1] to pixels of the original image.

    boxes: (num_boxes, 4); width, height: one number, or (num_boxes,) for boxes of different images.
    """
    scale = torch.stack([torch.as_tensor(width), torch.as_tensor(height)] * 2, dim=-1)
    return boxes * scale.to(boxes)


def resize(image: Image, width: int, height: int) -> Image:
    """Bicubic resize with antialiasing."""
    from PIL.Image import Resampling

    return image.resize((width, height), Resampling.BICUBIC)


def to_tensor(image: Image) -> Tensor:
    """RGB image to float32 (3, height, width) in [0, 1]. Raises ValueError on another mode."""
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}; call .convert('RGB') first")
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous().float() / 255


def normalize(pixels: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(pixels - mean) / std per channel. pixels: (..., 3, height, width)."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
