"""Learning-rate schedules: pure functions of the update number, counted from 0. Nothing here imports torch."""

from __future__ import annotations

import math


def cosine(step: int, total: int, *, peak: float, floor: float = 0.0, warmup: int = 0) -> float:
    """Linear warm-up from `floor` to `peak`, then half a cosine back to `floor`, which holds afterwards.

    lr(u) = floor + u (peak - floor) / warmup for u < warmup, else
    floor + (peak - floor) (1 + cos(pi (u - warmup) / (total - warmup))) / 2

    Source: ONE-PEACE, section 6.5 of its released layout; its own scheduler restarts at the end, this one does not.
    """
    if step < warmup:
        return _warm(step, warmup, floor, peak)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def linear(step: int, total: int, *, peak: float, floor: float = 0.0, warmup: int = 0) -> float:
    """Linear warm-up from `floor` to `peak`, then a straight line back to `floor`, which holds afterwards."""
    if step < warmup:
        return _warm(step, warmup, floor, peak)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak + (floor - peak) * progress


def constant(step: int, total: int, *, peak: float, floor: float = 0.0, warmup: int = 0) -> float:
    """Linear warm-up from `floor` to `peak`, which holds."""
    return _warm(step, warmup, floor, peak) if step < warmup else peak


def _warm(step: int, warmup: int, floor: float, peak: float) -> float:
    return floor + (peak - floor) * step / warmup
