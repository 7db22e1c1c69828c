"""Queues, hard negatives and matching: partners attract, equal identities never repel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.objectives.matching import enqueue, hard_negatives, matching_loss, queue_contrast

BATCH, DIM, SIZE = 4, 6, 8


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def contrast(alpha: float, ids: Tensor, queue_ids: Tensor, vision: Tensor | None = None) -> tuple[Tensor, Tensor]:
    vision = unit(BATCH, DIM, seed=0) if vision is None else vision
    out = queue_contrast(
        vision, unit(BATCH, DIM, seed=1), unit(BATCH, DIM, seed=2), unit(BATCH, DIM, seed=3),
        unit(SIZE, DIM, seed=4).T, unit(SIZE, DIM, seed=5).T, 0.07, ids=ids, queue_ids=queue_ids, alpha=alpha,
    )  # fmt: skip
    return out.loss, out.vision_to_text


def test_without_momentum_targets_the_loss_is_cross_entropy_over_batch_and_queue() -> None:
    loss, similarity = contrast(0.0, torch.arange(BATCH), torch.full((SIZE,), -100))
    assert similarity.shape == (BATCH, BATCH + SIZE)
    vt = unit(BATCH, DIM, seed=0) @ torch.cat([unit(BATCH, DIM, seed=3), unit(SIZE, DIM, seed=5)]).T / 0.07
    tv = unit(BATCH, DIM, seed=1) @ torch.cat([unit(BATCH, DIM, seed=2), unit(SIZE, DIM, seed=4)]).T / 0.07
    rows = torch.arange(BATCH)
    torch.testing.assert_close(loss, (F.cross_entropy(vt, rows) + F.cross_entropy(tv, rows)) / 2)


def test_partners_in_the_queue_share_the_target() -> None:
    ids, empty = torch.arange(BATCH), torch.full((SIZE,), -100)
    queued = empty.clone()
    queued[3] = 2
    alone, vt = contrast(0.0, ids, empty)
    shared, _ = contrast(0.0, ids, queued)
    tv = unit(BATCH, DIM, seed=1) @ torch.cat([unit(BATCH, DIM, seed=2), unit(SIZE, DIM, seed=4)]).T / 0.07
    gain = sum((s[2, 2] - s[2, BATCH + 3]) / 2 for s in (vt.log_softmax(1), tv.log_softmax(1)))
    torch.testing.assert_close(shared - alone, torch.as_tensor(gain / (2 * BATCH)))


def test_momentum_features_and_queues_get_no_gradient() -> None:
    parts = [unit(BATCH, DIM, seed=s).requires_grad_() for s in range(4)]
    queues = [unit(SIZE, DIM, seed=s).T.requires_grad_() for s in (4, 5)]
    temperature = torch.tensor(0.07, requires_grad=True)
    out = queue_contrast(
        *parts, *queues, temperature, ids=torch.arange(BATCH), queue_ids=torch.full((SIZE,), -1), alpha=0.4
    )
    out.loss.backward()
    assert parts[0].grad is not None
    assert parts[1].grad is not None
    assert temperature.grad is not None
    assert all(tensor.grad is None for tensor in (*parts[2:], *queues))


def test_a_queue_is_overwritten_in_turn() -> None:
    queue, pointer = torch.zeros(2, 6), 4
    pointer = enqueue(queue, torch.ones(2, 2), pointer)
    assert pointer == 0
    pointer = enqueue(queue, torch.full((2, 2), 2.0), pointer)
    assert pointer == 2
    assert queue[0].tolist() == [2, 2, 0, 0, 1, 1]


def test_a_queue_refuses_batches_that_do_not_divide_it() -> None:
    with pytest.raises(ValueError, match="divisible by the batch of 4"):
        enqueue(torch.zeros(2, 6), torch.ones(4, 2), 0)


def test_hard_negatives_are_never_of_the_same_identity_and_mostly_the_most_similar() -> None:
    ids = torch.tensor([0, 0, 1, 2])
    similarity = torch.tensor([[9.0, 9.0, 3.0, 0.0]] * 4)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([hard_negatives(similarity, ids, generator=generator) for _ in range(200)])
    assert (ids[drawn] != ids).all()
    assert (drawn[:, 0] == 2).float().mean() == pytest.approx(torch.tensor([3.0, 0.0]).softmax(0)[0].item(), abs=0.06)


def test_noise_picks_by_the_inverse_of_the_cumulative_distribution() -> None:
    similarity = torch.tensor([[0.2, 0.4, 0.3, 0.1]]).log().repeat(4, 1)
    noise = torch.tensor([0.49, 0.0, 0.99, 0.51])
    # row 0 draws among 1, 2, 3 with shares 0.5, 0.375, 0.125; row 1 among 0, 2, 3; row 3 among 0, 1, 2
    assert hard_negatives(similarity, torch.arange(4), noise=noise).tolist() == [1, 0, 3, 1]


def test_overwhelming_positives_leave_a_negative_to_draw() -> None:
    similarity = torch.tensor([[500.0, 0.0], [0.0, 500.0]])
    assert hard_negatives(similarity, torch.arange(2)).tolist() == [1, 0]


def test_a_batch_of_one_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="two identities"):
        hard_negatives(torch.zeros(3, 3), torch.zeros(3, dtype=torch.long))


def test_matching_is_right_about_positives_first() -> None:
    right = torch.tensor([[-9.0, 9.0], [9.0, -9.0], [9.0, -9.0]])
    assert matching_loss(right, 1) < 1e-6
    assert matching_loss(right.flip(1), 1) > 17


def test_rows_enter_the_queue_in_the_order_of_their_ids() -> None:
    from plait.objectives.matching import enqueue

    queue, rows = torch.zeros(2, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert enqueue(queue, rows, 2) == 0
    assert queue.tolist() == [[0, 0, 1, 3], [0, 0, 2, 4]]
