"""Losses of classification heads: logits, target -> loss. Sums over the batch; divide by its size for a mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every row, with the smoothing that spreads `e` over the n - 1 *other* classes.

    loss = (1 - e - e/(n-1)) * -sum_k t_k log p_k + e/(n-1) * sum_k -log p_k

    logits: (rows, n); target: (rows,) integer, or (rows, n) probabilities. Returns float32 (rows,).
    Source: fairseq's label-smoothed criterion as used by ONE-PEACE (section 6.3 of its released layout).
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    if target.is_floating_point():
        loss = -(target * log_probs).sum(dim=-1)
    else:
        loss = -log_probs.gather(-1, target[:, None]).squeeze(-1)
    num_classes = logits.shape[-1]
    if label_smoothing == 0.0 or num_classes == 1:
        return loss
    share = label_smoothing / (num_classes - 1)
    return (1.0 - label_smoothing - share) * loss - share * log_probs.sum(dim=-1)


def cross_entropy_sum(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and the number of correct rows.

    loss = sum_b (1 - e) * -sum_k t_k log p_k + e/n * sum_k -log p_k; for soft targets "correct" is sum_b sum_k p_k t_k.

    logits: (batch, classes); target: (batch,) integer or (batch, classes) probabilities.
    Source: ONE-PEACE VGGSound, NLVR2 and ImageNet heads (section 7).
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="sum")
    if target.is_floating_point():
        return loss, (logits.softmax(dim=-1) * target).sum()
    return loss, (logits.argmax(dim=-1) == target).sum()


def multi_label_sum(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy with logits summed over classes and batch, and the target mass on the arg-max class.

    loss = sum_{b,c} -(t log sigmoid(s) + (1 - t) log sigmoid(-s))

    logits, target: (batch, classes), target in [0, 1] (soft VQA scores, multi-hot sound tags).
    Source: ONE-PEACE VQA and FSD50K heads (section 7).
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="sum")
    return loss, target.gather(-1, logits.argmax(dim=-1, keepdim=True)).sum()


def choice_hinge_sum(scores: Tensor, target: Tensor, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Hinge loss over answer choices, summed over questions, and the number of questions answered correctly.

    loss = sum_q sum_c max(0, margin + s_qc - s_q,target); the correct choice itself always adds `margin`.

    scores: (questions, choices); target: (questions,) integer. Source: ONE-PEACE audio question answering (section 7).
    """
    scores = scores.float()
    correct = scores.gather(-1, target[:, None])  # (questions, 1)
    return (margin + scores - correct).clamp_min(0).sum(), (scores.argmax(-1) == target).sum()


def box_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Loss of one predicted box per sample.

    p = sigmoid(logits); loss = sum |p - t| / batch + mean over *valid* p of (1 - GIoU(p, t)), where valid means
    x0 < x1 and y0 < y1. Without a valid box the second term is 0 (the released code returns NaN).

    logits, target: (batch, 4) as x0, y0, x1, y1 with target in [0, 1].
    Source: ONE-PEACE grounding (section 7); GIoU: Rezatofighi et al. 2019.
    """
    boxes = logits.float().sigmoid()
    distance = (boxes - target).abs().sum() / len(boxes)
    valid = ((boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])).float()
    gap = torch.where(valid.bool(), 1.0 - paired_giou(boxes, target), 0.0)
    return distance + gap.sum() / valid.sum().clamp_min(1.0)


def paired_giou(a: Tensor, b: Tensor, eps: float = 1e-9) -> Tensor:
    """Generalised intersection over union of box i of `a` with box i of `b`.

    GIoU = |A & B| / |A | B| - (|hull| - |A | B|) / |hull|. a, b: (boxes, 4) as x0, y0, x1, y1. Returns (boxes,).
    """
    overlap = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    union = _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - overlap
    return overlap / union.clamp_min(eps) - (hull - union) / hull.clamp_min(eps)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0).prod(dim=-1)
