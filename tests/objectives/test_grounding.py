"""Boxes survive as tokens, and the loss grows with distance."""

from __future__ import annotations

import pytest
import torch

from plait.objectives.grounding import (
    box_regression_loss,
    boxes_to_tokens,
    coordinate_bias,
    coordinate_token_loss,
    corners,
    generalized_iou,
    tokens_to_boxes,
)

BINS, FIRST, VOCAB = 20, 50, 90
BOXES = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.25, 0.75, 0.5, 0.5]])


def logits_of(tokens: torch.Tensor, confidence: float = 20.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(tokens, VOCAB).float() * confidence + coordinate_bias(VOCAB, BINS, FIRST)


def test_tokens_keep_a_box_up_to_a_bin() -> None:
    boxes = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    back = tokens_to_boxes(boxes_to_tokens(boxes, BINS, FIRST), BINS, FIRST)
    assert ((boxes - back) >= 0).all()
    assert ((boxes - back) < 1 / BINS).all()
    assert boxes_to_tokens(torch.tensor([[1.0, 2.0, -1.0, 0.0]]), BINS, FIRST).tolist() == [[70, 70, 50, 50]]


def test_giou_is_one_for_equal_boxes_and_negative_for_distant_ones() -> None:
    a = torch.tensor([0.0, 0.0, 0.5, 0.5])
    b = torch.tensor([0.5, 0.5, 1.0, 1.0])
    assert generalized_iou(a, a).item() == pytest.approx(1, abs=1e-4)
    assert generalized_iou(a, b).item() == pytest.approx(-0.5, abs=1e-4)
    torch.testing.assert_close(corners(torch.tensor([0.25, 0.25, 0.5, 0.5])), a)


ON_GRID = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.25, 0.75, 0.5, 0.5]])
"""Boxes that tokens hold exactly."""


def test_right_coordinates_cost_nothing_and_wrong_ones_by_their_distance() -> None:
    tokens = boxes_to_tokens(ON_GRID + 1e-6, BINS, FIRST)
    assert coordinate_token_loss(logits_of(tokens), tokens, ON_GRID, BINS, FIRST) < 1e-9
    near, far = tokens.clone(), tokens.clone()
    near[:, 0] += 1
    far[:, 0] += 4
    near_loss = coordinate_token_loss(logits_of(near), tokens, ON_GRID, BINS, FIRST)
    assert 0 < near_loss < coordinate_token_loss(logits_of(far), tokens, ON_GRID, BINS, FIRST)


def test_only_officially_a_box_is_weighted_by_the_errors_of_others() -> None:
    tokens = boxes_to_tokens(ON_GRID + 1e-6, BINS, FIRST)
    chosen = tokens.clone()
    chosen[1, 0] += 4
    for official, learns in ((False, False), (True, True)):
        logits = logits_of(chosen, 1.0).requires_grad_()
        coordinate_token_loss(logits, tokens, ON_GRID, BINS, FIRST, official=official).backward()
        assert logits.grad is not None
        assert bool(logits.grad[0].abs().max() > 1e-6) == learns
        assert logits.grad[1].abs().max() > 1e-6


def test_only_coordinate_tokens_are_possible() -> None:
    bias = coordinate_bias(VOCAB, BINS, FIRST)
    assert (bias == 0).nonzero()[:, 0].tolist() == list(range(FIRST, FIRST + BINS + 1))


def test_regression_vanishes_at_the_target_and_pulls_towards_it() -> None:
    assert box_regression_loss(BOXES, BOXES).item() == pytest.approx(0, abs=1e-3)
    moved = (BOXES + torch.tensor([0.1, 0.0, 0.0, 0.0])).requires_grad_()
    box_regression_loss(moved, BOXES).backward()
    assert moved.grad is not None
    assert (moved.grad[:, 0] > 0).all()
