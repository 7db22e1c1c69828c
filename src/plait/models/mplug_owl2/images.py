"""Images as mPLUG-Owl2 was trained and evaluated on them: square -> shortest edge, crop -> CLIP's mean and deviation.

PIL image -> resize (stretch to a square) | pad (square of the mean colour) | crop (borders are lost) -> (3, side, side)
Two bicubic steps of Pillow on 8-bit values, as published (section 9.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from plait.processing.image_transforms import CLIP_MEAN, CLIP_STD, normalize, resize, to_tensor

ASPECTS = ("resize", "pad", "crop")


def stretched_square(image: Image.Image) -> Image.Image:
    """Stretch to a square as long as the longer side: the published evaluation mode."""
    side = max(image.size)
    return resize(image, side, side)


def padded_square(image: Image.Image, mean: Sequence[float] = CLIP_MEAN) -> Image.Image:
    """Centre on a square of the mean colour: the mode of the fine-tuning scripts."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def pixels(
    image: Image.Image,
    side: int,
    aspect: str = "resize",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """An image to (3, side, side) float32. Raises ValueError for an aspect that is none of `ASPECTS`."""
    if aspect not in ASPECTS:
        raise ValueError(f"expected image_aspect among {', '.join(ASPECTS)}, got {aspect!r}")
    image = image.convert("RGB")
    if aspect != "crop":
        image = stretched_square(image) if aspect == "resize" else padded_square(image, mean)
    return normalize(to_tensor(_centre(image, side)), mean, std)


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Shortest edge to `side`, then the middle."""
    short, long = sorted(image.size)
    scaled = int(side * long / short)
    image = resize(image, *((side, scaled) if image.width <= image.height else (scaled, side)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
