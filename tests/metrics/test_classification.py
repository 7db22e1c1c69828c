"""Scores of classifiers, boxes and answers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plait.metrics.boxes import box_iou, xywh_to_xyxy
from plait.metrics.classification import average_views, mean_per_class_accuracy, top_k_hits
from plait.metrics.retrieval import bootstrap_interval
from plait.metrics.vqa import without_punctuation


def test_the_mean_over_classes_is_over_those_that_are_right_not_over_those_that_were_said() -> None:
    # class 0: 2 of 3, class 1: 0 of 1; class 2 was said and is never right
    assert mean_per_class_accuracy([0, 0, 2, 2], [0, 0, 0, 1]) == pytest.approx((2 / 3 + 0) / 2)


def test_views_are_averaged_as_probabilities_however_large_their_logits_are() -> None:
    found = average_views([[[1000.0, 0.0], [0.0, 0.0]], [[-2000.0, -2000.0], [np.log(3), 0.0]]])
    assert found == pytest.approx(np.array([[0.75, 0.25], [0.625, 0.375]]))


def test_equal_scores_rank_by_the_number_of_their_class() -> None:
    scores = [[0.5, 0.5, 0.1], [0.5, 0.5, 0.1]]
    assert top_k_hits(scores, [0, 1], 1).tolist() == [True, False]
    assert top_k_hits(scores, [1, 2], 2).tolist() == [True, False]


def test_boxes_turned_inside_out_overlap_nothing() -> None:
    whole, inverted = [1.0, 1.0, 3.0, 3.0], [3.0, 3.0, 1.0, 1.0]
    assert box_iou([whole, inverted, inverted], [whole, inverted, whole]).tolist() == [1.0, 0.0, 0.0]
    # turned in one direction alone: the product of the sides would be negative
    assert box_iou([[3.0, 1.0, 1.0, 3.0]], [[3.0, 1.0, 1.0, 3.0]]).tolist() == [0.0]


def test_width_and_height_are_measured_from_the_corner() -> None:
    assert xywh_to_xyxy([[10.0, 20.0, 3.0, 4.0]]).tolist() == [[10.0, 20.0, 13.0, 24.0]]


def test_marks_become_spaces_or_nothing_by_the_text_as_it_was_given() -> None:
    # "-" becomes a space; the "/" beside it was beside no space in the text, so it becomes one too
    assert without_punctuation("a-/b").split() == ["a", "b"] and "  " in without_punctuation("a-/b")
    assert without_punctuation("a / b") == "a  b"  # beside a space: deleted


def test_the_tools_leave_a_33rd_period() -> None:
    assert without_punctuation("a." * 33) == "a" * 33 + "."


def test_an_interval_leaves_half_of_the_rest_on_either_side() -> None:
    values, draws = np.arange(1001.0), np.arange(1001)[:, None].repeat(2, 1)
    assert bootstrap_interval(values, level=0.9, indices=draws) == pytest.approx((50.0, 950.0))
