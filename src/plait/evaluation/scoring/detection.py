"""Predicted boxes of items -> the COCO evaluation's average precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plait.evaluation.readers import Item
from plait.metrics.detection import coco_ap

SHOWN = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_small": "AP small",
    "AP_medium": "AP medium",
    "AP_large": "AP large",
}


def box_ap(items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, float]:
    """Box AP, AP50, AP75 and AP by size in percent, by pycocotools; -1 where there is nothing of that kind."""
    names = {name for item in items for name in item.box_labels or []}
    names |= {box["label"] for boxes in predictions.values() for box in boxes or []}
    numbers = {name: i for i, name in enumerate(sorted(names), 1)}
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        for row, label in zip(item.meta["annotations"], item.box_labels or []):
            annotations.append(row | {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[label]})
        for box in predictions[item.id] or []:
            x1, y1, x2, y2 = box["box"]
            place = {"image_id": number, "category_id": numbers[box["label"]], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            found.append(place | {"score": box["score"]})
    truth = {
        "images": [{"id": number} for number in range(1, len(items) + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    summary, _ = coco_ap(truth, found)
    return {shown: 100 * summary[name] if summary[name] >= 0 else -1.0 for name, shown in SHOWN.items()}
