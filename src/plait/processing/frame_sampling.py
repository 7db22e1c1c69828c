"""Which frames of a clip a model sees: by index, as published, or by presentation time, as Plait samples files.

    number of frames and clip length -> parts of equal length -> one frame of each

Source: the samplers of Frozen in Time and SlowFast as mPLUG-2's loaders use them (specification mPLUG-2, section 11).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

Permute = Callable[[int], np.ndarray]
"""n -> a random order of range(n), for example `numpy.random.default_rng(0).permutation`."""

INTERVAL = 8
"""Frames between two samples of `interval_indices`, at 30 frames per second."""


def middle_indices(num_frames: int, length: int) -> list[int]:
    """The middle frame of `num_frames` equal parts of `length` frames; a shorter clip repeats its last frame."""
    return _repeat_last([(low + high) // 2 for low, high in _parts(num_frames, length)], num_frames)


def centred_indices(num_frames: int, length: int) -> list[int]:
    """Frames about the middles of `num_frames` equal parts as mPLUG-Owl takes them; short clips repeat frames.

    Of (length - 1) / num_frames frames each, the first from half a part on, rounded to even (specification, section 8).
    """
    part = (length - 1) / num_frames
    return [int(part / 2) + round(part * k) for k in range(num_frames)]


def random_indices(num_frames: int, length: int, rng: random.Random, permute: Permute) -> list[int]:
    """A random frame of each part, the part's last one excluded as published.

    Where a part has fewer than two frames, a sorted random subset of the clip instead. Short clips repeat their last.
    """
    parts = _parts(num_frames, length)
    drawn = []
    for low, high in parts:
        if low >= high:
            drawn = sorted(int(i) for i in permute(length)[: len(parts)])
            break
        drawn.append(rng.choice(range(low, high)))
    return _repeat_last(drawn, num_frames)


def clip_indices(
    num_frames: int, length: int, fps: float, start: float, end: float, rng: random.Random, permute: Permute
) -> list[int] | None:
    """`random_indices` of the frames from second `start` to second `end`; None where these are fewer than two."""
    first, last = int(fps * start), min(int(fps * end), length)
    if last - first < 2:
        return None
    return [first + index for index in random_indices(num_frames, last - first, rng, permute)]


def fps_indices(fps: float, length: int, input_fps: float) -> list[int]:
    """The frames in the middle of every 1 / `fps` seconds of a clip of `length` frames at `input_fps`."""
    step, seconds = 1 / fps, length / input_fps
    indices = np.around(np.arange(step / 2, seconds + step / 2, step) * input_fps).astype(int)
    return [int(index) for index in indices if index < length]


def interval_indices(num_frames: int, length: int, input_fps: float, rng: random.Random) -> list[int]:
    """`num_frames` frames 8/30 s apart from a random start; the last frame of the clip stands for those behind it.

    A single frame is any of the clip.
    """
    if num_frames == 1:
        return [rng.randint(0, length - 1)]
    span = num_frames * INTERVAL * input_fps / 30
    start = rng.uniform(0, max(length - span, 0))
    points = torch.linspace(start, start + span - 1, num_frames)  # float32, as published, which decides ties
    return points.clamp(0, length - 1).long().tolist()


def random_times(seconds: float, num_frames: int, rng: random.Random) -> list[float]:
    """Seconds at which to look in training: a uniform draw from each of `num_frames` equal parts of a video.

    The middle of each part, for evaluation, is what `plait.media.video.load_video` takes by itself.
    """
    part = seconds / num_frames
    return [part * (i + rng.random()) for i in range(num_frames)]


def _parts(num_frames: int, length: int) -> list[tuple[int, int]]:
    """First and last frame of min(length, num_frames) equal parts. Raises ValueError without frames."""
    if num_frames < 1 or length < 1:
        raise ValueError(f"expected at least one frame of at least one, got {num_frames} of {length}")
    bounds = np.linspace(0, length, min(length, num_frames) + 1).astype(int).tolist()
    return [(low, high - 1) for low, high in pairwise(bounds)]


def _repeat_last(indices: list[int], count: int) -> list[int]:
    return indices + [indices[-1]] * (count - len(indices))
