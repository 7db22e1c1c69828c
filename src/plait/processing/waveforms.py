"""Waveforms to model input: samples -> one channel -> normalised -> cut or tiled -> right-padded batch.

The order matters: a clip is normalised as a whole and cut afterwards (ONE-PEACE, section 5.3 of its released layout).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SAMPLING_RATE = 16000


def prepare_waveform(
    waveform: np.ndarray,
    *,
    sampling_rate: int = SAMPLING_RATE,
    max_duration: float = 15.0,
    min_duration: float = 1.0,
) -> np.ndarray:
    """One clip to model input: one channel, normalised, cut, tiled if short.

    Args:
        waveform: (samples,) or (samples, channels), in any scale.
        sampling_rate: samples per second.
        max_duration: seconds that are kept: 15 in general, 20 for audio-text retrieval.
        min_duration: seconds to which a shorter clip is tiled.

    Returns:
        float32 (samples,).

    Raises:
        ValueError: on an empty clip.

    Source:
        ONE-PEACE, 5.3 of its released layout.

    Example:
        >>> prepare_waveform(np.ones(8000, dtype=np.float32)).shape
        (16000,)
    """
    mono = np.asarray(waveform, dtype=np.float32)
    if mono.ndim == 2:
        # before normalisation, which measures what the model will hear
        mono = mono.mean(axis=1)
    if mono.ndim != 1 or mono.size == 0:
        raise ValueError(
            f"expected samples of shape (n,) or (n, channels), got {np.shape(waveform)}; pass a whole clip"
        )
    # normalised before it is cut: what is cut off still counts in mean and variance, as published
    clip = normalize_waveform(mono)[: int(max_duration * sampling_rate)]
    shortest = int(min_duration * sampling_rate)
    # np.resize repeats the clip from its start until the length is reached
    return clip if len(clip) >= shortest else np.resize(clip, shortest)


def normalize_waveform(waveform: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) with the biased variance.

    waveform: (samples,) -> float32 (samples,).
    """
    x = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    return torch.nn.functional.layer_norm(x, x.shape, eps=eps).numpy()


def pad_waveforms(waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """A right-padded batch.

    Args:
        waveforms: arrays (samples_i,).

    Returns:
        float32 (batch, samples), zeros on padding, and boolean (batch, samples), True = real.
    """
    lengths = torch.tensor([len(w) for w in waveforms])
    batch = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    return batch, torch.arange(batch.shape[1]) < lengths[:, None]


def conv_output_length(num_samples: int, spec: Sequence[tuple[int, int, int]]) -> int:
    """Frames that convolutions without padding make of `num_samples`, at least 0.

    Args:
        num_samples: of one clip.
        spec: (channels, kernel, stride) per layer; n -> 1 + floor((n - kernel) / stride).

    Example:
        >>> conv_output_length(16000, [(512, 10, 5)] + 4 * [(512, 3, 2)] + 2 * [(512, 2, 2)])
        49
    """
    for _, kernel, stride in spec:
        num_samples = max(0, (num_samples - kernel) // stride + 1)
    return num_samples
