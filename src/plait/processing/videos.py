"""Clips to tensors, and which frames of a clip a model sees.

number of frames and clip length -> parts of equal length -> one frame of each
frames (time, height, width, 3) uint8 -> resize, crop, flip, augment -> (3, time, size, size) normalised

Every random choice of a clip is drawn once and used for all of its frames. Frames are chosen by index, as published
(the samplers of Frozen in Time and SlowFast as mPLUG-2's loaders use them), or by presentation time, as Plait samples
files. Source: specification mPLUG-2, section 11.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.processing.images import (
    CLIP_MEAN,
    CLIP_OPS,
    CLIP_STD,
    IMAGE_OPS,
    PRETRAINING_OPS,
    augment_clip,
    augment_image,
    normalize,
    resize,
    to_tensor,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Resample = Literal["nearest", "bicubic"]
"""How evaluation clips are resized: `nearest` as published, or `bicubic` with antialiasing."""

_PRETRAINING_MARGIN = 1.14


class Crop(NamedTuple):
    """A rectangle in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def stack_frames(frames: Sequence[Image]) -> Tensor:
    """PIL frames of one clip as one tensor.

    Returns:
        uint8 (time, height, width, 3).

    Raises:
        ValueError: without frames or on mixed sizes.
    """
    if not frames or len({frame.size for frame in frames}) != 1:
        sizes = sorted({frame.size for frame in frames})
        raise ValueError(f"expected frames of one size, got {sizes or 'no frames'}; pass the frames of one clip")
    return torch.from_numpy(np.stack([np.array(frame.convert("RGB"), dtype=np.uint8) for frame in frames]))


