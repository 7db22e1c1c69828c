from __future__ import annotations

import pytest

from plait.training.schedules import constant, cosine, linear


@pytest.mark.parametrize("schedule", [cosine, linear, constant])
def test_warm_up_rises_in_a_straight_line_from_the_floor(schedule) -> None:
    rates = [schedule(u, 20, peak=1.0, floor=0.2, warmup=4) for u in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule, middle, end", [(cosine, 0.6, 0.2), (linear, 0.6, 0.2), (constant, 1.0, 1.0)])
def test_the_end_value_holds(schedule, middle: float, end: float) -> None:
    assert schedule(12, 20, peak=1.0, floor=0.2, warmup=4) == pytest.approx(middle)
    assert schedule(20, 20, peak=1.0, floor=0.2, warmup=4) == pytest.approx(end)
    assert schedule(99, 20, peak=1.0, floor=0.2, warmup=4) == pytest.approx(end)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert cosine(0, 10, peak=3.0) == linear(0, 10, peak=3.0) == constant(0, 10, peak=3.0) == 3.0
