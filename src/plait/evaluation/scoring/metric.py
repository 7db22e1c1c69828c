"""Small measures that scorers share: boxes, correlations, average precision, pooled confusion, COCO's box AP."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.errors import import_extra
from plait.evaluation.readers import Item
from plait.evaluation.readers.regions import IGNORED

Array = np.ndarray[Any, Any]


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where the intersection has no width or height."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def f1(predicted: Array, labels: Array) -> float:
    """F1 of class 1. predicted, labels: (n,) of 0 and 1. 0 where class 1 is neither said nor right."""
    both = float(((predicted == 1) & (labels == 1)).sum())
    return 2 * both / max(float((predicted == 1).sum() + (labels == 1).sum()), 1.0)


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews correlation of two binary vectors (n,); 0 where one of them is constant."""
    return pearson(predicted, labels)


def pearson(first: Array, second: Array) -> float:
    """Pearson correlation of two vectors (n,); 0 where one of them is constant."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length else 0.0


def spearman(first: Array, second: Array) -> float:
    """Pearson correlation of the ranks; equal values share their mean rank."""
    return pearson(_mean_ranks(first), _mean_ranks(second))


def _mean_ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def average_precisions(scores: Array, targets: Array) -> Array:
    """Average precision of every class: sum of recall steps times precision, equal scores as one threshold.

    scores: (n, classes), targets: bool (n, classes). NaN for a class without a positive.
    """
    return np.array([_average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1])])


def _average_precision(scores: Array, targets: Array) -> float:
    if not targets.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(targets[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    recall, precision = right[ends] / right[-1], right[ends] / (ends + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def confusion(predicted: Array, target: Array, classes: int) -> Array:
    """Counts (classes, classes + 1) of target and predicted class; pixels with target IGNORED are left out.

    The last column counts predictions that are no class, which are wrong.
    """
    kept = target != IGNORED
    said = np.minimum(predicted[kept].astype(np.int64), classes)
    pairs = target[kept].astype(np.int64) * (classes + 1) + said
    return np.bincount(pairs, minlength=classes * (classes + 1))[: classes * (classes + 1)].reshape(classes, -1)


def segmentation_scores(table: Array) -> dict[str, float]:
    """mIoU, mAcc and aAcc in percent of a pooled confusion table (classes, classes + 1). Classes neither said nor right
    are left out of mIoU, classes that are never right of mAcc."""
    square = table[:, :-1]
    both, right, said = np.diag(square).astype(float), table.sum(1), square.sum(0)
    union = right + said - both
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap, correct = both / union, both / right
    return {
        "mIoU": 100 * float(np.nanmean(overlap)),
        "mAcc": 100 * float(np.nanmean(correct)),
        "aAcc": 100 * float(both.sum() / max(table.sum(), 1)),
    }


def box_ap(items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, float]:
    """Box AP, AP50, AP75 and AP by size in percent, by pycocotools; -1 where there is nothing of that kind."""
    coco, evaluation = import_extra("pycocotools.coco"), import_extra("pycocotools.cocoeval")
    names = {name for item in items for name in item.box_labels or []}
    names |= {box["label"] for boxes in predictions.values() for box in boxes or []}
    numbers = {name: i for i, name in enumerate(sorted(names), 1)}
    truth, found = coco.COCO(), []
    images, annotations = [], []
    for number, item in enumerate(items, 1):
        images.append({"id": number})
        for row, label in zip(item.meta["annotations"], item.box_labels or []):
            annotations.append(row | {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[label]})
        for box in predictions[item.id] or []:
            x1, y1, x2, y2 = box["box"]
            place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            known = {"id": len(found) + 1, "image_id": number, "category_id": numbers[box["label"]]}
            found.append(place | known | {"score": box["score"]})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
    given = coco.COCO()
    given.dataset = {"images": images, "annotations": found, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):  # the tool prints its progress
        truth.createIndex()
        given.createIndex()
        run = evaluation.COCOeval(truth, given, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    kinds = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
    return {kind: 100 * float(value) if value >= 0 else -1.0 for kind, value in zip(kinds, run.stats)}
