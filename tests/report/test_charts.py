"""Curves stay readable, ticks round, and the numbers of a gap true."""

from __future__ import annotations

import numpy as np
import pytest

from plait.report.charts import gap_numbers, line_chart, thin, ticks


def test_thinning_keeps_the_mean_and_the_end() -> None:
    series = [(float(i), float(i % 7)) for i in range(1600)]
    short = thin(series)
    assert len(short) == 160
    assert short[-1][0] == 1599
    assert np.mean([y for _, y in short]) == pytest.approx(np.mean([y for _, y in series]))
    assert thin([(1.0, float("nan")), (2.0, 3.0)]) == [(2.0, 3.0)]


@pytest.mark.parametrize(("low", "high"), [(0, 4.9), (0, 2200), (0, 0.031), (-1.5, 1), (0, 1)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert found[0] >= low - 1e-9 and found[-1] <= high + 1e-9
    assert len(set(np.round(np.diff(found), 9))) == 1


def test_a_chart_without_points_is_empty() -> None:
    assert line_chart({"loss": [[]]}, "steps") == ""


def test_gap_numbers_tell_matching_from_other_pairs() -> None:
    vectors = {"text": np.eye(3), "image": np.eye(3)[[0, 0, 1]]}
    labels = {"text": ["a", "b", "c"], "image": ["a", "a", "b"]}
    assert gap_numbers(vectors, labels) == [("text and image", 1.0, 0.0)]
