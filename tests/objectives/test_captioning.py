"""Next-token losses shift by one, leave out what is not supervised and reduce as published."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plait.objectives.captioning import answer_loss, next_token_loss, supervise

LOGITS = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[0, 3, 2, 6], [0, 5, 1, -100]])


def test_position_t_predicts_label_t_plus_one() -> None:
    expected = F.cross_entropy(LOGITS[:, :-1].reshape(-1, 7), LABELS[:, 1:].reshape(-1))
    torch.testing.assert_close(next_token_loss(LOGITS, LABELS), expected)


def test_per_sample_sums_the_tokens_of_each_row() -> None:
    per_sample = next_token_loss(LOGITS, LABELS, "per_sample")
    assert per_sample.shape == (2,)
    torch.testing.assert_close(per_sample.sum() / 5, next_token_loss(LOGITS, LABELS))


def test_answers_weigh_what_annotators_gave() -> None:
    one, two = next_token_loss(LOGITS, LABELS, "per_sample")
    loss = answer_loss(LOGITS, LABELS, torch.tensor([0.75, 0.25]), num_questions=1)
    torch.testing.assert_close(loss, 0.75 * one + 0.25 * two)


def test_nothing_supervised_is_no_loss_and_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = next_token_loss(logits, torch.full((2, 4), -100))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("prompt", [0, 2])
def test_prompt_and_padding_are_not_supervised(prompt: int) -> None:
    ids = torch.arange(8).view(2, 4)
    labels = supervise(ids, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), prompt)
    assert (labels[:, :prompt] == -100).all()
    assert labels[1, 3] == -100
    assert torch.equal(labels[0, prompt:], ids[0, prompt:])
