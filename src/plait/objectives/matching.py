"""Contrast with momentum queues, hard negatives and matching: what aligns two modalities before they are fused.

features, momentum features, queues -> queue_contrast -> similarities -> hard_negatives -> fused pairs -> matching_loss

Written for images and texts and used alike for videos and texts (ITC/ITM, VTC/VTM). Source: ALBEF (arXiv 2107.07651),
section 3.2; mPLUG (arXiv 2205.12005) and mPLUG-2 (arXiv 2302.00402); specification mPLUG-2, 10.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True)
class QueueContrast:
    """The loss, and similarities over temperature (batch, batch + queue) from vision to text and from text to vision.

    The first `batch` columns are the current momentum features: hard negatives are drawn by them.
    """

    loss: Tensor
    vision_to_text: Tensor
    text_to_vision: Tensor


def queue_contrast(
    vision: Tensor,
    text: Tensor,
    vision_momentum: Tensor,
    text_momentum: Tensor,
    vision_queue: Tensor,
    text_queue: Tensor,
    temperature: Tensor | float,
    *,
    ids: Tensor,
    queue_ids: Tensor,
    alpha: float,
) -> QueueContrast:
    """Contrast with momentum features of the batch and of the queues, against soft targets.

        s_vt = v [t_m ; Q_t] / temperature          s_tv = t [v_m ; Q_v] / temperature
        target = alpha softmax(momentum s) + (1 - alpha) positives / number of positives
        loss = mean over both directions of -sum_j target_j log softmax(s)_j

    Args:
        vision, text: (batch, dim) unit vectors.
        vision_momentum, text_momentum: the same of the momentum encoders, without gradient.
        vision_queue, text_queue: (dim, size), columns of unit length.
        temperature: the divisor itself, learned (0.07 at first, never clamped as released).
        ids, queue_ids: (batch,) and (size,) integers; equal ids are positives. A place that was
            never filled has -1 or -100, which no sample has.
        alpha: weight of the momentum targets, 0 for hard ones.

    Returns:
        A `QueueContrast`; hard negatives are drawn by its similarities.

    Source:
        ALBEF (arXiv 2107.07651), 3.2; specification mPLUG-2, 10.1.
    """
    with torch.no_grad():
        text_all = torch.cat([text_momentum.T, text_queue], dim=1)  # (dim, batch + size)
        vision_all = torch.cat([vision_momentum.T, vision_queue], dim=1)
        positives = (ids[:, None] == torch.cat([ids, queue_ids])[None]).to(vision.dtype)
        # never 0: every row has itself among the current batch
        hard = positives / positives.sum(1, keepdim=True)
        soft_vt = (vision_momentum @ text_all / temperature).softmax(1)
        soft_tv = (text_momentum @ vision_all / temperature).softmax(1)
        # the momentum encoder may see a match that the captions do not say
        targets_vt = alpha * soft_vt + (1 - alpha) * hard
        targets_tv = alpha * soft_tv + (1 - alpha) * hard
    vision_to_text, text_to_vision = vision @ text_all / temperature, text @ vision_all / temperature
    loss = (F.cross_entropy(vision_to_text, targets_vt) + F.cross_entropy(text_to_vision, targets_tv)) / 2
    return QueueContrast(loss, vision_to_text, text_to_vision)


@torch.no_grad()
def enqueue(queue: Tensor, rows: Tensor, pointer: int) -> int:
    """Overwrite `queue` in place with `rows` from column `pointer` on; returns the next pointer.

    Args:
        queue: (dim, size) for rows (batch, dim), or (1, size) for identities (batch,).
        rows: gathered from all processes, since every process holds the same queue.
        pointer: first column to overwrite.

    Raises:
        ValueError: where the size is no multiple of the batch. A wrap inside a batch would
            misalign queues that are filled with batches of another size.
    """
    rows = rows[None] if rows.dim() == 1 else rows.T
    size, batch = queue.shape[1], rows.shape[1]
    if size % batch:
        raise ValueError(f"expected a queue size divisible by the batch of {batch}, got {size}; drop the last batch")
    queue[:, pointer : pointer + batch] = rows
    return (pointer + batch) % size


@torch.no_grad()
def hard_negatives(
    similarity: Tensor, ids: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """For every row one partner of another identity, drawn from the softmax of their similarities.

    Args:
        similarity: (batch, batch) over temperature, to the current momentum features.
        ids: (batch,) identities; pairs of one identity are never drawn.
        generator: for repeatable draws.
        noise: (batch,) numbers in [0, 1) in place of random ones, through the inverse of the
            cumulative distribution.

    Returns:
        (batch,) int64, columns of `similarity`.

    Raises:
        ValueError: where a row has nobody but itself.
    """
    weights = similarity.float().softmax(1).masked_fill(ids[:, None] == ids[None], 0.0)
    if not (weights.sum(1) > 0).all():
        # softmax may underflow beside one overwhelming positive; without any other identity nothing can be drawn
        weights = torch.where(ids[:, None] == ids[None], 0.0, weights.clamp_min(torch.finfo(weights.dtype).tiny))
        if not (weights.sum(1) > 0).all():
            raise ValueError("expected at least two identities in a batch, got one; use a larger batch")
    if noise is None:
        return torch.multinomial(weights, 1, generator=generator)[:, 0]
    cumulative = weights.cumsum(1)
    drawn = torch.searchsorted(cumulative, (noise.to(cumulative) * cumulative[:, -1])[:, None], right=True)
    # noise * total may round up to the total itself, which lies behind the last column
    return drawn[:, 0].clamp_max(weights.shape[1] - 1)


def matching_loss(logits: Tensor, num_positives: int) -> Tensor:
    """Cross entropy of the two-way matching head, mean over pairs.

    Args:
        logits: (pairs, 2), class 1 = match.
        num_positives: the first rows match, all others do not.

    Returns:
        A scalar. ALBEF, equation 4: B positives and 2B negatives.
    """
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    target[:num_positives] = 1
    return F.cross_entropy(logits.float(), target)
