"""Language modelling on a decoder's logits: next-token cross entropy in the two published reductions.

logits (batch, length, vocab), labels (batch, length) -> shift by one -> loss; labels of -100 count nothing.

Source: prefix language modelling of mPLUG (arXiv 2205.12005), section 3.3; specification mPLUG-2, sections 6 and 7.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100

Reduction = Literal["mean", "per_sample"]
"""`mean`: over all supervised tokens of the batch (captioning); `per_sample`: their sum, (batch,) (answers)."""


def next_token_loss(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross entropy of every next token: -sum_t log p(label_{t+1} | prefix_t), reduced.

    Args:
        logits: (batch, length, vocab) of every position; any float type, computed in fp32.
        labels: (batch, length), not yet shifted; -100 where nothing is supervised.
        reduction: `mean` over the supervised tokens of the batch, or `per_sample`, their sum.

    Returns:
        A scalar for `mean`, (batch,) for `per_sample`. Without any supervised token the loss is
        0 with a zero gradient, where the Owls' released code gives NaN.

    Source:
        Prefix language modelling, mPLUG (arXiv 2205.12005), 3.3; specification mPLUG-2, 6.

    Example:
        >>> ids = torch.tensor([[1, 4, 5, 2]])  # start, a word of the prompt, a word to learn, end
        >>> labels = supervise(ids, torch.ones_like(ids), prompt_length=2)
        >>> next_token_loss(torch.zeros(1, 4, 8), labels)  # of eight words, all as likely
        tensor(2.0794)
    """
    # position t predicts token t + 1, so the last logits and the first label have no partner
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    if reduction == "per_sample":
        return losses.sum(1)
    # clamped: a batch whose answers were all cut off has no label, and 0 / 0 would end the run
    return losses.sum() / (labels != IGNORED).sum().clamp_min(1)


def answer_loss(logits: Tensor, labels: Tensor, weights: Tensor, num_questions: int) -> Tensor:
    """Loss of questions that have several answers each.

        sum_j w_j l_j / num_questions

    Args:
        logits: (answers, length, vocab), the answers of all questions one after another.
        labels: (answers, length), -100 where nothing is supervised.
        weights: (answers,), how many annotators gave an answer, as a share.
        num_questions: questions of the batch; answers of one question are not averaged.

    Returns:
        A scalar. l_j is the summed cross entropy of answer j (specification mPLUG-2, 7.1).
    """
    return (weights * next_token_loss(logits, labels, "per_sample")).sum() / num_questions


def supervise(ids: Tensor, mask: Tensor, prompt_length: int = 0) -> Tensor:
    """Labels of given ids: the ids themselves, -100 at padding and at the prompt.

    Args:
        ids: (batch, length) integer.
        mask: (batch, length), True at tokens, False at padding.
        prompt_length: leading positions of every row that are read but not learned.

    Returns:
        (batch, length) labels for `next_token_loss`, which shifts them.
    """
    labels = ids.masked_fill(~mask.bool(), IGNORED)
    labels[:, :prompt_length] = IGNORED
    return labels
