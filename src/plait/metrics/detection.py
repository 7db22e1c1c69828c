"""Boxes and masks of COCO classes: AP and AR by pycocotools (extra `eval`), called, never imitated."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from plait.errors import import_extra
from plait.metrics.checks import finite

SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""Names of COCOeval's twelve figures, in its order."""


def coco_ap(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: str = "bbox"
) -> tuple[dict[str, float], dict[int, float | None]]:
    """AP and AR of boxes or masks by pycocotools.

    Args:
        ground_truth: an instances file (`images`, `annotations`, `categories`).
        results: a list of `image_id`, `category_id`, `score` and `bbox` x, y, width, height or
            `segmentation` (polygon or run lengths).
        kind: `bbox` or `segm`.

    Returns:
        The twelve figures of `SUMMARY` (fractions, -1 without ground truth), and the AP of every
        category (None without).

    Raises:
        ValueError: for another kind, and for NaN or infinite scores and boxes.
        MissingExtra: without pycocotools.
    """
    if kind not in ("bbox", "segm"):
        raise ValueError(f"expected kind bbox or segm, got {kind!r}")
    for box in results:
        finite([box["score"], *box.get("bbox", ())], "scores and boxes")
    coco, evaluation = import_extra("pycocotools.coco"), import_extra("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):  # the tool prints its progress
        truth = coco.COCO()
        # a copy: the tool writes areas, ids and flags into what it is given
        truth.dataset = _numbered(deepcopy(dict(ground_truth)), results)
        # loadRes copies it, and a file may lack it
        truth.dataset.setdefault("info", {})
        truth.createIndex()
        found = truth.loadRes(deepcopy(list(results))) if results else _nothing(coco, truth)
        run = evaluation.COCOeval(truth, found, kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    summary = {name: float(value) for name, value in zip(SUMMARY, run.stats, strict=True)}
    return summary, _by_category(run)


def pictures_ap(
    truths: Sequence[Sequence[Mapping[str, Any]]],
    found: Sequence[Sequence[Mapping[str, Any]]],
    kind: str = "bbox",
    sizes: Sequence[tuple[int, int]] | None = None,
) -> float:
    """AP of boxes or masks over images whose rows lie beside each other, classes matched by name.

    Args:
        truths: per image, rows of `label`, `bbox` x, y, width, height, for masks `segmentation`, and
            `iscrowd` where it is one.
        found: per image, rows of `label`, `score`, `bbox` or `segmentation`; masks are ranked by `mask_score` where
            it is there.
        kind: `bbox` or `segm`.
        sizes: width and height of the images, which polygons need.

    Returns:
        AP as a fraction, -1 without ground truth.

    Raises:
        ValueError: as `coco_ap`, and for another number of images.
    """
    names = sorted({row["label"] for rows in (*truths, *found) for row in rows})
    numbers = {name: i for i, name in enumerate(names, 1)}
    annotations, results = [], []
    for i, (right, said) in enumerate(zip(truths, found, strict=True), 1):
        place = [{"image_id": i, "category_id": numbers[row["label"]]} for row in (*right, *said)]
        annotations += [dict(row) | at for row, at in zip(right, place)]
        for row, at in zip(said, place[len(right) :]):
            score = row.get("mask_score", row["score"]) if kind == "segm" else row["score"]
            # The tool takes a row with a box for one, whatever it is asked for.
            what = "segmentation" if kind == "segm" else "bbox"
            results.append({what: row[what], "score": score} | at)
    pictures: list[dict[str, Any]] = [{"id": i} for i in range(1, len(truths) + 1)]
    for picture, (width, height) in zip(pictures, sizes or ()):
        picture |= {"width": width, "height": height}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    truth = {"images": pictures, "annotations": annotations, "categories": categories}
    return coco_ap(truth, results, kind)[0]["AP"]


def _numbered(truth: dict[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ground truth with annotations numbered from 1, and what the tool takes for granted filled in.

    The tool writes the id of the annotation that a box found and reads 0 as none: perfect boxes of a file that counts
    from 0, or that uses an id twice, would be misses. Nothing that is returned knows these ids.

    Raises:
        ValueError: for an annotation without image, category or box, and for a result of an unknown image.
    """
    images = {image.get("id") for image in truth.get("images", ())}
    for number, one in enumerate(truth.get("annotations", ())):
        name = f"annotation {one.get('id', number)}"
        for field in ("image_id", "category_id"):
            if one.get(field) is None:
                raise ValueError(f"expected {field} in {name}, got none; correct the file")
        if one["image_id"] not in images:
            raise ValueError(f"expected an image of the file in {name}, got {one['image_id']!r}; correct the file")
        one["id"] = number + 1
        one.setdefault("iscrowd", 0)
        if one.get("area") is None:
            if not one.get("bbox"):
                raise ValueError(f"expected an area or a bbox in {name}, got neither; correct the file")
            one["area"] = one["bbox"][2] * one["bbox"][3]
    for one in results:
        if one.get("image_id") not in images:
            raise ValueError(f"expected results for images of the ground truth, got image {one.get('image_id')!r}")
    return truth


def _nothing(coco: Any, truth: Any) -> Any:
    """An index without detections: the tool cannot load an empty list."""
    found = coco.COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def _by_category(run: Any) -> dict[int, float | None]:
    """AP of every category: the mean precision over thresholds and recalls that have ground truth."""
    # the tool marks what it could not measure by -1, which a mean must not see
    precision = run.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, categories) of all areas, most detections
    values = {}
    for column, category in enumerate(run.params.catIds):
        known = precision[:, :, column][precision[:, :, column] > -1]
        values[category] = float(np.mean(known)) if known.size else None
    return values
