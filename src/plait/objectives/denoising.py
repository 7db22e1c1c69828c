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

    Real positions of all samples, masked and visible, are the candidates; nothing is gathered across processes.

    student, teacher: (batch, seq, dim); masked: (batch, seq) boolean, True = masked;
    attention_mask: (batch, seq) boolean, True = real; None = all real. Returns float32, 0 when nothing is masked.
    Source: ONE-PEACE (arXiv 2305.11172), section 3.3, intra-modal denoising contrastive learning.
    """
    real = torch.ones_like(masked) if attention_mask is None else attention_mask.bool()
    masked = masked.bool() & real
    candidates = F.normalize(teacher.detach()[real].float(), dim=-1)  # (n, dim)
    queries = F.normalize(student[masked].float(), dim=-1)  # (m, dim)
    own = masked[real].nonzero().squeeze(1)  # (m,) place of each query among the candidates
    loss = smoothed_cross_entropy(scale * queries @ candidates.T, own, label_smoothing)
    return loss.sum() / max(len(own), 1)


def denoising_l2(student: Tensor, teacher: Tensor, masked: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean squared distance to the teacher on masked positions.

    loss = mean over masked i and dims of (student - LN(teacher))^2, LN without affine parameters so that a network
    cannot win by shrinking its own features.

    Shapes and source as `denoising_contrast` (its ablation); normalised targets: data2vec (arXiv 2202.03555).
    """
    return _regression(student, teacher, masked, attention_mask, F.mse_loss)


def denoising_smooth_l1(
    student: Tensor, teacher: Tensor, masked: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Smooth-L1 distance to the teacher on masked positions: quadratic below 1, linear above.

    loss = mean over masked i and dims of smooth_l1(student - LN(teacher)).

    Shapes and source as `denoising_l2`.
    """
    return _regression(student, teacher, masked, attention_mask, F.smooth_l1_loss)


def _regression(student: Tensor, teacher: Tensor, masked: Tensor, attention_mask: Tensor | None, distance) -> Tensor:
    chosen = masked.bool() if attention_mask is None else masked.bool() & attention_mask.bool()
    target = teacher.detach()[chosen].float()
    target = F.layer_norm(target, target.shape[-1:])
    return distance(student[chosen].float(), target, reduction="sum") / max(target.numel(), 1)
