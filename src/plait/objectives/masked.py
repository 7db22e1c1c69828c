"""Masked language modelling: ids -> some hidden, drawn at random -> logits -> cross entropy of what was hidden.

Source: BERT (arXiv 1810.04805), section 3.1; ALBEF and mPLUG use it with image or video states beside the text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.objectives.captioning import IGNORED


def mask_tokens(
    ids: Tensor,
    maskable: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Hide maskable tokens with `probability`: 80 % become `mask_id`, 10 % a random id, 10 % stay.

    Args:
        ids: (batch, length) int64.
        maskable: (batch, length), True at ordinary tokens: no padding, [CLS] or [SEP].
        mask_id: id of [MASK].
        vocab_size: random ids are drawn below it.
        probability: share of the maskable tokens; 0.15 as in BERT and mPLUG.
        generator: of the device of `ids`, for repeatable draws.

    Returns:
        The ids to read and the labels, both (batch, length); -100 where nothing was drawn.

    Raises:
        ValueError: for a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"expected a probability in [0, 1], got {probability}")
    device = ids.device
    drawn = maskable & (torch.rand(ids.shape, generator=generator, device=device) < probability)
    # for all tokens, hidden or not: how many numbers are drawn depends on the shape alone
    share = torch.rand(ids.shape, generator=generator, device=device)
    random = torch.randint(vocab_size, ids.shape, generator=generator, device=device)
    hidden = torch.where(drawn & (share < 0.8), mask_id, ids)
    # between 0.8 and 0.9 the token stays: the model must not trust that what it sees is right
    hidden = torch.where(drawn & (share >= 0.9), random, hidden)
    return hidden, torch.where(drawn, ids, IGNORED)


def masked_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of hidden tokens: -mean of log p(token | rest); 0 where none was hidden.

    Args:
        logits: (batch, length, vocab), of the same positions as the labels (nothing is shifted).
        labels: (batch, length) of `mask_tokens`.

    Returns:
        A float32 scalar.
    """
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses.sum() / (labels != IGNORED).sum().clamp_min(1)
