"""Self-critical training raises captions that beat their siblings."""

from __future__ import annotations

import pytest
import torch

from plait.objectives.scst import scst_loss


def test_better_captions_become_likelier_and_worse_ones_rarer() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    scst_loss(scores, torch.tensor([[2.0, 1.0, 0.0]])).backward()
    assert scores.grad is not None
    assert scores.grad[0].tolist() == pytest.approx([-1 / 3, 0.0, 1 / 3])


def test_equal_rewards_teach_nothing() -> None:
    assert scst_loss(torch.randn(2, 3), torch.ones(2, 3)) == 0


def test_officially_scores_are_divided_by_their_length_again() -> None:
    scores, rewards = torch.tensor([[-2.0, -6.0]]), torch.tensor([[1.0, 0.0]])
    loss = scst_loss(scores, rewards, torch.tensor([[2, 3]]), official=True)
    torch.testing.assert_close(loss, scst_loss(torch.tensor([[-1.0, -2.0]]), rewards))


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="a reward per score"):
        scst_loss(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="lengths for the official loss"):
        scst_loss(torch.zeros(1, 2), torch.zeros(1, 2), official=True)


def test_the_baseline_is_that_of_each_image() -> None:
    scores, rewards = torch.tensor([[-1.0, -2.0], [-3.0, -5.0]]), torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    assert scst_loss(scores, rewards) == -(-1.0 * 0.5 + -2.0 * -0.5) / 4
