"""Boxes are judged by pycocotools, whatever the numbers that a file gives its annotations."""

from __future__ import annotations

import numpy as np
import pytest

from plait.metrics.detection import coco_ap, pictures_ap

pytest.importorskip("pycocotools", reason="needs plait[eval]")


def truth(ids=(1, 2), **left_out):
    """Two pictures with a box of one category each."""
    boxes = [
        {"id": name, "image_id": image, "category_id": 7, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0}
        for name, image in zip(ids, (1, 2), strict=True)
    ]
    annotations = [{key: value for key, value in box.items() if key not in left_out} for box in boxes]
    return {"images": [{"id": 1}, {"id": 2}], "annotations": annotations, "categories": [{"id": 7, "name": "x"}]}


def found(*images):
    return [{"image_id": image, "category_id": 7, "bbox": [10, 10, 30, 30], "score": 0.9} for image in images]


@pytest.mark.parametrize("ids", [(1, 2), (0, 1), (5, 5), ("a", "b")])
def test_perfect_boxes_are_perfect_whatever_their_ids(ids):
    given = truth(ids)
    assert coco_ap(given, found(1, 2))[0]["AP"] == pytest.approx(1.0)
    assert [one["id"] for one in given["annotations"]] == list(ids)  # the caller's own stay as they are
    assert coco_ap(given, found(1))[0]["AP"] < 0.6


def test_what_a_file_may_leave_out():
    assert coco_ap(truth(area=True, iscrowd=True), found(1, 2))[0]["AP"] == pytest.approx(1.0)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="expected results for images of the ground truth, got image 9"):
        coco_ap(truth(), found(1, 9))
    with pytest.raises(ValueError, match="expected category_id in annotation 1, got none"):
        coco_ap(truth(category_id=True), found(1))
    with pytest.raises(ValueError, match="expected an area or a bbox in annotation 1, got neither"):
        coco_ap(truth(area=True, bbox=True), found(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools' own arrays
def test_masks_are_ranked_by_how_sure_they_are():
    tools = pytest.importorskip("pycocotools.mask")
    left = np.zeros((4, 4), np.uint8, order="F")
    left[:, :2] = 1
    right, wrong = (tools.encode(np.asfortranarray(mask)) for mask in (left, 1 - left))
    truth = [{"label": "cat", "bbox": [0, 0, 2, 4], "segmentation": right}]
    found = [
        {"label": "cat", "score": 0.9, "bbox": [0, 0, 2, 4], "mask_score": 0.2, "segmentation": wrong},
        {"label": "cat", "score": 0.5, "bbox": [2, 0, 2, 4], "mask_score": 0.6, "segmentation": right},
    ]
    assert pictures_ap([truth], [found], "bbox") == pytest.approx(1.0)
    assert pictures_ap([truth], [found], "segm", [(4, 4)]) == pytest.approx(1.0)
    # By the boxes' scores the wrong mask would come first.
    unsure = [{name: value for name, value in row.items() if name != "mask_score"} for row in found]
    assert pictures_ap([truth], [unsure], "segm", [(4, 4)]) == pytest.approx(0.5)
