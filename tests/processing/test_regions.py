"""Annotations to objects and back: what goes in comes out, in place and size, and errors are one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plait.processing.regions import Objects, coco_results, detection_labels, drawn, fit, read_mask, read_objects


def scene() -> tuple[Image.Image, Objects]:
    """A white rectangle on black, 40 x 20 pixels at (30, 10) of a picture of 100 x 60."""
    canvas = np.zeros((60, 100, 3), np.uint8)
    canvas[10:30, 30:70] = 255
    row = {"bbox": [30, 10, 40, 20], "category_id": "white", "segmentation": canvas[..., 0]}
    return Image.fromarray(canvas), read_objects([row], {"white": 0}, (100, 60), "a.png")


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("scale", "place"), [(1.0, (0.5, 0.5)), (0.4, (0.5, 0.5)), (1.6, (0.2, 0.9))])
def test_boxes_and_masks_go_where_the_pixels_go(scale: float, place: tuple[float, float], flip: bool) -> None:
    picture, objects = scene()
    fitted = fit(picture, 200, objects, scale=scale, place=place, flip=flip, mean=(0, 0, 0), std=(1, 1, 1))
    assert fitted.objects is not None and fitted.objects.masks is not None
    white = fitted.pixels[0] > 0.5
    rows, columns = white.any(1).nonzero()[:, 0], white.any(0).nonzero()[:, 0]
    seen = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    assert fitted.objects.boxes[0] == pytest.approx(seen, abs=1.0)
    assert np.logical_xor(fitted.objects.masks[0], white.numpy()).mean() < 0.01
    assert int(fitted.mask.sum()) == fitted.size[0] * fitted.size[1]


def test_labels_are_centre_and_sides_of_the_picture_without_padding() -> None:
    picture, objects = scene()
    labels = detection_labels(fit(picture, 200, objects))
    torch.testing.assert_close(labels["boxes"], torch.tensor([[0.5, 20 / 60, 0.4, 20 / 60]]))
    assert labels["class_labels"].tolist() == [0] and labels["masks"].shape == (1, 200, 200)


def test_objects_that_are_cut_away_are_gone() -> None:
    picture, objects = scene()
    fitted = fit(picture, 50, objects, scale=4.0, place=(1.0, 1.0))
    assert fitted.objects is not None and len(fitted.objects.boxes) == 0


def test_polygons_and_run_lengths_are_the_same_mask() -> None:
    wanted = np.zeros((4, 6), bool)
    wanted[1:3, 2:4] = True
    # Column by column: 9 outside, 2 inside, 2 outside, 2 inside, 9 outside.
    runs = {"size": [4, 6], "counts": [9, 2, 2, 2, 9]}
    assert np.array_equal(read_mask(runs, (6, 4), "a"), wanted)
    assert np.array_equal(read_mask([[2, 1, 4, 1, 4, 3, 2, 3]], (6, 4), "a"), wanted)
    assert np.array_equal(read_mask(wanted.astype(np.uint8), (6, 4), "a"), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools' own arrays
def test_polygons_are_filled_as_coco_fills_them() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    generator = np.random.default_rng(0)
    shares, areas = [], []
    for _ in range(40):
        width, height = (int(side) for side in generator.integers(40, 160, 2))
        count = int(generator.integers(3, 12))
        angles = np.sort(generator.uniform(0, 2 * np.pi, count))
        reach = generator.uniform(0.3, 1, count) * 0.7 * min(width, height)  # some go over the edge
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None] + (width / 2, height / 2)
        several = [corners.ravel().tolist(), (corners / 2 + 5).ravel().tolist()]
        wanted = tools.decode(tools.merge(tools.frPyObjects(several, height, width))).astype(bool)
        found = read_mask(several, (width, height), "a")
        shares.append((wanted & found).sum() / max((wanted | found).sum(), 1))
        areas.append(found.sum() / max(wanted.sum(), 1))
    # Theirs rounds corners to fifths of pixels: borders differ by a pixel here and there, areas do not.
    assert np.mean(shares) > 0.97 and abs(np.mean(areas) - 1) < 0.005
    box = [[20, 10, 80, 10, 80, 40, 20, 40]]
    assert np.array_equal(read_mask(box, (120, 60), "a"), tools.decode(tools.frPyObjects(box, 60, 120))[..., 0])


def test_results_are_coco_rows_that_read_back() -> None:
    pytest.importorskip("pycocotools")
    mask = torch.zeros(1, 8, 10, dtype=torch.bool)
    mask[0, 2:5, 3:9] = True
    found = {"scores": torch.tensor([0.5]), "labels": torch.tensor([1]), "boxes": torch.tensor([[3.0, 2, 9, 5]])}
    (row,) = coco_results({**found, "masks": mask}, 7, {1: 18})
    assert row["bbox"] == [3, 2, 6, 3] and row["category_id"] == 18 and row["image_id"] == 7
    assert np.array_equal(read_mask(row["segmentation"], (10, 8), "a"), mask[0].numpy())


def test_a_drawing_marks_boxes_and_masks_and_leaves_the_picture_alone() -> None:
    picture = Image.new("RGB", (80, 60))
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[0, 30:50, 20:60] = True
    found = {"scores": torch.tensor([0.5]), "labels": torch.tensor([1]), "boxes": torch.tensor([[20.0, 30, 60, 50]])}
    out = np.asarray(drawn(picture, {**found, "masks": mask}, {1: "cat"}))
    assert out[40, 40].any() and out[30, 40].any() and not out[58, 70].any() and not np.asarray(picture).any()


ROW: dict[str, Any] = {"bbox": [1, 1, 5, 5], "category_id": 1}


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [
        (
            [{**ROW, "segmentation": np.ones((3, 4))}],
            (20, 10),
            r"a.png: expected a mask of \(10, 20\) pixels, got one of",
        ),
        ([{**ROW, "segmentation": {"size": [20, 10], "counts": [200]}}], (20, 10), "expected a mask of"),
        ([{**ROW, "bbox": [16, 1, 9, 5]}], (20, 10), r"a.png: expected a box inside of 20 x 10 pixels, got x, y"),
        ([{**ROW, "bbox": [1, 1, 0, 5]}], (20, 10), "expected a box inside of"),
        ([{**ROW, "iscrowd": 1}], (20, 10), "a.png: expected an object that is no crowd, got crowds alone"),
        ([ROW], (0, 0), "a.png: expected a picture with pixels, got 0 x 0"),
        (
            [{**ROW, "category_id": 9}],
            (20, 10),
            "a.png: expected a category among 1, 2, got 9; correct its category_id",
        ),
    ],
)
def test_wrong_annotations_are_one_line(rows: list[dict[str, Any]], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_objects(rows, {1: 0, 2: 1}, size, "a.png")


def test_crowds_beside_objects_and_pictures_without_objects_are_fine() -> None:
    assert len(read_objects([ROW, {**ROW, "iscrowd": 1}], {1: 0}, (20, 10), "a").boxes) == 1
    assert read_objects([], {1: 0}, (20, 10), "a").boxes.shape == (0, 4)
