"""Denoising losses: student vectors of masked positions against teacher vectors of the whole input -> loss.

The teacher is the same network on the unmasked input, without gradient (ONE-PEACE, section 6.3). All functions take
sequences without their CLS vector. `denoising_contrast` is the published objective; the two regressions are the
alternatives it is compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.objectives.classification import smoothed_cross_entropy


def denoising_contrast(
    student: Tensor,
    teacher: Tensor,
    masked: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scale: float = 2.5,
    label_smoothing: float = 0.1,
) -> Tensor:
    """Contrast every masked position with the teacher vectors of all real positions of the batch.

        loss = mean over masked i of CE(scale * cos(student_i, teacher_j) for all real j, j = i)

    Real positions of all samples, masked and visible, are the candidates; nothing is gathered
    across processes.

    Args:
        student, teacher: (batch, seq, dim) without CLS; the teacher gets no gradient.
        masked: (batch, seq) boolean, True = masked.
        attention_mask: (batch, seq) boolean, True = real; None = all real.
        scale: factor of the cosines, fixed at 2.5 as published.
        label_smoothing: as in `smoothed_cross_entropy`; 0.1 as published.

    Returns:
        A float32 scalar, 0 when nothing is masked.

    Source:
        ONE-PEACE (arXiv 2305.11172), 3.3, intra-modal denoising; 6.3 of its released layout.

    Example:
        >>> vectors, masked = torch.eye(4)[None], torch.tensor([[True, True, False, False]])
        >>> bool(denoising_contrast(vectors, vectors, masked) < denoising_contrast(vectors, vectors.flip(1), masked))
        True
    """
    real = torch.ones_like(masked) if attention_mask is None else attention_mask.bool()
    # padding is never a query, even where a sampler masked it
    masked = masked.bool() & real
    # in fp32, as published: bf16 keeps fewer than three digits of a cosine
    candidates = F.normalize(teacher.detach()[real].float(), dim=-1)  # (n, dim)
    queries = F.normalize(student[masked].float(), dim=-1)  # (m, dim)
    own = masked[real].nonzero().squeeze(1)  # (m,) place of each query among the candidates
    loss = smoothed_cross_entropy(scale * queries @ candidates.T, own, label_smoothing)
    # a batch without a masked position gives 0 and not NaN
    return loss.sum() / max(len(own), 1)


def denoising_l2(student: Tensor, teacher: Tensor, masked: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean squared distance to the teacher on masked positions.

        loss = mean over masked i and dims of (student - LN(teacher))^2

    LN has no affine parameters, so that a network cannot win by shrinking its own features.

    Args:
        student, teacher, masked, attention_mask: as in `denoising_contrast`, whose ablation it is.

    Returns:
        A float32 scalar, 0 when nothing is masked.

    Source:
        ONE-PEACE's comparison of objectives; normalised targets: data2vec (arXiv 2202.03555).
    """
    return _regression(student, teacher, masked, attention_mask, F.mse_loss)


def denoising_smooth_l1(
    student: Tensor, teacher: Tensor, masked: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Smooth-L1 distance to the teacher on masked positions: quadratic below 1, linear above.

        loss = mean over masked i and dims of smooth_l1(student - LN(teacher))

    Args:
        student, teacher, masked, attention_mask: as in `denoising_contrast`.

    Returns:
        A float32 scalar, 0 when nothing is masked.

    Source:
        As `denoising_l2`.
    """
    return _regression(student, teacher, masked, attention_mask, F.smooth_l1_loss)


def _regression(student: Tensor, teacher: Tensor, masked: Tensor, attention_mask: Tensor | None, distance) -> Tensor:
    """Mean of `distance` between student and normalised teacher over masked real positions."""
    chosen = masked.bool() if attention_mask is None else masked.bool() & attention_mask.bool()
    target = teacher.detach()[chosen].float()
    # by each position's own mean and deviation, in fp32
    target = F.layer_norm(target, target.shape[-1:])
    return distance(student[chosen].float(), target, reduction="sum") / max(target.numel(), 1)
