from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plait.objectives.denoising import denoising_contrast, denoising_l2, denoising_smooth_l1

LOSSES = [denoising_contrast, denoising_l2, denoising_smooth_l1]


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(3, 6, 8, generator=g), torch.randn(3, 6, 8, generator=g)
    real = torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    masked = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    return student, teacher, masked, real


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_does_not_matter(loss) -> None:
    student, teacher, masked, real = draw()
    before = loss(student, teacher, masked, real)
    student[~real], teacher[~real] = 50.0, -50.0
    torch.testing.assert_close(loss(student, teacher, masked | ~real, real), before)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_masked_students_learn_and_teachers_never(loss) -> None:
    student, teacher, masked, real = draw(1)
    student.requires_grad_()
    teacher.requires_grad_()
    loss(student, teacher, masked, real).backward()
    assert teacher.grad is None
    learned = student.grad.abs().sum(-1) > 0
    assert torch.equal(learned, masked)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_masked_is_zero_with_zero_gradient(loss) -> None:
    student, teacher, masked, real = draw(2)
    student.requires_grad_()
    value = loss(student, teacher, torch.zeros_like(masked), real)
    value.backward()
    assert value == 0
    assert not student.grad.any()


def test_contrast_sees_the_candidates_of_all_samples() -> None:
    basis = torch.eye(4).view(2, 2, 4)
    masked = torch.tensor([[1, 0], [0, 0]], dtype=torch.bool)
    loss = denoising_contrast(basis, basis, masked, scale=2.0, label_smoothing=0.0)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + 3 * math.exp(-2.0))))


def test_regressions_vanish_on_normalised_targets() -> None:
    _, teacher, masked, real = draw(3)
    exact = torch.nn.functional.layer_norm(teacher, (8,))
    assert denoising_l2(exact, teacher, masked, real) == 0
    assert denoising_smooth_l1(exact + 2.0, teacher, masked, real) == pytest.approx(1.5)
    assert denoising_l2(exact + 2.0, teacher, masked, real) == pytest.approx(4.0)
