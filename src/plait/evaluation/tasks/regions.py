"""Regions of pictures: referring expressions (RefCOCO), object boxes (COCO), class masks (ADE20K, COCO-Stuff).

annotation files -> Item(image, text, boxes | mask) -> a box, boxes of classes, or a mask -> acc@0.5 | AP | mIoU
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.base import Item, Method, Scored, Scoring, Source, Task, layout, published
from plait.evaluation.files import Row, read_record, rows_of
from plait.evaluation.tasks.classes import resampled
from plait.metrics.boxes import box_hits, xywh_to_xyxy
from plait.metrics.detection import coco_ap
from plait.metrics.segmentation import IGNORED, confusion, scores_of
from plait.types import Capability

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")


def grounding(scoring: Scoring) -> Scored:
    """Share of boxes with an intersection over union of at least 0.5. A reply without four numbers is wrong.

    The rule says what the numbers of a reply are: `fraction` of the image, `thousandth` of it, or `pixel`.

    Returns:
        Score acc@0.5 in percent; groups: images.

    Raises:
        NotScored: for a split without boxes.
        ValueError: where the size of an image is needed and not known.
    """
    scoring.keep(lambda item: bool(item.boxes), "box")
    sizes, rule = {row["id"]: row.get("image_size") for row in scoring.rows}, scoring.rule or "fraction"
    said: list[list[float] | None] = []
    for item, reply in scoring.pairs():
        # the first four numbers, whatever brackets and words stand around them
        numbers = [float(text) for text in _NUMBER.findall(reply)][:4]
        if len(numbers) < 4:
            said.append(None)
        elif rule == "pixel":
            said.append(numbers)
        elif (size := sizes.get(item.id) or item.image_size) is None:
            raise ValueError(f"expected the size of the picture for boxes by rule {rule}, got none; predict again")
        else:
            unit = 1.0 if rule == "fraction" else 1000.0
            said.append([min(max(value / unit, 0.0), 1.0) * size[i % 2] for i, value in enumerate(numbers)])
    right = [(item.boxes or [])[0] for item in scoring.items]
    # a box without an area meets nothing
    hits = box_hits([box or [0.0] * 4 for box in said], right)
    scored = scoring.scored(hits.tolist(), [box is None for box in said])
    scored.scores = {"acc@0.5": scored.scores["accuracy"]}
    # a picture has several phrases: intervals draw pictures whole
    scored.groups = {item.id: str(item.image) for item in scoring.items}
    return scored


def detection(scoring: Scoring) -> Scored:
    """Box AP, AP50, AP75 and AP by size in percent, by pycocotools; -1 where there is nothing of that kind.

    Mask AP stands beside it where the model makes masks and the data set has some, ranked by how sure a mask is.

    Classes are matched by name, since models number them otherwise than COCO. The score is no mean over items,
    so it has no interval.
    """
    items, predictions = scoring.items, scoring.predictions
    names = {name for item in items for name in item.box_labels or []}
    # classes that only the model knows take part: their boxes are wrong, not lost
    names |= {box["label"] for boxes in predictions.values() for box in boxes or []}
    numbers = {name: i for i, name in enumerate(sorted(names), 1)}
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        for row, label in zip(item.meta["annotations"], item.box_labels or []):
            # ids from 1: pycocotools marks a box without a match by the id 0
            annotations.append(row | {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[label]})
        for box in predictions[item.id] or []:
            x1, y1, x2, y2 = box["box"]
            # COCO's boxes are x, y, width, height
            place = {"image_id": number, "category_id": numbers[box["label"]], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            found.append(place | {"score": box["score"]})
            if "segmentation" in box:
                # the tool takes a row with a box for one, whatever it is asked for
                del place["bbox"]
                masks.append(place | {"segmentation": box["segmentation"], "score": box["mask_score"]})
    truth = {
        "images": [
            # polygons need the size of their picture
            {"id": number} | (dict(zip(("width", "height"), item.image_size)) if item.image_size else {})
            for number, item in enumerate(items, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    summary, _ = coco_ap(truth, found)
    scores: dict[str, float] = {}
    for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"):
        # -1 stays -1: there is no object of that size, which is no 0 %
        scores[name.replace("_", " ")] = 100 * summary[name] if summary[name] >= 0 else -1.0
    if masks and annotations and all(row.get("segmentation") for row in annotations):
        scores["mask AP"] = 100 * coco_ap(truth, masks, "segm")[0]["AP"]
    return Scored(scores)


def segmentation(scoring: Scoring, num_classes: int) -> Scored:
    """mIoU, mAcc and aAcc of the pooled confusion matrix, in percent.

    Args:
        scoring: predictions are grey PNG in base64, at the size of the image.
        num_classes: of the data set.

    Raises:
        NotScored: for a split without masks.
        ValueError: for a mask of another size, and without the directory that holds the right ones.
    """
    from PIL import Image

    scoring.keep(lambda item: item.mask is not None, "mask")
    if scoring.files is None:
        raise ValueError("expected the data set directory to read masks from, got none; pass --data")
    predictions, tables = scoring.predictions, []
    for item in scoring.items:
        target = mask_classes(scoring.files.root / (item.mask or ""), item.meta.get("numbering", "ade20k"))
        prediction = predictions[item.id]
        if prediction is None:  # a failed picture has a class that is never right everywhere
            said = np.full(target.shape, IGNORED, np.uint8)
        else:
            with Image.open(io.BytesIO(base64.b64decode(prediction)), formats=("PNG",)) as picture:
                said = np.asarray(picture)
        if said.shape != target.shape:
            raise ValueError(f"expected a mask of {target.shape}, got {said.shape}; predict at the size of the picture")
        # one table per picture, so that intervals can draw pictures
        tables.append(confusion(said, target, num_classes))
    stacked = np.stack(tables)
    found = scores_of(stacked.sum(axis=0))
    interval = resampled(lambda drawn: scores_of(stacked[drawn].sum(axis=0)).mean_iou, len(tables))
    scores = {"mIoU": found.mean_iou, "mAcc": found.mean_accuracy, "aAcc": found.pixel_accuracy}
    return Scored(scores, resampled=interval)


def corners(row: Row) -> list[float]:
    """`bbox` x, y, width, height -> x1, y1, x2, y2."""
    box = row.items_of("bbox")
    if len(box) != 4 or any(isinstance(value, bool) or not isinstance(value, int | float) for value in box):
        raise row.wrong("bbox", "four numbers x, y, width, height", box)
    return xywh_to_xyxy([box])[0].tolist()


@layout("refcoco", {"refs": "refs(*).p", "instances": "instances.json"})
def refcoco(source: Source) -> list[Item]:
    """RefCOCO, + and g: one item per sentence; boxes and image names come from instances.json. Split `all`: all.

    Items hold text, image, its size and one box (x1, y1, x2, y2 in pixels); meta holds the split.
    """
    record = read_record(source["instances"])
    boxes = {row.integer("id"): row for row in record.records("annotations")}
    images = {row.integer("id"): row for row in record.records("images")}
    items = []
    for row in _read_pickle(source["refs"]):
        split = row.text("split")
        if source.split not in (split, "all"):
            continue
        annotation = boxes.get(row.integer("ann_id"))
        if annotation is None:
            raise row.wrong("ann_id", f"an annotation of {source['instances'].name}", row["ann_id"])
        picture = images.get(annotation.integer("image_id"))
        if picture is None:
            raise annotation.wrong("image_id", "an image of this file", annotation["image_id"])
        # every sentence about a box is a question of its own
        for sentence in row.records("sentences"):
            item = Item(sentence.text("sent_id"), image=picture.text("file_name"), text=sentence.text("sent"))
            item.boxes = [corners(annotation)]
            item.image_size = (picture.integer("width"), picture.integer("height"))
            item.meta["split"] = split
            items.append(item)
    return items


MAX_STEPS = 20_000_000
"""Instructions of an annotation pickle: RefCOCO+ has some six million, more than any checkpoint."""


def _read_pickle(path: Path) -> list[Row]:
    """Records of a pickle of plain containers, read without running anything."""
    from plait.weights.unpickle import PickleError, PickleReader

    left = steps = MAX_STEPS

    def plain(value: Any, depth: int) -> Any:
        """Byte strings of Python 2 as text. Shared values are visited once per use, so visits are counted."""
        nonlocal left
        left -= 1
        if left < 0 or depth < 0:
            raise PickleError(f"more than {steps} values, or more levels than records have")
        if isinstance(value, bytes | memoryview):
            return bytes(value).decode("utf-8", "replace")
        if isinstance(value, dict):
            return {plain(key, depth - 1): plain(one, depth - 1) for key, one in value.items()}
        return [plain(one, depth - 1) for one in value] if isinstance(value, list | tuple) else value

    try:
        read = PickleReader(memoryview(path.read_bytes()), steps=steps).load()
        return rows_of(plain(read, 16), path.name)
    except PickleError as error:
        raise ValueError(f"{path.name}: expected a pickle of plain lists and dictionaries, got {error}") from error


@layout("coco_instances", {"annotations": "instances_{split}.json"}, aliases={"val": "val2017", "train": "train2017"})
def coco_instances(source: Source) -> list[Item]:
    """COCO detection: every image, those without boxes too; category ids are mapped to names.

    meta holds the annotations as they are, with area and iscrowd, which AP looks at.
    """
    record = read_record(source["annotations"])
    names = {row.integer("id"): row.text("name") for row in record.records("categories")}
    items = {}
    for row in record.records("images"):
        item = Item(row.text("id"), image=row.text("file_name"), boxes=[], box_labels=[])
        item.image_size = (row.integer("width"), row.integer("height"))
        item.meta["annotations"] = []
        items[item.id] = item
    for row in record.records("annotations"):
        if (item := items.get(row.text("image_id"))) is None:
            raise row.wrong("image_id", "an image of this file", row["image_id"])
        assert item.boxes is not None and item.box_labels is not None
        item.boxes.append(corners(row))
        item.box_labels.append(names[row.one_of("category_id", names)])
        item.meta["annotations"].append(dict(row))
    return list(items.values())


@layout(
    "ade20k",
    {"mask": "annotations/{split}/*.png"},
    many=("mask",),
    aliases={"val": "validation", "train": "training"},
)
def ade20k(source: Source) -> list[Item]:
    """ADE20K: a grey PNG per image, 0 = unlabelled; `mask_classes` reads it when it is needed."""
    items = []
    # roles that take every match are keyed by the stem of the file
    for mask in (path for path in source.files.values() if "annotations" in path.parts):
        pictures = source.root / "images" / mask.parent.name
        found = sorted(path for path in pictures.glob(f"{mask.stem}.*") if path.is_file())
        if not found:
            raise ValueError(f"{mask.name}: expected a picture {mask.stem}.jpg in {pictures}, got none")
        item = Item(mask.stem, image=found[0].relative_to(source.root).as_posix())
        item.mask = mask.relative_to(source.root).as_posix()
        items.append(item)
    return items


@layout(
    "coco_stuff",
    {"mask": ("stuffthingmaps/{split}/*.png", "annotations/{split}/*_labelTrainIds.png")},
    many=("mask",),
    aliases={"val": "val2017", "train": "train2017"},
)
def coco_stuff(source: Source) -> list[Item]:
    """COCO-Stuff 164k as it is published (`stuffthingmaps`), or `*_labelTrainIds.png`, beside COCO's images.

    meta holds how the numbers of a mask are read, see `mask_classes`.
    """
    items = []
    for mask in (path for path in source.files.values() if path.suffix == ".png"):
        stem = mask.stem.removesuffix("_labelTrainIds")
        folders = [source.root / "images" / mask.parent.name, source.root / mask.parent.name]
        found = [path for folder in folders for path in sorted(folder.glob(f"{stem}.*")) if path.is_file()]
        if not found:
            wanted = " or ".join(map(str, folders))
            raise ValueError(f"{mask.name}: expected a picture {stem}.jpg in {wanted}, got none")
        item = Item(stem, image=found[0].relative_to(source.root).as_posix())
        item.mask = mask.relative_to(source.root).as_posix()
        item.meta["numbering"] = "coco_stuff" if stem == mask.stem else "plain"
        items.append(item)
    return items


NOT_LABELLED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Categories of COCO's 182 things and stuff that no picture has: 171 are left."""


