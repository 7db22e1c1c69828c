"""What dense heads do with raw outputs: overlapping boxes, doubtful masks, queries to maps (specification 8.4, 8.5).

boxes + scores -> soft-NMS -> kept indices, new scores        class and mask logits -> map of classes
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

SoftNms = Literal["linear", "gaussian", "hard"]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    method: SoftNms = "linear",
    threshold: float = 0.6,
    sigma: float = 0.5,
    prune: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Boxes in decreasing order of a score that falls with their overlap with better boxes of the same class.

    linear: score * (1 - IoU) above the threshold; gaussian: score * exp(-IoU**2 / sigma) always; hard: 0 at or above
    the threshold. After every pick boxes of a score <= prune are dropped.

    boxes: (n, 4) as x1, y1, x2, y2; scores, classes: (n,). Returns kept indices and their scores, (kept,) each.
    Raises ValueError for an unknown method. Source: Bodla et al., arXiv 1704.04503.
    """
    if method not in ("linear", "gaussian", "hard"):
        raise ValueError(f"expected soft-NMS linear, gaussian or hard, got {method!r}")
    kept: list[Tensor] = []
    rescored: list[Tensor] = []
    for wanted in classes.unique():
        index = (classes == wanted).nonzero()[:, 0]
        found, values = _one_class(boxes[index], scores[index], method, threshold, sigma, prune)
        kept.append(index[found])
        rescored.append(values)
    if not kept:
        return classes.new_zeros(0), scores.clone()
    values, order = torch.cat(rescored).sort(descending=True, stable=True)
    return torch.cat(kept)[order], values


def _one_class(
    boxes: Tensor, scores: Tensor, method: str, threshold: float, sigma: float, prune: float
) -> tuple[Tensor, Tensor]:
    scores, left = scores.clone(), torch.arange(len(boxes), device=boxes.device)
    kept, values = [], []
    while len(left):
        best = left[scores[left].argmax()]
        kept.append(best)
        values.append(scores[best].clone())
        left = left[left != best]
        iou = _iou(boxes[best], boxes[left])
        if method == "linear":
            decay = torch.where(iou > threshold, 1 - iou, torch.ones_like(iou))
        elif method == "gaussian":
            decay = torch.exp(-(iou**2) / sigma)
        else:
            decay = (iou < threshold).to(iou)
        scores[left] *= decay
        left = left[scores[left] > prune]
    return torch.stack(kept), torch.stack(values)


def _iou(box: Tensor, others: Tensor) -> Tensor:
    """box: (4,), others: (n, 4) -> (n,)."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    inner = (high - low).clamp_min(0).prod(dim=-1)
    areas = (others[:, 2:] - others[:, :2]).prod(dim=-1) + (box[2:] - box[:2]).prod()
    return torch.where(inner > 0, inner / (areas - inner), torch.zeros_like(inner))


def maskness_scores(scores: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Scores times the mean probability inside the mask, 0 where no pixel is inside.

    scores: (n,); masks: (n, ..., height, width) probabilities. Returns (n,).
    """
    flat = masks.flatten(1)
    inside = (flat > threshold).to(flat)
    return scores * (flat * inside).sum(dim=1) / inside.sum(dim=1).clamp_min(1)


def semantic_map(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Queries of a mask transformer -> scores of every class at every pixel (Mask2Former, arXiv 2112.01527).

    class_logits: (batch, queries, classes + 1), the last for "no object"; mask_logits: (batch, queries, height, width).
    Returns (batch, classes, height, width).
    """
    classes = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, mask_logits.sigmoid())
