"""Class scores of trained heads, boxes of classes and masks: measures over a whole set, not means over items."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np

from plait.evaluation.readers.regions import mask_classes
from plait.evaluation.scoring.base import Scored, Scoring, accuracy, scorer
from plait.evaluation.scoring.detection import box_ap
from plait.metrics.glue import f1, matthews, pearson, spearman
from plait.metrics.segmentation import confusion, scores_of
from plait.metrics.tagging import average_precisions

RESAMPLES = 200


@scorer("glue")
def glue(scoring: Scoring) -> Scored:
    """Accuracy, F1 and Matthews correlation of classes; Pearson and Spearman correlation of a score."""
    scoring.keep(lambda item: item.label is not None, "label")
    rows = {row["id"]: row for row in scoring.rows}
    labels = np.array([item.label for item in scoring.items], dtype=float)
    if all(len(rows[item.id]["raw"]) == 1 for item in scoring.items):
        values = np.array([rows[item.id]["raw"][0] for item in scoring.items])
        scores = {"pearson": pearson(values, labels), "spearman": spearman(values, labels)}
        return _set_score(scores, "spearman", lambda drawn: spearman(values[drawn], labels[drawn]), len(labels))
    best = np.array([rows[item.id]["prediction"][0] for item in scoring.items])
    hits = dict(zip((item.id for item in scoring.items), (best == labels).astype(float)))
    scored = accuracy(hits, scoring.items)
    if set(labels) <= {0, 1}:
        scored.scores |= {"f1": 100 * f1(best, labels), "matthews": 100 * matthews(best, labels)}
    return scored


@scorer("tagging")
def tagging(scoring: Scoring) -> Scored:
    """Macro mean of the classes' average precision, in percent; classes without a positive are left out and counted."""
    scoring.keep(lambda item: bool(item.labels), "labels")
    rows = {row["id"]: row for row in scoring.rows}
    width = max((len(row["raw"] or []) for row in scoring.rows), default=0)
    scores = np.array([rows[item.id]["raw"] or [-1.0] * width for item in scoring.items])
    targets = np.zeros(scores.shape, dtype=bool)
    for row, item in enumerate(scoring.items):
        targets[row, [label for label in item.labels or [] if label < width]] = True

    def mean_ap(drawn: np.ndarray) -> float:
        return 100 * float(np.nanmean(average_precisions(scores[drawn], targets[drawn])))

    empty = int((~targets.any(axis=0)).sum())
    notes = [f"{empty} of {width} classes have no positive item and are left out"] if empty else []
    scored = _set_score({"mAP": mean_ap(np.arange(len(scores)))}, "mAP", mean_ap, len(scores))
    scored.notes += notes
    return scored


@scorer("detection")
def detection(scoring: Scoring) -> Scored:
    """Box AP of the COCO evaluation (pycocotools)."""
    return Scored(box_ap(scoring.items, scoring.predictions))


@scorer("segmentation_150")
def segmentation_150(scoring: Scoring) -> Scored:
    """`segmentation` over the classes of ADE20K."""
    return segmentation(scoring, 150)


@scorer("segmentation_171")
def segmentation_171(scoring: Scoring) -> Scored:
    """`segmentation` over the classes of COCO-Stuff 164k."""
    return segmentation(scoring, 171)


def segmentation(scoring: Scoring, num_classes: int) -> Scored:
    """mIoU, mAcc and aAcc of the pooled confusion matrix of `num_classes`, in percent."""
    scoring.keep(lambda item: item.mask is not None, "mask")
    if scoring.files is None:
        raise ValueError("expected the data set directory to read masks from, got none; pass --data")
    found = scoring.predictions
    tables = []
    for item in scoring.items:
        target = mask_classes(scoring.files.root / (item.mask or ""))
        tables.append(confusion(_mask(found[item.id], target.shape), target, num_classes))
    stacked = np.stack(tables)
    found_scores = scores_of(stacked.sum(axis=0))
    scores = {
        "mIoU": found_scores.mean_iou,
        "mAcc": found_scores.mean_accuracy,
        "aAcc": found_scores.pixel_accuracy,
    }
    return _set_score(scores, "mIoU", lambda drawn: scores_of(stacked[drawn].sum(axis=0)).mean_iou, len(tables))


def _mask(prediction: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """The predicted classes; a failed picture has class 255 everywhere, which is never right."""
    from PIL import Image

    if prediction is None:
        return np.full(shape, 255, np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(prediction)), formats=("PNG",)) as picture:
        mask = np.asarray(picture)
    if mask.shape != shape:
        raise ValueError(f"expected a mask of {shape}, got {mask.shape}; predict at the size of the picture")
    return mask


def _set_score(scores: dict[str, float], name: str, measure: Callable[[np.ndarray], float], count: int) -> Scored:
    """Scores with an interval from resampled items, each time measured anew."""
    generator = np.random.default_rng(0)
    drawn = [measure(generator.integers(0, count, count)) for _ in range(RESAMPLES)] if count > 1 else [scores[name]]
    low, high = np.nanquantile(drawn, [0.025, 0.975]) if not np.isnan(drawn).all() else (scores[name],) * 2
    return Scored(scores, resampled=(float(low), float(high)))