def _numberings() -> dict[str, np.ndarray]:
    """How masks are numbered -> the class of every grey value; 255 is ignored."""
    # 0 means unlabelled; as uint8 it comes round to 255, which every score ignores
    tables = {"ade20k": np.arange(256, dtype=np.uint8) - np.uint8(1), "plain": np.arange(256, dtype=np.uint8)}
    stuff = np.full(256, IGNORED, np.uint8)
    labelled = [number for number in range(1, 183) if number not in NOT_LABELLED]
    stuff[np.array(labelled) - 1] = np.arange(len(labelled))  # maps hold the category less one
    return tables | {"coco_stuff": stuff}


NUMBERINGS = _numberings()


def mask_classes(path: str | Path, numbering: str = "ade20k") -> np.ndarray:
    """Classes of a mask file from 0 on; 255 is ignored.

    Args:
        path: a grey PNG of 8 bits.
        numbering: ade20k, 0 is no class and 1..150 are 0..149; coco_stuff, categories less one, of which 171 occur;
            plain, as they are.

    Returns:
        (height, width) uint8.

    Raises:
        ValueError: for other modes of PNG.
    """
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as picture:
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{Path(path).name}: expected an 8-bit mask with one channel, got mode {picture.mode}")
        return NUMBERINGS[numbering][np.asarray(picture)]


