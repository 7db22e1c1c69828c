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
    """One clip: mean over channels, zero mean and unit variance, the first `max_duration` seconds, tiled if short.

    waveform: (samples,) or (samples, channels). Returns float32 (samples,), at least `min_duration` seconds long.
    Raises ValueError on an empty clip.
    """
    mono = np.asarray(waveform, dtype=np.float32)
    if mono.ndim == 2:
        mono = mono.mean(axis=1)
    if mono.ndim != 1 or mono.size == 0:
        raise ValueError(
            f"expected samples of shape (n,) or (n, channels), got {np.shape(waveform)}; pass a whole clip"
        )
    clip = normalize_waveform(mono)[: int(max_duration * sampling_rate)]
    shortest = int(min_duration * sampling_rate)
    return clip if len(clip) >= shortest else np.resize(clip, shortest)


def normalize_waveform(waveform: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) with the biased variance, float32 (samples,)."""
    x = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    return torch.nn.functional.layer_norm(x, x.shape, eps=eps).numpy()


def pad_waveforms(waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """A right-padded batch.

    waveforms: arrays (samples_i,). Returns float32 (batch, samples) and boolean (batch, samples), True = real.
    """
    lengths = torch.tensor([len(w) for w in waveforms])
    batch = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    return batch, torch.arange(batch.shape[1]) < lengths[:, None]


def conv_output_length(num_samples: int, spec: Sequence[tuple[int, int, int]]) -> int:
    """Frames that convolutions without padding make of `num_samples`.

    spec: (channels, kernel, stride) per layer; n -> 1 + floor((n - kernel) / stride).
    """
    for _, kernel, stride in spec:
        num_samples = max(0, (num_samples - kernel) // stride + 1)
    return num_samples
