"""Ranking orders given answers by likelihood, and officially counts their first token twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.generation.answer_ranking import rank_answers

ANSWERS = torch.tensor([[0, 1, 5], [0, 2, 5], [0, 3, 5], [0, 1, 4]])
FIRST = torch.tensor([[0.0, 0.6, 0.25, 0.15, 0.0, 0.0], [0.0, 0.1, 0.1, 0.8, 0.0, 0.0]]).clamp_min(1e-9).log()
LOSSES = torch.tensor([[1.0, 0.9, 3.0, 2.0], [4.0, 2.0, 1.0, 3.0]])


def losses(indices: Tensor) -> Tensor:
    return LOSSES.gather(1, indices)


def test_the_likeliest_answer_comes_first() -> None:
    ranked = rank_answers(FIRST, ANSWERS, losses)
    assert ranked.indices.tolist() == [[1, 0, 3, 2], [2, 1, 3, 0]]
    torch.testing.assert_close(ranked.probabilities, (-LOSSES).softmax(1).sort(descending=True).values)


def test_officially_the_first_token_counts_twice() -> None:
    ranked = rank_answers(FIRST, ANSWERS, losses, official=True)
    scores = FIRST[:, ANSWERS[:, 1]] - LOSSES
    assert ranked.indices.tolist() == scores.argsort(descending=True).tolist()
    assert ranked.indices[0, 0] == 0  # not 1, whose first token is rarer
    torch.testing.assert_close(ranked.probabilities, scores.softmax(1).sort(descending=True).values)


def test_answers_that_begin_alike_keep_the_order_of_the_list_and_officially_that_of_topk() -> None:
    same = torch.tensor([[0, 2, 5], [0, 1, 5], [0, 1, 4], [0, 1, 3], [0, 3, 3]])

    def equal(indices: Tensor) -> Tensor:
        return torch.ones(indices.shape)

    assert rank_answers(FIRST[1:], same, equal, k=4).indices.tolist() == [[4, 0, 1, 2]]
    official = rank_answers(FIRST[:1], same, equal, k=3, official=True)
    asked = FIRST[:1].softmax(1)[:, same[:, 1]].topk(3)
    again = (asked.values.log() - 1).softmax(1).topk(3)
    assert torch.equal(official.indices, asked.indices.gather(1, again.indices))
    torch.testing.assert_close(official.probabilities, again.values)


def test_only_the_k_likeliest_first_tokens_are_scored() -> None:
    asked: list[Tensor] = []

    def recorded(indices: Tensor) -> Tensor:
        asked.append(indices)
        return losses(indices)

    ranked = rank_answers(FIRST, ANSWERS, recorded, k=2)
    assert asked[0].tolist() == [[0, 3], [2, 0]]
    assert ranked.indices.shape == (2, 2)
    torch.testing.assert_close(ranked.probabilities.sum(1), torch.ones(2))


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_answers_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="k of at most the 4 answers"):
        rank_answers(FIRST, ANSWERS, losses, k=k)


def test_an_empty_answer_list_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        rank_answers(FIRST, ANSWERS[:0], losses)
