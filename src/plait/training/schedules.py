"""Learning-rate schedules: pure functions of the update number, counted from 0. Nothing here imports torch.

step, total, peak, floor, warmup -> rate; `Stage.schedule` is `cosine`, `linear`, a recipe's `released_rate` or your own
"""

from __future__ import annotations

import math


def cosine(step: int, total: int, *, peak: float, floor: float = 0.0, warmup: int = 0) -> float:
    """Linear warm-up from `floor` to `peak`, then half a cosine back to `floor`, which holds afterwards.

        lr(u) = floor + u (peak - floor) / warmup                                       for u < warmup, else
                floor + (peak - floor) (1 + cos(pi (u - warmup) / (total - warmup))) / 2

    Args:
        step: u, from 0.
        total: steps of the stage, warm-up included.
        peak, floor: highest and lowest rate.
        warmup: steps; 0 starts at the peak.

    Source:
        ONE-PEACE, section 6.5 of its released layout; its own scheduler restarts at the end, this one does not.

    Example:
        >>> [round(cosine(step, 4, peak=1.0), 2) for step in range(5)]
        [1.0, 0.85, 0.5, 0.15, 0.0]
    """
    return stepped_cosine(step, peak=peak, floor=floor, start=floor, warmup=warmup, decay=total - warmup)


def linear(step: int, total: int, *, peak: float, floor: float = 0.0, warmup: int = 0) -> float:
    """Linear warm-up from `floor` to `peak`, then a straight line back to `floor`, which holds afterwards.

    Args:
        step, total, peak, floor, warmup: as in `cosine`.
    """
    if step < warmup:
        return floor + (peak - floor) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak + (floor - peak) * progress


def stepped_cosine(step: int, *, peak: float, floor: float, start: float, warmup: int, decay: float) -> float:
    """Warm-up from `start` to `peak` in `warmup` steps, half a cosine down to `floor` in `decay` more, then `floor`.

    Unlike in `cosine`, the warm-up need not begin at the floor.

    Args:
        step: from 0.
        peak, floor, start: rates.
        warmup, decay: lengths in steps.

    Source:
        mPLUG-2's scheduler (specification, section 12).
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, decay))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def released_rate(
    iteration: int,
    *,
    peak: float,
    floor: float,
    start: float,
    warmup: int,
    epochs: float,
    steps_per_epoch: int,
    per_step: bool,
    step_size: int,
) -> float:
    """The learning rate in force at an iteration of the released loops of mPLUG-2 (`per_step`) and mPLUG.

    The scheduler runs behind the optimiser, so iteration i + 1 uses lr(i) and iteration 0 uses `start`, or
    `peak` where there is no warm-up. In epoch 0, up to `warmup * step_size` iterations, every `step_size`-th
    one asks for lr(i / step_size): mPLUG's warm-up, and in mPLUG-2 (whose captioning has 100 there) a dent of
    one iteration. mPLUG otherwise counts epochs.

    Args:
        iteration: from 0, over all epochs.
        peak, floor, start: rates, see `stepped_cosine`.
        warmup: in steps (mPLUG-2) or epochs (mPLUG).
        epochs, steps_per_epoch: of the whole run.
        per_step: True for mPLUG-2, which counts steps.
        step_size: iterations between two changes in the warm-up of mPLUG.
    """
    before, epoch = iteration - 1, iteration // steps_per_epoch
    if before < 0:
        return start if warmup else peak
    # the last iteration at which the scheduler was asked
    last = before if per_step else before // step_size * step_size
    if not per_step and epoch == 0:
        last = min(last, warmup * step_size)
    resets = last < steps_per_epoch and last % step_size == 0 and last <= warmup * step_size
    if per_step:
        step, decay = (last // step_size if resets else last), epochs * steps_per_epoch - warmup
    else:
        step, decay = (last // step_size if epoch == 0 else warmup + epoch), epochs
    return stepped_cosine(step, peak=peak, floor=floor, start=start, warmup=warmup, decay=decay)
