from __future__ import annotations

import pytest

from plait.training.schedules import cosine, linear, released_rate, stepped_cosine


@pytest.mark.parametrize("schedule", [cosine, linear])
def test_warm_up_rises_in_a_straight_line_from_the_floor(schedule) -> None:
    rates = [schedule(u, 20, peak=1.0, floor=0.2, warmup=4) for u in range(5)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule, middle, end", [(cosine, 0.6, 0.2), (linear, 0.6, 0.2)])
def test_the_end_value_holds(schedule, middle: float, end: float) -> None:
    assert schedule(12, 20, peak=1.0, floor=0.2, warmup=4) == pytest.approx(middle)
    assert schedule(20, 20, peak=1.0, floor=0.2, warmup=4) == pytest.approx(end)
    assert schedule(99, 20, peak=1.0, floor=0.2, warmup=4) == pytest.approx(end)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert cosine(0, 10, peak=3.0) == linear(0, 10, peak=3.0) == 3.0


def test_a_stepped_cosine_warms_up_from_its_own_start() -> None:
    settings = {"peak": 2.0, "floor": 0.5, "start": 1.0, "warmup": 10, "decay": 20}
    rates = [stepped_cosine(step, **settings) for step in (0, 5, 10, 20, 30, 99)]
    assert rates == pytest.approx([1.0, 1.5, 2.0, 1.25, 0.5, 0.5])


def test_released_captioning_dents_the_rate_in_its_first_epoch_only() -> None:
    settings = {
        "peak": 2.0,
        "floor": 0.5,
        "start": 0.5,
        "warmup": 10,
        "epochs": 2,
        "steps_per_epoch": 50,
        "per_step": True,
    }
    even = [released_rate(i, **settings, step_size=1) for i in range(100)]
    dented = [released_rate(i, **settings, step_size=20) for i in range(100)]
    assert [i for i, (a, b) in enumerate(zip(even, dented, strict=True)) if a != b] == [21, 41]
    assert even[0] == even[1] == 0.5


def test_released_loops_without_warm_up_start_at_the_peak() -> None:
    settings = {"peak": 2.0, "floor": 0.5, "start": 0.5, "epochs": 2, "steps_per_epoch": 5, "step_size": 1}
    assert released_rate(0, **settings, warmup=0, per_step=True) == 2.0
    assert released_rate(0, **settings, warmup=3, per_step=True) == 0.5