def evaluation_clip(
    frames: Tensor,
    size: int,
    resample: Resample = "nearest",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Frames to a square whatever the aspect ratio, normalised.

    Args:
        frames: uint8 (time, height, width, 3).
        size: side in pixels.
        resample: `nearest` as published, or `bicubic` with antialiasing.
        mean, std: per channel, CLIP's by default.

    Returns:
        float32 (3, time, size, size).

    Raises:
        ValueError: for another resample.
    """
    if resample not in ("nearest", "bicubic"):
        raise ValueError(f"expected resample nearest or bicubic, got {resample!r}")
    pixels = frames.permute(0, 3, 1, 2).float()
    if resample == "nearest":
        # published videos were tested so: the resize op's default, not a choice of quality
        pixels = F.interpolate(pixels, size=(size, size), mode="nearest")
    else:
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).round().clamp(0, 255)
    return normalize(pixels / 255, mean, std).transpose(0, 1).contiguous()


def training_clip(
    frames: Tensor, size: int, rng: random.Random, *, augment: bool = True, official: bool = False
) -> Tensor:
    """Random crop of half to all of the area, flip, two operations of RandAugment, normalise.

    Args:
        frames: uint8 (time, height, width, 3).
        size: side in pixels.
        rng: of all draws, each for the whole clip.
        augment: whether RandAugment runs.
        official: bicubic without antialiasing, truncated to integers that may leave 0..255 and
            wrap there when they are augmented; else with antialiasing, rounded and clamped.

    Returns:
        float32 (3, time, size, size).
    """
    # one draw for all frames: a crop that jumped about would look like motion
    crop = random_crop(frames.shape[1], frames.shape[2], rng)
    values = crop_and_resize(frames, crop, size, official=official)
    if augment:
        values = augment_clip(wrap(values), CLIP_OPS, rng)
    return clip_to_tensor(values)


def pretraining_clip(frames: Tensor, size: int, rng: random.Random) -> Tensor:
    """Nearest resize to 1.14 * size, two operations of RandAugment, a random crop of `size`.

    Args:
        frames: uint8 (time, height, width, 3).
        size: side in pixels.
        rng: of all draws; flipping is one of the operations.

    Returns:
        float32 (3, time, size, size).
    """
    large = int(_PRETRAINING_MARGIN * size)
    pixels = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(large, large), mode="nearest")
    values = augment_clip(pixels.permute(0, 2, 3, 1).to(torch.uint8), PRETRAINING_OPS, rng)
    top, left = rng.randint(0, large - size), rng.randint(0, large - size)
    return clip_to_tensor(values[:, top : top + size, left : left + size])


def training_image(
    image: Image, size: int, rng: random.Random, *, scale: tuple[float, float] = (0.5, 1.0), augment: bool = True
) -> Tensor:
    """The same for an image: random crop, flip, RandAugment.

    Args:
        image: RGB; resized by PIL's bicubic filter.
        size: side in pixels.
        rng: of all draws.
        scale: least and most share of the area.
        augment: whether RandAugment runs.

    Returns:
        float32 (3, size, size).
    """
    from PIL.Image import Resampling, Transpose

    crop = random_crop(image.height, image.width, rng, scale=scale)
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    image = image.resize((size, size), Resampling.BICUBIC, box=box)
    if crop.flip:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    if augment:
        image = augment_image(image, IMAGE_OPS, rng)
    return normalize(to_tensor(image))


def random_crop(
    height: int,
    width: int,
    rng: random.Random,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    """A random part of the area with a random aspect ratio, mirrored half of the time.

    After ten draws that do not fit, the largest central crop of an allowed ratio.

    Args:
        height, width: of the image, in pixels.
        rng: of the draws.
        scale: least and most share of the area.
        ratio: least and most width / height, drawn log-uniformly.

    Returns:
        A `Crop`.

    Source:
        Inception (arXiv 1409.4842), in torchvision's form.
    """
    # drawn first, always: the number of draws before it must not depend on the crop
    flip = rng.random() < 0.5
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(rng.randint(0, height - h), rng.randint(0, width - w), h, w, flip)
    # a strip of one pixel has no crop of an allowed ratio: at least one pixel stays
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Crop((height - h) // 2, (width - w) // 2, h, w, flip)


def crop_and_resize(frames: Tensor, crop: Crop, size: int, *, official: bool = False) -> Tensor:
    """A crop of frames, resized to a square.

    Args:
        frames: uint8 (time, height, width, 3).
        crop: what to keep.
        size: side in pixels.
        official: rules as in `training_clip`.

    Returns:
        int64 (time, size, size, 3); beyond 0..255 where `official`.
    """
    part = frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    pixels = part.permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=not official)
    # `long` truncates towards zero
    values = (pixels if official else pixels.round().clamp(0, 255)).long()
    return (values.flip(-1) if crop.flip else values).permute(0, 2, 3, 1).contiguous()


def wrap(values: Tensor) -> Tensor:
    """Integers to uint8, modulo 256.

    What an unchecked cast does with values that bicubic ringing pushed outside 0..255.
    """
    return values.remainder(256).to(torch.uint8)


def clip_to_tensor(values: Tensor) -> Tensor:
    """Integer frames to model input: / 255 and normalised by CLIP's mean and deviation.

    values: (time, height, width, 3) -> float32 (3, time, height, width).
    """
    return normalize(values.permute(0, 3, 1, 2).float() / 255).transpose(0, 1).contiguous()


Permute = Callable[[int], np.ndarray]
"""n -> a random order of range(n), for example `numpy.random.default_rng(0).permutation`."""

INTERVAL = 8
"""Frames between two samples of `interval_indices`, at 30 frames per second."""


def middle_indices(num_frames: int, length: int) -> list[int]:
    """The middle frame of `num_frames` equal parts: evaluation of mPLUG-2.

    Args:
        num_frames: how many.
        length: frames of the clip; a shorter clip repeats its last frame.

    Raises:
        ValueError: without frames.

    Example:
        >>> middle_indices(4, 16)
        [1, 5, 9, 13]
    """
    return _repeat_last([(low + high) // 2 for low, high in _parts(num_frames, length)], num_frames)


def centred_indices(num_frames: int, length: int) -> list[int]:
    """Frames about the middles of `num_frames` equal parts, as mPLUG-Owl takes them.

    Parts have (length - 1) / num_frames frames each; the first frame lies half a part in, the
    others are rounded to even from there.

    Args:
        num_frames: how many, 4 by default in the release.
        length: frames of the clip; short clips repeat frames.

    Source:
        Specification mPLUG-Owl, 8.
    """
    # of length - 1, as published: the last frame is the end of the last part
    part = (length - 1) / num_frames
    return [int(part / 2) + round(part * k) for k in range(num_frames)]


def random_indices(num_frames: int, length: int, rng: random.Random, permute: Permute) -> list[int]:
    """A random frame of each of `num_frames` equal parts: training of mPLUG-2.

    Args:
        num_frames: how many.
        length: frames of the clip; short clips repeat their last.
        rng: of the draws.
        permute: n -> a random order of range(n), for clips whose parts have fewer than two
            frames: a sorted random subset then.

    Raises:
        ValueError: without frames.
    """
    parts = _parts(num_frames, length)
    drawn = []
    for low, high in parts:
        if low >= high:
            drawn = sorted(int(i) for i in permute(length)[: len(parts)])
            break
        # the part's last frame is excluded, as published
        drawn.append(rng.choice(range(low, high)))
    return _repeat_last(drawn, num_frames)


def clip_indices(
    choose: Callable[[int], Sequence[int]], length: int, fps: float, start: float, end: float
) -> list[int] | None:
    """Frames between two times of a video, as the releases cut clips out of videos.

    Args:
        choose: number of frames between the two -> numbers among them.
        length: frames of the video.
        fps: frames per second of the video.
        start, end: seconds.

    Returns:
        Frame numbers of the video; None where fewer than two frames lie between.
    """
    first, last = int(fps * start), min(int(fps * end), length)
    return None if last - first < 2 else [first + index for index in choose(last - first)]


def fps_indices(fps: float, length: int, input_fps: float) -> list[int]:
    """The frames in the middle of every 1 / `fps` seconds.

    Args:
        fps: frames per second that are wanted.
        length: frames of the clip.
        input_fps: frames per second that it has.
    """
    step, seconds = 1 / fps, length / input_fps
    # to half a step behind the end, so that rounding never loses the last one; what is outside goes
    indices = np.around(np.arange(step / 2, seconds + step / 2, step) * input_fps).astype(int)
    return [int(index) for index in indices if index < length]


def interval_indices(num_frames: int, length: int, input_fps: float, rng: random.Random) -> list[int]:
    """`num_frames` frames 8/30 s apart from a random start.

    Args:
        num_frames: how many; a single one is any of the clip.
        length: frames of the clip; the last one stands for those behind it.
        input_fps: frames per second of the clip.
        rng: of the start.
    """
    if num_frames == 1:
        return [rng.randint(0, length - 1)]
    span = num_frames * INTERVAL * input_fps / 30
    start = rng.uniform(0, max(length - span, 0))
    # float32, as published, which decides ties
    points = torch.linspace(start, start + span - 1, num_frames)
    return points.clamp(0, length - 1).long().tolist()


CLIPS, SPAN = 3, 128
"""Clips of a film in a test of Kinetics, and the frames that each spans: 16 frames 8 apart, or 32 frames 4 apart."""


def clips_indices(num_frames: int, length: int) -> list[int]:
    """Frames of three clips from the start to the end of a video: the test of ONE-PEACE on Kinetics.

    Args:
        num_frames: of all clips together.
        length: frames of the video; one shorter than a clip begins anew.

    Source:
        Specification ONE-PEACE, 8.3; clips lie evenly, the first at the start and the last at the end.
    """
    count = num_frames // CLIPS
    room, step = max(length - SPAN, 0), max(SPAN // count, 1)
    starts = [round(room * clip / (CLIPS - 1)) for clip in range(CLIPS)]
    return [(start + step * i) % length for start in starts for i in range(count)]


def three_crops(frame: Image, size: int, mean: Sequence[float], std: Sequence[float]) -> list[Tensor]:
    """Squares at both ends and in the middle of a frame whose shorter side is `size`, (3, size, size) each, normalised.

    Source:
        Specification ONE-PEACE, 8.3.
    """
    frame = frame.convert("RGB")
    short = min(frame.size)
    frame = resize(frame, *(max(size, int(side * size / short + 0.5)) for side in frame.size))
    crops = []
    for share in (0.0, 0.5, 1.0):
        left, top = (int((side - size) * share) for side in frame.size)
        crops.append(normalize(to_tensor(frame.crop((left, top, left + size, top + size))), mean, std))
    return crops


def _of_one_seed(length: int) -> tuple[random.Random, Permute]:
    """Draws that are the same for every clip of one length, so that a measurement can be repeated."""
    return random.Random(length), np.random.default_rng(length).permutation


FRAME_RULES: dict[str, Callable[[int, int, float], list[int]]] = {
    "middle": lambda count, length, fps: middle_indices(count, length),
    "centred": lambda count, length, fps: centred_indices(count, length),
    "random": lambda count, length, fps: random_indices(count, length, *_of_one_seed(length)),
    "interval": lambda count, length, fps: interval_indices(count, length, fps, _of_one_seed(length)[0]),
    "fps": lambda count, length, fps: fps_indices(count * fps / length, length, fps),
    "clips": lambda count, length, fps: clips_indices(count, length),
}
"""Name of a published rule -> (frames wanted, frames of the clip, its frames per second) -> numbers of frames."""


def chooser(
    rule: str, num_frames: int, start: float | None = None, end: float | None = None
) -> Callable[[int, float], list[int]] | None:
    """What `plait.media.video.load_video` chooses frames by; None for even times over the whole video.

    Args:
        rule: a name of `FRAME_RULES`, or `time`.
        num_frames: how many.
        start, end: seconds of the part that is meant; None takes the whole video.

    Raises:
        ValueError: for another rule.
    """
    if rule != "time" and rule not in FRAME_RULES:
        raise ValueError(f"expected frames by one of time, {', '.join(FRAME_RULES)}, got {rule!r}")
    if rule == "time" and start is None:
        return None
    # even times of a part are the middles of its equal parts
    choose = FRAME_RULES["middle" if rule == "time" else rule]

    def numbers(length: int, fps: float) -> list[int]:
        if start is None or end is None:
            return choose(num_frames, length, fps)
        part = clip_indices(lambda count: choose(num_frames, count, fps), length, fps, start, end)
        # a part of less than two frames, or behind the end: the frame that stands there
        return [min(int(fps * start), length - 1)] * num_frames if part is None else part

    return numbers


def random_times(seconds: float, num_frames: int, rng: random.Random) -> list[float]:
    """Seconds at which to look in training: a uniform draw from each of `num_frames` equal parts.

    The middle of each part, for evaluation, is what `plait.media.video.load_video` takes by itself.

    Args:
        seconds: length of the video.
        num_frames: how many.
        rng: of the draws.
    """
    part = seconds / num_frames
    return [part * (i + rng.random()) for i in range(num_frames)]


def _parts(num_frames: int, length: int) -> list[tuple[int, int]]:
    """First and last frame of min(length, num_frames) equal parts.

    Raises ValueError without frames.
    """
    if num_frames < 1 or length < 1:
        raise ValueError(f"expected at least one frame of at least one, got {num_frames} of {length}")
    # cut off, not rounded, as the published sampler does
    bounds = np.linspace(0, length, min(length, num_frames) + 1).astype(int).tolist()
    return [(low, high - 1) for low, high in pairwise(bounds)]


def _repeat_last(indices: list[int], count: int) -> list[int]:
    """`indices`, the last one repeated until there are `count`."""
    return indices + [indices[-1]] * (count - len(indices))
