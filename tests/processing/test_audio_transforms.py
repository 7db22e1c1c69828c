from __future__ import annotations

import numpy as np
import pytest

from plait.processing import waveforms as transforms


def sound(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 2.0, shape).astype(np.float32)


def test_clips_are_normalised_before_they_are_cut() -> None:
    clip = sound(30)
    clip[20:] += 50.0
    ready = transforms.prepare_waveform(clip, sampling_rate=10, max_duration=2.0, min_duration=1.0)
    np.testing.assert_allclose(ready, transforms.normalize_waveform(clip)[:20])
    assert abs(ready.mean()) > 0.1


def test_normalisation_uses_the_biased_variance() -> None:
    clip = sound(50)
    expected = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-5)
    np.testing.assert_allclose(transforms.normalize_waveform(clip), expected, atol=1e-5)
    assert not transforms.normalize_waveform(np.full(50, 0.7, dtype=np.float32)).any()


def test_short_clips_are_tiled() -> None:
    ready = transforms.prepare_waveform(sound(7), sampling_rate=10, min_duration=2.0)
    assert ready.shape == (20,)
    np.testing.assert_array_equal(ready[:7], ready[7:14])


def test_channels_are_averaged() -> None:
    stereo = sound(20000, 2)
    expected = transforms.prepare_waveform(stereo.mean(axis=1))
    np.testing.assert_array_equal(transforms.prepare_waveform(stereo), expected)


@pytest.mark.parametrize("shape", [(0,), (2, 3, 4), ()])
def test_what_is_no_clip_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected samples of shape"):
        transforms.prepare_waveform(np.zeros(shape, dtype=np.float32))


def test_batches_are_padded_on_the_right() -> None:
    batch, mask = transforms.pad_waveforms([sound(3), sound(5)])
    assert mask.tolist() == [[True, True, True, False, False], [True] * 5]
    assert not batch[~mask].any()
    np.testing.assert_array_equal(batch[0, :3], sound(3))


@pytest.mark.parametrize("samples, frames", [(16000, 49), (240000, 749), (320000, 999), (5, 0), (0, 0)])
def test_frames_of_the_published_convolutions(samples: int, frames: int) -> None:
    spec = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
    assert transforms.conv_output_length(samples, spec) == frames
