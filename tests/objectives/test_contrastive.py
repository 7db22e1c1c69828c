from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.objectives.contrastive import contrastive_loss


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_two_processes_together_equal_one_large_batch() -> None:
    a, b = unit_rows(6, 5, seed=1), unit_rows(6, 5, seed=2)
    whole = contrastive_loss(a, b, 4.0)
    halves = [contrastive_loss(a[i : i + 3], b[i : i + 3], 4.0, a_all=a, b_all=b, offset=i) for i in (0, 3)]
    torch.testing.assert_close(whole.loss, (halves[0].loss + halves[1].loss) / 2)
    assert whole.num_correct_a_to_b == halves[0].num_correct_a_to_b + halves[1].num_correct_a_to_b


def test_rows_learn_only_as_rows() -> None:
    a, b = unit_rows(4, 5, seed=3).requires_grad_(), unit_rows(4, 5, seed=4).requires_grad_()
    contrastive_loss(a, b, 3.0).loss.backward()
    a_row = a.detach().clone().requires_grad_()
    b_row = b.detach().clone().requires_grad_()
    (F.cross_entropy(3.0 * a_row @ b.detach().T, torch.arange(4)) / 2).backward()
    (F.cross_entropy(3.0 * b_row @ a.detach().T, torch.arange(4)) / 2).backward()
    torch.testing.assert_close((a.grad, b.grad), (a_row.grad, b_row.grad))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_ids", [False, True])
def test_chunks_change_neither_loss_nor_gradient(smoothing: float, with_ids: bool) -> None:
    ids = torch.tensor([0, 1, 0, 2, 3, 4, 5]) if with_ids else None
    results = []
    for chunk_size in (None, 3):
        a, b = unit_rows(7, 5, seed=5).requires_grad_(), unit_rows(7, 5, seed=6).requires_grad_()
        scale = torch.tensor(3.0, requires_grad=True)
        out = contrastive_loss(a, b, scale, ids=ids, label_smoothing=smoothing, chunk_size=chunk_size)
        out.loss.backward()
        results.append([out.loss, out.num_correct_a_to_b, out.num_correct_b_to_a, a.grad, b.grad, scale.grad])
    torch.testing.assert_close(results[0], results[1])


def test_rows_of_one_identity_share_the_target() -> None:
    a = b = torch.eye(3)[[0, 0, 1]]
    shared = contrastive_loss(a, b, 50.0, ids=torch.tensor([7, 7, 8]))
    torch.testing.assert_close(shared.loss, torch.tensor(2 * math.log(2) / 3))
    assert shared.num_correct_a_to_b == 3
    distinct = contrastive_loss(a, b, 50.0, ids=torch.tensor([7, 8, 9]))
    torch.testing.assert_close(distinct.loss, contrastive_loss(a, b, 50.0).loss)


def test_unpaired_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected paired rows"):
        contrastive_loss(unit_rows(3, 4), unit_rows(2, 4), 1.0)
    with pytest.raises(ValueError, match="expected paired rows"):
        contrastive_loss(unit_rows(3, 4), unit_rows(3, 4), 1.0, a_all=unit_rows(4, 4), b_all=unit_rows(4, 4), offset=2)
