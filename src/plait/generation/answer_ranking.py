"""Choosing among given answers: first-token probabilities -> the k most promising -> whole likelihoods -> order.

Source: mPLUG-2's VideoQA (specification 7.1), after ALBEF's VQA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class RankedAnswers(NamedTuple):
    """Answers in order, per question.

    indices: (batch, k) into the answer list, best first.
    probabilities: (batch, k), summing to 1 over the k.
    """

    indices: Tensor
    probabilities: Tensor


def rank_answers(
    first_logits: Tensor,
    answer_ids: Tensor,
    losses: Callable[[Tensor], Tensor],
    *,
    k: int | None = None,
    official: bool = False,
) -> RankedAnswers:
    """Order the answers of a list by their likelihood.

        score(a) = sum_t log p(a_t | a_<t)          probabilities = softmax of the k scores

    Args:
        first_logits: (batch, vocab) after the start token.
        answer_ids: (answers, length), start token included: column 1 is what an answer begins with.
        losses: takes candidate indices (batch, k) and returns their summed cross entropies
            (batch, k), every token after the start token counted.
        k: candidates scored in full, picked by their first token; by default all.
        official: add the log probability of the first token once more, and order answers that
            score alike as `torch.topk` happens to. By default they keep the order of the list.

    Returns:
        A `RankedAnswers`.

    Raises:
        ValueError: for no answers, and for more candidates than there are answers.

    Source:
        mPLUG-2's VideoQA with `rerank` (specification mPLUG-2, 7.1), after ALBEF's VQA.

    Example:
        >>> ids = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]])  # start, a word, end
        >>> first = torch.zeros(1, 10)
        >>> first[0, 6] = 4.0
        >>> ranked = rank_answers(first, ids, lambda chosen: torch.zeros(chosen.shape), k=2)
        >>> ranked.indices[:, 0]  # of the first item the second answer
        tensor([1])
    """
    count = answer_ids.shape[0]
    if not count or answer_ids.dim() != 2 or answer_ids.shape[1] < 2:
        raise ValueError(
            f"expected answer ids (answers, length >= 2) with a start token, got shape {tuple(answer_ids.shape)}; "
            "pass at least one answer"
        )
    k = count if k is None else k
    if not 1 <= k <= count:
        raise ValueError(f"expected k of at most the {count} answers, got {k}; lower k or add answers")
    begins = answer_ids[:, 1].to(first_logits.device)
    if official:
        # the first token counts twice: here and in the losses, which hold every token
        first, order = first_logits.float().softmax(-1).index_select(1, begins).topk(k)
        probabilities, places = (first.log() - losses(order).float()).softmax(-1).topk(k)
        return RankedAnswers(order.gather(1, places), probabilities)
    # the first token picks who is scored in full: one pass gives it for all answers
    first = first_logits.float().log_softmax(-1).index_select(1, begins)
    # stable, so that a tie does not depend on the device or on the batch
    order = first.argsort(dim=1, descending=True, stable=True)[:, :k]
    scores = -losses(order).float()
    probabilities, places = scores.softmax(-1).sort(dim=1, descending=True, stable=True)
    return RankedAnswers(order.gather(1, places), probabilities)
