"""Cross-modal contrast: unit vectors of two modalities, gathered copies of both -> loss (ONE-PEACE, section 6.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plait.objectives.classification import smoothed_cross_entropy


@dataclass(slots=True)
class ContrastiveOutput:
    """Loss and, per direction, how many local rows rank one of their own partners first.

    loss: scalar. num_correct_a_to_b, num_correct_b_to_a: integer scalars, at most the local batch.
    """

    loss: Tensor
    num_correct_a_to_b: Tensor
    num_correct_b_to_a: Tensor


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    *,
    a_all: Tensor | None = None,
    b_all: Tensor | None = None,
    offset: int = 0,
    ids: Tensor | None = None,
    ids_all: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> ContrastiveOutput:
    """Symmetric InfoNCE between paired rows of `a` and `b`, over the rows of all processes.

        loss = (CE(s a B_all^T, offset + i) + CE(s b A_all^T, offset + i)) / 2, mean over the batch

    The gathered copies carry no gradient, their local slice included: `a` learns as the rows of
    a-to-b only, `b` as the rows of b-to-a.

    Args:
        a, b: (batch, dim) unit vectors, row i of one belonging to row i of the other.
        logit_scale: the factor s itself, already exponentiated.
        a_all, b_all: (world * batch, dim); None (one process): the local rows, detached.
        offset: where the local rows begin in the gathered ones.
        ids, ids_all: (batch,) and (world * batch,) identities; rows of one identity are partners
            and share the target. Without them row i has the single partner i.
        label_smoothing: as in `smoothed_cross_entropy`; 0 in pretraining.
        chunk_size: rows whose logits exist at a time, recomputed in the backward pass; None: all.

    Returns:
        A `ContrastiveOutput`.

    Raises:
        ValueError: for shapes that do not fit.

    Source:
        ONE-PEACE (arXiv 2305.11172), 3.3, and 6.2 of its released layout; CLIP.

    Example:
        >>> vectors = torch.eye(4)
        >>> contrastive_loss(vectors, vectors, torch.tensor(100.0)).loss  # every text is the right one's, surely
        tensor(0.)
    """
    a_all = a.detach() if a_all is None else a_all.detach()
    b_all = b.detach() if b_all is None else b_all.detach()
    if a.shape != b.shape or a_all.shape != b_all.shape or offset + len(a) > len(b_all):
        raise ValueError(
            f"expected paired rows inside the gathered ones, got a {tuple(a.shape)}, b {tuple(b.shape)}, "
            f"gathered {tuple(a_all.shape)} and {tuple(b_all.shape)} at offset {offset}; pass both sides alike"
        )
    # row i's partner stands at its own place in the gathered columns of the other side
    own = torch.arange(offset, offset + len(a), device=a.device) if ids is None else ids
    all_ids = None if ids is None else (ids if ids_all is None else ids_all)

    def direction(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        if chunk_size is None or chunk_size >= len(rows):
            return _rows(rows, own, columns, all_ids, logit_scale, smoothing=label_smoothing)
        # without reentry: the reentrant kind takes no keyword arguments
        parts = [
            checkpoint(_rows, *chunk, columns, all_ids, logit_scale, smoothing=label_smoothing, use_reentrant=False)
            for chunk in zip(rows.split(chunk_size), own.split(chunk_size), strict=True)
        ]
        losses, correct = zip(*parts, strict=True)
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    loss_ab, correct_ab = direction(a, b_all)
    loss_ba, correct_ba = direction(b, a_all)
    return ContrastiveOutput((loss_ab + loss_ba) / (2 * len(a)), correct_ab, correct_ba)


def _rows(
    rows: Tensor, own: Tensor, columns: Tensor, all_ids: Tensor | None, scale: Tensor | float, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Summed loss and correct rows of a chunk.

    rows: (chunk, dim); own: (chunk,) columns, or identities to be met again in `all_ids`;
    columns: (world * batch, dim). Returns two scalars.
    """
    logits = scale * (rows @ columns.T).float()  # (chunk, world * batch)
    if all_ids is None:
        return smoothed_cross_entropy(logits, own, smoothing).sum(), (logits.argmax(1) == own).sum()
    partner = own[:, None] == all_ids
    # p=1: the partners of a row share its target evenly
    loss = smoothed_cross_entropy(logits, F.normalize(partner.float(), p=1, dim=1), smoothing).sum()
    return loss, partner.gather(1, logits.argmax(1, keepdim=True)).sum()
