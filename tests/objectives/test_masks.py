"""Masks as a set: the cheapest assignment by brute force, losses against their formulas."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from plait.objectives.masks import assign, dice, mask_set_losses, read_points


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 4), (5, 7)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_assignment_is_cheaper(shape: tuple[int, int], seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=shape).round(1)  # rounded: ties occur
    rows = np.arange(shape[0])
    least = min(costs[rows, list(columns)].sum() for columns in permutations(range(shape[1]), shape[0]))
    found = assign(costs)
    assert len(set(found.tolist())) == shape[0] and costs[rows, found].sum() == pytest.approx(least)


def test_more_rows_than_columns_and_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected finite costs of at most 1 rows, got 2; take more queries"):
        assign(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="expected finite costs"):
        assign(np.array([[np.nan]]))
    assert assign(np.zeros((0, 3))).tolist() == []


def test_points_are_read_at_cell_centres() -> None:
    maps = torch.arange(6.0).view(1, 2, 3)
    centres = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5]]])
    assert read_points(maps, centres)[0].tolist() == pytest.approx([0.0, 5.0, 2.5], abs=1e-5)


def test_dice_by_hand() -> None:
    targets = torch.tensor([[1.0, 1, 0, 0]])
    assert dice(torch.zeros(1, 4), targets).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_a_perfect_prediction_costs_nothing_wherever_its_query_stands() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, 8:] = True, True
    logits = torch.full((1, 5, 16, 16), -30.0)
    logits[0, 3][masks[0]], logits[0, 1][masks[1]] = 30.0, 30.0
    classes = torch.full((1, 5, 4), -30.0)
    classes[0, :, 3] = 30.0
    classes[0, 3] = torch.tensor([-30.0, 30, -30, -30])
    classes[0, 1] = torch.tensor([30.0, -30, -30, -30])
    losses = mask_set_losses(classes, logits, [torch.tensor([1, 0])], [masks], points=400, importance=0.0)
    assert losses["class"].item() == pytest.approx(0, abs=1e-6)
    # Points between the masks read both, points at the edge of the picture read zeros from beyond, as released.
    assert losses["mask"].item() < 4 and losses["dice"].item() < 0.3


def test_classes_are_weighed_and_an_empty_picture_has_no_masks() -> None:
    classes = torch.zeros(1, 3, 3, requires_grad=True)
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    none = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 4, 4)]
    losses = mask_set_losses(classes, logits, *none, points=8)
    # All weights are that of "no object", which the mean divides by: log 3, times 2.
    assert losses["class"].item() == pytest.approx(2 * np.log(3)) and losses["mask"].item() == 0
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad is not None and not logits.grad.any()


def test_queries_without_an_object_weigh_a_tenth() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, :2] = True
    logits = torch.full((1, 3, 4, 4), -9.0)
    logits[0, 1, :2] = 9.0  # the second query stands for the object
    said = torch.tensor([[[0.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    losses = mask_set_losses(said, logits, [torch.tensor([0])], [masks], points=32)
    costs = -said[0].log_softmax(-1)[[0, 1, 2], [2, 0, 2]]
    weights = torch.tensor([0.1, 1.0, 0.1])
    assert losses["class"].item() == pytest.approx(2 * (costs * weights).sum().item() / 1.2, rel=1e-5)


def test_masks_are_compared_where_they_are_unsure() -> None:
    torch.manual_seed(0)
    masks = torch.ones(1, 16, 16, dtype=torch.bool)
    # Sure and right in the left half, unsure in the right one: there each point costs log 2.
    logits = torch.zeros(1, 1, 16, 16)
    logits[..., :8] = 30.0
    losses = mask_set_losses(torch.zeros(1, 1, 2), logits, [torch.tensor([0])], [masks], points=400)
    # Three quarters of the points are the unsure ones, and half of the rest.
    assert losses["mask"].item() == pytest.approx(5 * 0.875 * np.log(2), rel=0.08)
