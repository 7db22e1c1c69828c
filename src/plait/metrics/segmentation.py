"""Semantic segmentation: class maps -> one pooled confusion table -> IoU and accuracy per class, mIoU, mAcc, aAcc."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Array = npt.NDArray[Any] | Sequence[Any]
Floats = npt.NDArray[np.float64]
IGNORED = 255


@dataclass(frozen=True)
class SegmentationScores:
    """Percentages of a set of class maps.

    mean_iou, mean_accuracy: over the defined classes; pixel_accuracy: over all pixels.
    class_iou, class_accuracy: (classes,), NaN where a class neither occurs nor is predicted.
    """

    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    class_iou: Floats
    class_accuracy: Floats


def confusion(
    predicted: Array,
    target: Array,
    num_classes: int,
    *,
    ignore_index: int = IGNORED,
    reduce_zero_label: bool = False,
) -> npt.NDArray[np.int64]:
    """Pixel counts of target and predicted class; pixels to ignore are left out.

    Args:
        predicted, target: integers of one shape.
        num_classes: classes 0 .. num_classes - 1.
        ignore_index: target value of pixels without a class.
        reduce_zero_label: target 0 means unlabelled and others are decreased by one (ADE20K);
            predictions stay as they are.

    Returns:
        int64 (classes, classes + 1), rows the target. The last column counts predictions that
        are no class: wrong.

    Raises:
        ValueError: for other shapes, and for a target that is no class.
    """
    said, right = (np.asarray(one) for one in (predicted, target))
    if not (np.issubdtype(said.dtype, np.integer) and np.issubdtype(right.dtype, np.integer)):
        # NaN would become some class as an integer
        said, right = finite(said, "classes"), finite(right, "classes")
    said, right = said.astype(np.int64), right.astype(np.int64)
    if said.shape != right.shape:
        raise ValueError(f"expected maps of one shape, got {said.shape} and {right.shape}; predict at full size")
    if reduce_zero_label:
        # ignored pixels must not become class 254
        right = np.where((right == 0) | (right == ignore_index), ignore_index, right - 1)
    kept = right != ignore_index
    said, right = said[kept], right[kept]
    if right.size and not 0 <= right.min() <= right.max() < num_classes:
        raise ValueError(f"expected target classes 0 to {num_classes - 1} or {ignore_index}, got {right.max()}")
    said = np.where((said < 0) | (said >= num_classes), num_classes, said)
    # one count over pairs written as one number: a table of classes needs no loop over pixels
    counts = np.bincount(right * (num_classes + 1) + said, minlength=num_classes * (num_classes + 1))
    return counts.reshape(num_classes, num_classes + 1)


def scores_of(table: npt.NDArray[Any]) -> SegmentationScores:
    """Scores of a pooled confusion table.

        IoU_c = intersection / union          accuracy_c = intersection / target pixels

    Args:
        table: (classes, classes + 1) of `confusion`, or the sum of several.

    Returns:
        A `SegmentationScores`, in percent.
    """
    square = table[:, : table.shape[0]].astype(np.float64)
    both, right, said = np.diag(square), table.sum(axis=1).astype(np.float64), square.sum(axis=0)
    union = right + said - both
    iou = np.divide(100 * both, union, out=np.full_like(both, np.nan), where=union > 0)
    accuracy = np.divide(100 * both, right, out=np.full_like(both, np.nan), where=right > 0)
    pixels = 100 * float(both.sum() / right.sum()) if right.sum() else float("nan")
    return SegmentationScores(_mean(iou), _mean(accuracy), pixels, iou, accuracy)


def segmentation_scores(
    predicted: Iterable[Array],
    targets: Iterable[Array],
    num_classes: int,
    *,
    ignore_index: int = IGNORED,
    reduce_zero_label: bool = False,
) -> SegmentationScores:
    """Scores over all pixels of all images pooled; images may differ in size.

    Args:
        predicted, targets: class maps, image by image.
        num_classes, ignore_index, reduce_zero_label: as in `confusion`.

    Returns:
        A `SegmentationScores`. Pooled, not averaged over images, as published mIoU is.

    Raises:
        ValueError: as `confusion`, and for other numbers of the two.
    """
    tables = (
        confusion(said, right, num_classes, ignore_index=ignore_index, reduce_zero_label=reduce_zero_label)
        for said, right in zip(predicted, targets, strict=True)
    )
    return scores_of(sum(tables, np.zeros((num_classes, num_classes + 1), np.int64)))


def _mean(values: Floats) -> float:
    """Mean of the defined values, NaN where none is: numpy would warn."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
