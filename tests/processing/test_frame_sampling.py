"""Samplers take one frame from each part of a clip and cope with clips that are too short."""

from __future__ import annotations

import random

import numpy as np
import pytest

from plait.processing.videos import (
    clip_indices,
    fps_indices,
    interval_indices,
    middle_indices,
    random_indices,
    random_times,
)

PERMUTE = np.random.default_rng(0).permutation


def test_the_middle_of_each_part_is_taken_and_short_clips_repeat_their_last_frame() -> None:
    assert middle_indices(4, 40) == [4, 14, 24, 34]
    assert middle_indices(4, 2) == [0, 1, 1, 1]


@pytest.mark.parametrize("length", [1, 5, 17, 100])
def test_random_frames_rise_and_stay_in_the_clip(length: int) -> None:
    indices = random_indices(8, length, random.Random(1), PERMUTE)
    assert len(indices) == 8
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < length


def test_each_part_gives_one_random_frame() -> None:
    seen = {tuple(random_indices(4, 40, random.Random(seed), PERMUTE)) for seed in range(20)}
    assert len(seen) > 15
    assert all(10 * k <= index < 10 * k + 9 for indices in seen for k, index in enumerate(indices))


def test_a_span_of_seconds_restricts_the_frames() -> None:
    drawn = lambda count: random_indices(4, count, random.Random(0), PERMUTE)  # noqa: E731
    indices = clip_indices(drawn, 100, 10.0, 2.0, 6.0)
    assert indices is not None
    assert 20 <= indices[0] <= indices[-1] < 60
    assert clip_indices(drawn, 100, 10.0, 9.95, 20.0) is None


def test_fixed_rates_look_into_the_middle_of_each_period() -> None:
    assert fps_indices(1.0, 75, 25.0) == [12, 38, 62]
    assert interval_indices(3, 5, 30.0, random.Random(0)) == [0, 4, 4]


def test_a_single_frame_of_an_interval_is_any_frame() -> None:
    assert {interval_indices(1, 4, 30.0, random.Random(seed))[0] for seed in range(40)} == {0, 1, 2, 3}


def test_random_times_fall_into_their_parts() -> None:
    times = random_times(8.0, 4, random.Random(0))
    assert all(2 * k <= time < 2 * k + 2 for k, time in enumerate(times))


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="got 4 of 0"):
        middle_indices(4, 0)
