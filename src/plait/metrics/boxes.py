"""Boxes: overlap of predicted and right ones, and how many of a set hit (referring expressions).

    (n, 4) + (n, 4) boxes x1, y1, x2, y2 -> IoU, GIoU (n,) -> share with IoU >= 0.5

Areas are (x2 - x1) * (y2 - y1), without the +1 of pixel counting; a box with x2 < x1 or y2 < y1 is never right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Boxes = npt.NDArray[Any] | Sequence[Sequence[float]]
Floats = npt.NDArray[np.float64]


def box_iou(predicted: Boxes, target: Boxes) -> Floats:
    """Intersection over union of box pairs; 0 where the intersection has no width or height.

    Args:
        predicted, target: (n, 4) as x1, y1, x2, y2, in one unit.

    Returns:
        float64 (n,) in [0, 1].

    Raises:
        ValueError: for other shapes, and for NaN or infinite numbers.
    """
    first, second = _pair(predicted, target)
    inner, union, _ = _areas(first, second)
    return np.divide(inner, union, out=np.zeros_like(inner), where=(inner > 0) & (union > 0))


def box_giou(predicted: Boxes, target: Boxes) -> Floats:
    """Generalised IoU of box pairs: IoU - (hull - union) / hull.

    Args:
        predicted, target: (n, 4) as x1, y1, x2, y2.

    Returns:
        float64 (n,); NaN where the hull has no area.

    Source:
        Rezatofighi et al. 2019.
    """
    first, second = _pair(predicted, target)
    _, union, hull = _areas(first, second)
    penalty = np.divide(hull - union, hull, out=np.full_like(hull, np.nan), where=hull > 0)
    return box_iou(first, second) - penalty


def box_hits(predicted: Boxes, target: Boxes, threshold: float = 0.5) -> npt.NDArray[np.bool_]:
    """Whether IoU reaches the threshold with a positive intersection. Exactly the threshold counts.

    Args:
        predicted, target: as in `box_iou`.
        threshold: 0.5 for referring expressions.

    Returns:
        boolean (n,).
    """
    iou = box_iou(predicted, target)
    return (iou >= threshold) & (iou > 0)


def accuracy_at_iou(predicted: Boxes, target: Boxes, threshold: float = 0.5) -> float:
    """Share of predicted boxes that hit: acc@0.5 of RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        predicted, target, threshold: as in `box_hits`.

    Returns:
        A fraction in [0, 1].

    Example:
        >>> accuracy_at_iou([[0, 0, 10, 10]], [[0, 0, 10, 8]])
        1.0
    """
    return float(box_hits(predicted, target, threshold).mean())


def is_inverted(boxes: Boxes) -> npt.NDArray[np.bool_]:
    """Whether a box has x2 < x1 or y2 < y1.

    Args:
        boxes: (n, 4) as x1, y1, x2, y2.

    Returns:
        boolean (n,).
    """
    array = np.asarray(boxes, dtype=np.float64)
    return (array[:, 2] < array[:, 0]) | (array[:, 3] < array[:, 1])


def xywh_to_xyxy(boxes: Boxes) -> Floats:
    """Boxes as corners, from x, y, width, height as COCO and the RefCOCO files store them.

    Args:
        boxes: (n, 4).

    Returns:
        float64 (n, 4) as x1, y1, x2, y2.
    """
    array = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)


def _pair(predicted: Boxes, target: Boxes) -> tuple[Floats, Floats]:
    """Both as finite float64 arrays of one shape (n, 4). Raises ValueError for others."""
    first, second = finite(predicted, "boxes"), finite(target, "boxes")
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] != 4:
        raise ValueError(
            f"expected predicted and target boxes of one shape (n, 4), got {first.shape} and {second.shape}; "
            "give one box x1, y1, x2, y2 per expression"
        )
    return first, second


def _areas(first: Floats, second: Floats) -> tuple[Floats, Floats, Floats]:
    """Areas of intersection, union and the smallest box around both, (n,) each.

    first, second: (n, 4). An inverted box meets nothing.
    """
    corner, end = np.maximum(first[:, :2], second[:, :2]), np.minimum(first[:, 2:], second[:, 2:])
    inner = np.clip(end - corner, 0, None).prod(axis=1)
    # not clipped: an inverted box has a negative area, or a positive one where both sides are inverted
    union = (first[:, 2:] - first[:, :2]).prod(axis=1) + (second[:, 2:] - second[:, :2]).prod(axis=1) - inner
    outer = np.maximum(first[:, 2:], second[:, 2:]) - np.minimum(first[:, :2], second[:, :2])
    return inner, union, outer.prod(axis=1)
