"""Losses of classification heads: logits, target -> loss (ONE-PEACE, section 7 of its layout).

Functions whose name ends in `_sum` sum over the batch and return a count beside it: the released
runs divide by the samples of all processes, which a mean per process would not equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of every row, smoothed by spreading `e` over the n - 1 *other* classes.

        loss = (1 - e - e/(n-1)) * -sum_k t_k log p_k + e/(n-1) * sum_k -log p_k

    Args:
        logits: (rows, n).
        target: (rows,) integer classes, or (rows, n) probabilities.
        label_smoothing: e in [0, 1).

    Returns:
        float32 (rows,), not reduced.

    Source:
        fairseq's label-smoothed criterion as ONE-PEACE uses it (6.3 of its released layout).
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    if target.is_floating_point():
        loss = -(target * log_probs).sum(dim=-1)
    else:
        loss = -log_probs.gather(-1, target[:, None]).squeeze(-1)
    num_classes = logits.shape[-1]
    # one class has no others to spread e over: n - 1 would divide by 0
    if label_smoothing == 0.0 or num_classes == 1:
        return loss
    # not torch's smoothing, which spreads e over all n classes: the target keeps another share
    share = label_smoothing / (num_classes - 1)
    return (1.0 - label_smoothing - share) * loss - share * log_probs.sum(dim=-1)


def cross_entropy_sum(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed cross entropy and the number of correct rows: VGGSound, NLVR2, ImageNet.

        loss = sum_b (1 - e) * -sum_k t_k log p_k + e/n * sum_k -log p_k

    Args:
        logits: (batch, classes).
        target: (batch,) integer, or (batch, classes) probabilities.
        label_smoothing: e, spread over all n classes, as timm and torch do.

    Returns:
        The loss and the count, both scalars. For soft targets the count is sum_b sum_k p_k t_k.

    Source:
        ONE-PEACE, section 7 and 8.2 of its released layout.
    """
    logits = logits.float()
    loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="sum")
    if target.is_floating_point():
        return loss, (logits.softmax(dim=-1) * target).sum()
    return loss, (logits.argmax(dim=-1) == target).sum()


def multi_label_sum(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy summed over classes and batch, and the target mass on the arg-max class.

        loss = sum_{b,c} -(t log sigmoid(s) + (1 - t) log sigmoid(-s))

    Args:
        logits: (batch, classes).
        target: (batch, classes) in [0, 1]: soft VQA scores, or multi-hot audio tags.

    Returns:
        The loss and the mass, both scalars; the mass over the batch is the soft VQA accuracy.

    Source:
        ONE-PEACE's VQA (3,129 classes) and FSD50K (200 classes) heads, section 7.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="sum")
    return loss, target.gather(-1, logits.argmax(dim=-1, keepdim=True)).sum()


def choice_hinge_sum(scores: Tensor, target: Tensor, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Hinge loss over answer choices, summed over questions, and how many were answered right.

        loss = sum_q sum_c max(0, margin + s_qc - s_q,target)

    Args:
        scores: (questions, choices).
        target: (questions,) integer, the right choice.
        margin: by how much the right choice must lead.

    Returns:
        The loss and the count, both scalars.

    Source:
        ONE-PEACE's audio question answering, four choices (section 7).
    """
    scores = scores.float()
    correct = scores.gather(-1, target[:, None])  # (questions, 1)
    # the right choice is not left out: every question adds a constant `margin`, as published
    return (margin + scores - correct).clamp_min(0).sum(), (scores.argmax(-1) == target).sum()


def box_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Loss of one predicted box per sample: distance of corners and overlap.

        p = sigmoid(logits)
        loss = sum |p - t| / batch + mean over *valid* p of (1 - GIoU(p, t))

    A box is valid where x0 < x1 and y0 < y1. Without a valid box the second term is 0; the
    released code returns NaN there.

    Args:
        logits: (batch, 4), before the sigmoid, as x0, y0, x1, y1.
        target: (batch, 4) as x0, y0, x1, y1 in [0, 1].

    Returns:
        A scalar.

    Source:
        ONE-PEACE grounding (section 7); GIoU: Rezatofighi et al. (arXiv 1902.09630).
    """
    boxes = logits.float().sigmoid()
    distance = (boxes - target).abs().sum() / len(boxes)
    # nothing keeps a sigmoid head from predicting x1 < x0; such a box learns by distance alone
    valid = ((boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])).float()
    gap = torch.where(valid.bool(), 1.0 - paired_giou(boxes, target), 0.0)
    return distance + gap.sum() / valid.sum().clamp_min(1.0)


def paired_giou(a: Tensor, b: Tensor, eps: float = 1e-9) -> Tensor:
    """Generalised intersection over union of box i of `a` with box i of `b`.

        GIoU = |A & B| / |A | B| - (|hull| - |A | B|) / |hull|

    Args:
        a: (boxes, 4) as x0, y0, x1, y1.
        b: the same shape.
        eps: least area of a union or hull, so that two empty boxes divide by something.

    Returns:
        (boxes,) in [-1, 1].
    """
    overlap = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    union = _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - overlap
    return overlap / union.clamp_min(eps) - (hull - union) / hull.clamp_min(eps)


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Area of boxes from `low` corner to `high` corner, each (boxes, 2); 0 for an inverted box."""
    return (high - low).clamp_min(0).prod(dim=-1)
