"""Soft labels teach over the vocabulary; officially over the sequence. The teacher follows slowly."""

from __future__ import annotations

import pytest
import torch

from plait.objectives.captioning import next_token_loss
from plait.objectives.distillation import mix, ramped_alpha, soft_label_loss, update_teacher

LOGITS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1, 2, 4], [0, 3, -100]])


def one_hot() -> torch.Tensor:
    return torch.nn.functional.one_hot(LABELS.clamp_min(0), 5).float()


@pytest.mark.parametrize("reduction", ["mean", "per_sample"])
def test_one_hot_soft_labels_are_hard_labels(reduction) -> None:
    shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), LABELS], 1)
    longer = torch.cat([LOGITS, torch.zeros(2, 1, 5)], 1)
    hard = next_token_loss(longer, shifted, reduction)
    torch.testing.assert_close(soft_label_loss(LOGITS, one_hot(), LABELS, reduction), hard)


def test_officially_the_student_is_normalised_over_the_sequence() -> None:
    soft = LOGITS.flip(0).softmax(-1)
    expected = -(LOGITS.log_softmax(1) * soft).sum(-1)[LABELS != -100].mean()
    torch.testing.assert_close(soft_label_loss(LOGITS, soft, LABELS, official=True), expected)
    assert not torch.isclose(soft_label_loss(LOGITS, soft, LABELS), expected)


def test_alpha_mixes_and_ramps_up_over_the_first_epoch() -> None:
    assert mix(torch.tensor(1.0), torch.tensor(3.0), 0.4).item() == pytest.approx(1.8)
    assert [ramped_alpha(0.4, 0, i, 10) for i in (0, 5, 10, 20)] == [0, 0.2, 0.4, 0.4]
    assert ramped_alpha(0.4, 1, 0, 10) == 0.4


def test_the_teacher_moves_towards_the_student() -> None:
    teacher, student = torch.zeros(3), torch.ones(3, requires_grad=True)
    update_teacher([teacher], [student], 0.9)
    update_teacher([teacher], [student], 0.9)
    torch.testing.assert_close(teacher, torch.full((3,), 0.19))
    update_teacher([teacher], [student], 0.0)
    assert torch.equal(teacher, torch.ones(3))


def test_teacher_and_student_must_pair_up() -> None:
    with pytest.raises(ValueError, match="each of 1 teacher tensors"):
        update_teacher([torch.zeros(1)], [])
