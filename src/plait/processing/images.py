"""Images to tensors, and RandAugment on 8-bit frames.

PIL image -> bicubic resize, crop -> (3, height, width) float32 in [0, 1] -> normalised
frame (height, width, 3) uint8 -> two operations at one magnitude, the same for every frame of a clip -> frame

PIL's bicubic filter antialiases when it shrinks; published inputs were made with it (ONE-PEACE, section 5.2 of its
released layout). RandAugment (arXiv 1909.13719; specification mPLUG-2, section 11): colours change by tables, geometry
by a bilinear inverse map, and what comes from outside is mid-grey.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plait.media.image import load_image
from plait.media.limits import Packed

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pictures_in(images: Any) -> Iterator[Image]:
    """PIL images out of one image, a list, or a list per text; an image is whatever `load_image` reads.

    A PIL image passes as it is, since families turn transparency and palettes into colours in ways of their own; but
    one of 16 bits would be clipped by them, and becomes one of 8.
    """
    from PIL.Image import Image as PILImage

    if isinstance(images, PILImage):
        yield load_image(images) if images.mode.startswith("I") else images
    elif isinstance(images, str | Path | bytes | Packed) or getattr(images, "ndim", 4) < 4:
        yield load_image(images)
    elif isinstance(images, Iterable):
        for item in images:
            yield from pictures_in(item)
    elif images is not None:
        got = type(images).__name__
        raise ValueError(
            f"expected images as files, bytes, PIL images, arrays or tensors, got {got}; pass one of these"
        )


class GroundingInput(NamedTuple):
    """An image with boxes on it.

    pixel_values: (3, size, size). boxes: (num_boxes, 4) in [0, 1] of the resized image.
    ratios: (2,) resize ratios of width and height.
    """

    pixel_values: Tensor
    boxes: Tensor
    ratios: Tensor


def square(image: Image, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """Resize to a square whatever the aspect ratio, then normalise.

    Args:
        image: RGB, of any size.
        size: side in pixels.
        mean, std: per channel, CLIP's by default.

    Returns:
        float32 (3, size, size).

    Raises:
        ValueError: for an image that is not RGB.

    Example:
        >>> square(Image.new("RGB", (64, 48)), 32).shape
        torch.Size([3, 32, 32])
    """
    return normalize(to_tensor(resize(image, size, size)), mean, std)


def shorter_side_and_centre_crop(
    image: Image, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """ImageNet evaluation: shorter side to `size`, centre crop, normalise.

    Args:
        image: RGB, of any size.
        size: side in pixels.
        mean, std: per channel, CLIP's by default.

    Returns:
        float32 (3, size, size).

    Raises:
        ValueError: for an image that is not RGB.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)  # cut off, not rounded, as torchvision does
    image = resize(image, *((size, scaled) if width <= height else (scaled, size)))
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return normalize(to_tensor(image.crop((left, top, left + size, top + size))), mean, std)


def grounding(image: Image, boxes: Tensor, size: int) -> GroundingInput:
    """Square input with its boxes, which are scaled like the image.

    Args:
        image: RGB, of any size.
        boxes: (num_boxes, 4) as x0, y0, x1, y1 in pixels of `image`.
        size: side in pixels; 384 in ONE-PEACE.

    Returns:
        A `GroundingInput`.
    """
    # two ratios, as the aspect ratio is not kept
    ratios = torch.tensor([size / image.width, size / image.height])
    return GroundingInput(square(image, size), boxes * ratios.repeat(2) / size, ratios)


def resize(image: Image, width: int, height: int) -> Image:
    """Bicubic resize with antialiasing, whatever the aspect ratio.

    width, height: in pixels.
    """
    from PIL.Image import Resampling

    return image.resize((width, height), Resampling.BICUBIC)


def to_tensor(image: Image) -> Tensor:
    """RGB image to numbers in [0, 1].

    Returns:
        float32 (3, height, width).

    Raises:
        ValueError: on another mode, which would give other channels silently.
    """
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image, got mode {image.mode}; call .convert('RGB') first")
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous().float() / 255


