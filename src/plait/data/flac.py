"""Clips as 16-bit mono FLAC files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from plait.errors import import_extra


def write_flac(path: Path, samples: np.ndarray, sampling_rate: int) -> None:
    """Write float samples `(n,)` in -1..1 as 16-bit mono FLAC and make the directory. Needs soundfile.

    Encoded in memory: soundfile waits for the disk whenever it closes a file, which is slow for many clips.
    """
    memory = io.BytesIO()
    import_extra("soundfile").write(memory, samples, sampling_rate, subtype="PCM_16", format="FLAC")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(memory.getvalue())
