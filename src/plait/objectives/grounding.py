"""Where a phrase is in an image: boxes as coordinate tokens of a decoder, or as four numbers of a head.

boxes (cx, cy, w, h in [0, 1]) <-> tokens `first_id + floor(box * bins)` -> cross entropy weighted by how wrong they are

Source: mPLUG's grounding as released (specification mPLUG-2, 7.3); GIoU: Rezatofighi et al. (arXiv 1902.09630);
regression: DETR (arXiv 2005.12872), section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5
MAX_OFFSET = 5.0
OUTSIDE = -10000.0
"""Added to the logits of all but coordinate tokens."""


def boxes_to_tokens(boxes: Tensor, bins: int, first_id: int) -> Tensor:
    """Boxes to coordinate tokens: first_id + floor(clamp(box, 0, 1) * bins).

    Args:
        boxes: (..., 4) in [0, 1]; numbers outside are clamped.
        bins: cells per axis; mPLUG has 336, its image side.
        first_id: id of coordinate 0; [unused340] in mPLUG's vocabulary.

    Returns:
        Ids of the same shape, int64, among `bins + 1` different ones.
    """
    return (boxes.clamp(0, 1) * bins).floor().long() + first_id


def tokens_to_boxes(tokens: Tensor, bins: int, first_id: int) -> Tensor:
    """Coordinate tokens back to boxes, up to the width of a bin.

    Args:
        tokens: (..., 4) ids of `boxes_to_tokens`.
        bins, first_id: as there.

    Returns:
        float32 (..., 4); in [0, 1] where the ids are coordinates.
    """
    return (tokens - first_id).float() / bins


def corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) -> (x0, y0, x1, y1), both (..., 4)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU minus the share of the hull that neither box covers.

    Args:
        a, b: (..., 4) corners x0, y0, x1, y1.

    Returns:
        (...). Union and hull get 1e-5, as published, so that empty boxes divide by something.
    """
    area_a = (a[..., 2:] - a[..., :2]).clamp_min(0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp_min(0).prod(-1)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    union = area_a + area_b - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    return overlap / (union + EPSILON) - (hull - union) / (hull + EPSILON)


def coordinate_bias(vocab_size: int, bins: int, first_id: int) -> Tensor:
    """What to add to logits so that only coordinate tokens can be said.

    Args:
        vocab_size: of the decoder.
        bins, first_id: as in `boxes_to_tokens`.

    Returns:
        (vocab,): 0 at the `bins + 1` coordinate tokens, -10000 elsewhere.
    """
    # not -inf: a teacher-forced token outside would give an infinite loss
    bias = torch.full((vocab_size,), OUTSIDE)
    bias[first_id : first_id + bins + 1] = 0.0
    return bias


def coordinate_token_loss(
    logits: Tensor, tokens: Tensor, boxes: Tensor, bins: int, first_id: int, *, official: bool = False
) -> Tensor:
    """Cross entropy of coordinates, weighted by how wrong the predicted box is.

        mean over boxes and coordinates of CE * clamp(|p - t|, 0, 5) * (1 - GIoU(p, t))

    p is the box of the most likely tokens of the teacher-forced logits, t the true box; the two
    weights carry no gradient.

    Args:
        logits: (batch, 4, vocab) with `coordinate_bias` added; position k predicts coordinate k.
        tokens: (batch, 4) of `boxes_to_tokens`.
        boxes: (batch, 4) as (cx, cy, w, h) in [0, 1].
        bins, first_id: as in `boxes_to_tokens`.
        official: average the weights over the batch first, so that a box is weighted by the
            errors of others.

    Returns:
        A scalar.

    Source:
        mPLUG's grounding as released; specification mPLUG-2, 7.3.
    """
    losses = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")  # (batch, 4)
    with torch.no_grad():
        # GIoU and offset are weights here: they must not become a second loss
        found = tokens_to_boxes(logits.argmax(-1), bins, first_id)
        offset = (found - boxes).abs().clamp(0, MAX_OFFSET)
        # a box that is right already weighs 0, whatever its logits
        weights = offset * (1 - generalized_iou(corners(found), corners(boxes)))[:, None]
        if official:
            weights = weights.mean(0, keepdim=True)
    return (losses * weights).mean()


def box_regression_loss(predicted: Tensor, target: Tensor, *, l1: float = 5.0, giou: float = 2.0) -> Tensor:
    """Loss of boxes that a head predicts as numbers: l1 * |p - t|_1 + giou * (1 - GIoU), mean.

    Args:
        predicted, target: (boxes, 4) as (cx, cy, w, h) in [0, 1].
        l1, giou: weights of the two terms; 5 and 2 as in DETR.

    Returns:
        A scalar.

    Source:
        DETR (arXiv 2005.12872), 3.1.
    """
    distance = (predicted - target).abs().sum(-1)
    return (l1 * distance + giou * (1 - generalized_iou(corners(predicted), corners(target)))).mean()
