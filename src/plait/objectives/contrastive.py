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
    """Loss and, per direction, how many local rows rank one of their own partners first."""

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
    """Symmetric InfoNCE between paired rows of `a` and `b`.

    loss = (CE(s a B_all^T, offset + i) + CE(s b A_all^T, offset + i)) / 2, mean over the local batch.

    The gathered copies carry no gradient, their local slice included: `a` learns as the rows of a-to-b only, `b` as
    the rows of b-to-a. Without `a_all` and `b_all` (one process) the detached local rows play that part.

    a, b: (batch, dim) unit vectors; a_all, b_all: (world * batch, dim), local rows starting at `offset`.
    logit_scale: the factor s itself, already exponentiated.
    ids: (batch,) integer identities and ids_all: (world * batch,): all rows of one identity are partners and share
    the target evenly; without them row i has the single partner i.
    chunk_size: rows whose logits exist at one time; they are recomputed in the backward pass. None keeps all.
    Raises ValueError on shapes that do not fit. Source: ONE-PEACE (arXiv 2305.11172), section 3.3; CLIP.
    """
    a_all = a.detach() if a_all is None else a_all.detach()
    b_all = b.detach() if b_all is None else b_all.detach()
    if a.shape != b.shape or a_all.shape != b_all.shape or offset + len(a) > len(b_all):
        raise ValueError(
            f"expected paired rows inside the gathered ones, got a {tuple(a.shape)}, b {tuple(b.shape)}, "
            f"gathered {tuple(a_all.shape)} and {tuple(b_all.shape)} at offset {offset}; pass both sides alike"
        )
    own = torch.arange(offset, offset + len(a), device=a.device) if ids is None else ids
    all_ids = None if ids is None else (ids if ids_all is None else ids_all)

    def direction(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        if chunk_size is None or chunk_size >= len(rows):
            return _rows(rows, own, columns, all_ids, logit_scale, smoothing=label_smoothing)
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
    """Summed loss and correct rows; `own` holds columns, or identities to be met again in `all_ids`."""
    logits = scale * (rows @ columns.T).float()  # (chunk, world * batch)
    if all_ids is None:
        return smoothed_cross_entropy(logits, own, smoothing).sum(), (logits.argmax(1) == own).sum()
    partner = own[:, None] == all_ids
    loss = smoothed_cross_entropy(logits, F.normalize(partner.float(), p=1, dim=1), smoothing).sum()
    return loss, partner.gather(1, logits.argmax(1, keepdim=True)).sum()
