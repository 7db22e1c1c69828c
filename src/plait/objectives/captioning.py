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
    """-sum_t log p(label_{t+1} | prefix_t), reduced.

    logits: (batch, length, vocab) of every position; labels: (batch, length), not yet shifted, -100 where nothing is
    supervised. Without any supervised token the loss is 0, with a zero gradient.
    """
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    if reduction == "per_sample":
        return losses.sum(1)
    return losses.sum() / (labels != IGNORED).sum().clamp_min(1)


def answer_loss(logits: Tensor, labels: Tensor, weights: Tensor, num_questions: int) -> Tensor:
    """sum_j w_j l_j / num_questions with the summed cross entropy l_j of every answer (specification 7.1).

    logits: (answers, length, vocab); labels: (answers, length); weights: (answers,), how many annotators gave it.
    """
    return (weights * next_token_loss(logits, labels, "per_sample")).sum() / num_questions


def supervise(ids: Tensor, mask: Tensor, prompt_length: int = 0) -> Tensor:
    """Labels of given ids: -100 at padding and at the first `prompt_length` positions. ids, mask: (batch, length)."""
    labels = ids.masked_fill(~mask.bool(), IGNORED)
    labels[:, :prompt_length] = IGNORED
    return labels