def normalize(pixels: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(pixels - mean) / std per channel.

    Args:
        pixels: (..., 3, height, width) in [0, 1].
        mean, std: per channel, CLIP's by default.

    Returns:
        Like pixels.
    """
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


Frame = npt.NDArray[np.uint8]
"""(height, width, 3)."""

FILL = 128
MAX_LEVEL = 10
CLIP_LEVEL, IMAGE_LEVEL = 5, 7
CLIP_OPS = (
    "Identity", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
)  # fmt: skip
PRETRAINING_OPS = (*CLIP_OPS, "HorizontalFlip")
IMAGE_OPS = (
    "Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
    "Rotate",
)  # fmt: skip

_LUMA = (0.114, 0.587, 0.299)
"""Weights of the channels in the grey that `Contrast` and `Color` turn around: published for BGR, applied to RGB."""
_MAX_TRANSLATION, _MAX_SHEAR, _MAX_DEGREES = 10.0, 0.3, 30.0
_OPS = (*PRETRAINING_OPS, "AutoContrast", "Equalize", "Color", "Solarize", "Posterize")


def augment_clip(
    frames: Tensor, ops: tuple[str, ...], rng: random.Random, *, count: int = 2, level: float = CLIP_LEVEL
) -> Tensor:
    """RandAugment on a clip: the same operations on every frame, geometry to the positive side.

    Args:
        frames: uint8 (time, height, width, 3).
        ops: names to draw from.
        rng: of the draws.
        count: distinct operations, 2 as published.
        level: magnitude of 10, 5 as published for clips.

    Returns:
        Like frames.
    """
    # distinct for clips, with repetition for images: the two releases differ
    names = rng.sample(ops, count)
    changed = [reduce(lambda frame, name: apply(name, frame, level), names, frame) for frame in frames.numpy()]
    return torch.from_numpy(np.stack(changed))


def augment_image(
    image: Image, ops: tuple[str, ...], rng: random.Random, *, count: int = 2, level: float = IMAGE_LEVEL
) -> Image:
    """RandAugment on an image: `count` draws with repetition, each applied half of the time.

    Args:
        image: RGB.
        ops: names to draw from.
        rng: of the draws; geometry goes to a random side.
        count: draws, 2 as published.
        level: magnitude of 10, 7 as published for images.

    Returns:
        An image of the same size.
    """
    from PIL import Image as PILImage

    frame: Frame = np.array(image, dtype=np.uint8)
    for name in rng.choices(ops, k=count):
        if rng.random() < 0.5:
            # the sign is drawn for every operation, of colour too, so that draws stay in step
            frame = apply(name, frame, level, -1 if rng.random() < 0.5 else 1)
    return PILImage.fromarray(frame)


def apply(name: str, frame: Frame, level: float, sign: int = 1, *, official: bool = False) -> Frame:
    """One operation of RandAugment.

    Colour factor = level / 10 * 1.8 + 0.1, shear = level / 10 * 0.3, translation = level / 10 * 10
    pixels, rotation = level / 10 * 30 degrees counter-clockwise.

    Args:
        name: of `IMAGE_OPS`, `CLIP_OPS`, `PRETRAINING_OPS`, or Color, Solarize, Posterize.
        frame: uint8 (height, width, 3).
        level: magnitude of 10.
        sign: -1 turns, shears or moves to the other side.
        official: let sharpened values beyond 0..255 wrap around, as released.

    Returns:
        Like frame.

    Raises:
        ValueError: for an unknown name.
    """
    # the published ranges are for a level of 10
    share = level / MAX_LEVEL
    factor, moved = share * 1.8 + 0.1, share * sign
    match name:
        case "Identity":
            return frame
        case "HorizontalFlip":
            return np.ascontiguousarray(frame[:, ::-1])
        case "AutoContrast" | "Equalize":
            from PIL import Image as PILImage
            from PIL import ImageOps

            change = ImageOps.autocontrast if name == "AutoContrast" else ImageOps.equalize
            return np.array(change(PILImage.fromarray(frame)), dtype=np.uint8)
        case "Brightness":
            # a table of 256 values, not arithmetic on every pixel
            return _bytes(np.arange(256, dtype=np.float32) * factor)[frame]
        case "Contrast":
            # the mean of the whole frame, so that frames of a clip turn around their own grey
            mean = float((frame.mean(axis=(0, 1)) * _LUMA).sum())
            return _bytes((np.arange(256) - mean) * factor + mean)[frame]
        case "Color":
            luma = np.array(_LUMA)[:, None]
            to_grey, from_grey = luma.astype(np.float32), (np.eye(3) - luma).astype(np.float32)
            return _bytes(frame @ (from_grey * factor + to_grey))
        case "Solarize":
            values = np.arange(256)
            return _bytes(np.where(values < int(share * 256), values, 255 - values))[frame]
        case "Posterize":
            # keeps the highest bits, fewer at a lower level
            return frame & np.uint8(255 << (8 - int(share * 4)) & 255)
        case "Sharpness":
            return _sharpened(frame, factor, wrap=official)
        case "ShearX":
            return _warp(frame, ((1, moved * _MAX_SHEAR, 0), (0, 1, 0)))
        case "ShearY":
            return _warp(frame, ((1, 0, 0), (moved * _MAX_SHEAR, 1, 0)))
        case "TranslateX":
            return _warp(frame, ((1, 0, -moved * _MAX_TRANSLATION), (0, 1, 0)))
        case "TranslateY":
            return _warp(frame, ((1, 0, 0), (0, 1, -moved * _MAX_TRANSLATION)))
        case "Rotate":
            angle = math.radians(moved * _MAX_DEGREES)
            cos, sin = math.cos(angle), math.sin(angle)
            # half a pixel beyond the middle of the pixel grid, as released
            x, y = frame.shape[1] / 2, frame.shape[0] / 2
            return _warp(frame, ((cos, sin, (1 - cos) * x - sin * y), (-sin, cos, sin * x + (1 - cos) * y)))
    raise ValueError(f"expected an operation among {', '.join(_OPS)}, got {name!r}")


def _bytes(values: npt.NDArray[np.floating]) -> Frame:
    """Numbers to uint8: clipped, fractions cut off."""
    return values.clip(0, 255).astype(np.uint8)


def _sharpened(frame: Frame, factor: float, *, wrap: bool) -> Frame:
    """Away from a blur by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay.

    factor: 1 is the picture itself, 0 the blur; wrap: as released, see below.
    """
    if factor == 1.0 or min(frame.shape[:2]) < 3:
        return frame
    height, width = frame.shape[:2]
    wide = frame.astype(np.float32)
    around = sum(wide[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = wide[1:-1, 1:-1]
    # rounded before it is used, as an 8-bit filter does
    blur = np.rint((around + 4 * inner) / 13)
    sharp = frame.copy()
    values = (blur + factor * (inner - blur)).astype(np.int64)  # truncates towards zero
    # The published code casts to bytes unchecked, so that a pixel sharpened beyond white comes back black.
    sharp[1:-1, 1:-1] = (values % 256 if wrap else values.clip(0, 255)).astype(np.uint8)
    return sharp


def _warp(frame: Frame, forward: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Frame:
    """Bilinear affine map: output(x, y) = input at the inverse of `forward`.

    forward: two rows of three, pixels to pixels. What comes from outside is mid-grey (128).
    """
    height, width = frame.shape[:2]
    # every output pixel asks where it comes from, so that no pixel stays unfilled
    (a, b, c), (d, e, f) = np.linalg.inv(np.array([*forward, (0, 0, 1)], dtype=np.float64))[:2]
    columns, rows = np.arange(width), np.arange(height)[:, None]
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = (x - left)[..., None], (y - top)[..., None]

    def at(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        found = frame[rows.clip(0, height - 1), columns.clip(0, width - 1)].astype(np.float64)
        return np.where(inside[..., None], found, FILL)

    upper = at(top, left) * (1 - right) + at(top, left + 1) * right
    lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return np.rint(upper * (1 - below) + lower * below).astype(np.uint8)
