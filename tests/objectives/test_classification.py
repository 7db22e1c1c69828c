from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plait.objectives import classification as losses


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_and_hard_targets_agree_on_one_hot() -> None:
    logits, target = draw(4, 5), torch.tensor([0, 3, 2, 2])
    soft = F.one_hot(target, 5).float()
    for smoothing in (0.0, 0.2):
        hard_loss, hard_correct = losses.cross_entropy_sum(logits, target, smoothing)
        soft_loss, expected_correct = losses.cross_entropy_sum(logits, soft, smoothing)
        torch.testing.assert_close(hard_loss, soft_loss)
        assert hard_correct == (logits.argmax(1) == target).sum()
        torch.testing.assert_close(expected_correct, logits.softmax(1)[range(4), target].sum())


def test_summed_cross_entropy_smooths_over_all_classes_and_counts_hits() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 0.5], [1.0, 0.0, 4.0]])
    spread = torch.full((3, 3), 0.3 / 3).scatter(1, torch.tensor([[0], [1], [0]]), 0.7 + 0.3 / 3)
    loss, hits = losses.cross_entropy_sum(logits, torch.tensor([0, 1, 0]), 0.3)
    torch.testing.assert_close(loss, -(spread * logits.log_softmax(1)).sum())
    assert hits == 2


def test_smoothing_spreads_over_the_other_classes() -> None:
    logits, target = draw(3, 4), torch.tensor([1, 0, 3])
    spread = torch.full((3, 4), 0.1 / 3).scatter(1, target[:, None], 0.9)
    expected = F.cross_entropy(logits, spread, reduction="none")
    torch.testing.assert_close(losses.smoothed_cross_entropy(logits, target, 0.1), expected)


def test_one_class_has_no_loss() -> None:
    assert losses.smoothed_cross_entropy(draw(3, 1), torch.zeros(3, dtype=torch.long), 0.1).eq(0).all()


def test_multi_label_loss_adds_classes() -> None:
    logits, target = draw(2, 3), torch.tensor([[1.0, 0.0, 0.3], [0.0, 1.0, 0.0]])
    expected = -(target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log()).sum()
    torch.testing.assert_close(losses.multi_label_sum(logits, target)[0], expected)


def test_hinge_counts_the_correct_choice_itself() -> None:
    loss, correct = losses.choice_hinge_sum(torch.tensor([[5.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 0]))
    assert loss == 1 + (1 + 1.5)
    assert correct == 1


def test_box_loss_without_a_valid_box_is_finite() -> None:
    logits = torch.tensor([[2.0, 2.0, -2.0, -2.0]], requires_grad=True)
    loss = losses.box_loss(logits, torch.tensor([[0.1, 0.1, 0.5, 0.6]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_box_loss_adds_distances_and_the_overlap_of_valid_boxes() -> None:
    """A valid box, one that is inverted sideways, and one inverted both ways, whose area is none."""
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.6, 0.1, 0.3, 0.9], [0.8, 0.9, 0.2, 0.3]])
    target = torch.tensor([[0.1, 0.2, 0.5, 0.4], [0.3, 0.1, 0.6, 0.9], [0.2, 0.3, 0.8, 0.9]])
    distance = (0.2 + 0.6 + 2.4) / 3
    torch.testing.assert_close(losses.box_loss(boxes.logit(), target), torch.tensor(distance + (1 - 0.5)))
    assert losses.paired_giou(boxes[2:], target[2:]) <= 0


def test_giou_of_known_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3)
    b = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [0.5, 0.0, 1.5, 1.0]])
    assert losses.paired_giou(a, b).tolist() == pytest.approx([1.0, -1 / 3, 1 / 3])