def _refer(name: str, about: str, split: str, size: int, *known: str) -> Task:
    """A task of referring expressions, by a grounding head or in words."""
    methods: Mapping[Capability, Method] = {"ground": "locate", "generate": "locate"}
    layouts, rules = ("refcoco", "one_peace_grounding"), ("fraction", "thousandth", "pixel")
    return Task(
        name, about, layouts, split, ("image",), methods, grounding, "acc@0.5", "locate", rules, size=size,
        published=published(*known),
    )  # fmt: skip


def _masks(name: str, about: str, num_classes: int, size: int, value: str, *layouts: str) -> Task:
    """A task of class masks in ADE20K's layout or others."""
    rule = partial(segmentation, num_classes=num_classes)
    return Task(
        name, about, ("ade20k", *layouts), "val", ("image",), {"segment": "segment"}, rule, "mIoU", size=size,
        published=published(f"readme ONE-PEACE: {value}"),
    )  # fmt: skip


TASKS = (
    _refer(
        "refcoco", "RefCOCO: find what a phrase means (val, testA, testB)", "testA", 5657,
        "readme ONE-PEACE: 92.58/94.18/89.26", "readme mPLUG large: 92.40/94.51/88.42", "web mPLUG-2: 90.3/92.8/86.1",
    ),
    _refer(
        "refcoco_plus", "RefCOCO+: without words of place (val, testA, testB)", "testA", 5726,
        "readme ONE-PEACE: 88.77/92.21/83.23", "readme mPLUG large: 86.02/90.17/78.17",
    ),
    _refer(
        "refcocog", "RefCOCOg: longer phrases (val, test)", "test", 9602, "readme ONE-PEACE: 89.22/89.27",
        "readme mPLUG large: 85.88/86.42", "web mPLUG-2: 84.7/85.1",
    ),
    Task(
        "coco_detection", "COCO objects, box AP", ("coco_instances",), "val", ("image",), {"detect": "detect"},
        detection, "AP", size=5000,
        published=published("readme ONE-PEACE: 60.4 box, 52.9 mask", "web mPLUG-2: 46.9 (test-dev)"),
    ),
    _masks("ade20k", "ADE20K, 150 classes", 150, 2000, "62.0 single scale, 63.0 multi-scale"),
    _masks("coco_stuff", "COCO-Stuff 164k (or grey PNG like ADE20K's), 171 classes", 171, 5000, "52.9", "coco_stuff"),
)  # fmt: skip
