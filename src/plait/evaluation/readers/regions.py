"""Regions of pictures: referring expressions, object boxes, class masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.readers.files import Row, read_record, rows_of
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout

IGNORED = 255
"""Value of pixels that no score looks at."""


def corners(row: Row) -> list[float]:
    """`bbox` x, y, width, height -> x1, y1, x2, y2."""
    box = row.items_of("bbox")
    if len(box) != 4 or any(isinstance(value, bool) or not isinstance(value, int | float) for value in box):
        raise row.wrong("bbox", "four numbers x, y, width, height", box)
    x, y, width, height = box
    return [x, y, x + width, y + height]


@layout("refcoco", {"refs": "refs(*).p", "instances": "instances.json"})
def refcoco(source: Source) -> list[Item]:
    """RefCOCO, + and g: one item per sentence; boxes and picture names come from instances.json. Split `all`: all."""
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
        for sentence in row.records("sentences"):
            item = Item(sentence.text("sent_id"), image=picture.text("file_name"), text=sentence.text("sent"))
            item.boxes = [corners(annotation)]
            item.image_size = (picture.integer("width"), picture.integer("height"))
            item.meta["split"] = split
            items.append(item)
    return items


def _read_pickle(path: Path) -> list[Row]:
    """Records of a pickle of plain containers, read without running anything."""
    from plait.weights.unpickle import PickleError, PickleReader

    try:
        return rows_of(_plain(PickleReader(memoryview(path.read_bytes())).load()), path.name)
    except PickleError as error:
        raise ValueError(f"{path.name}: expected a pickle of plain lists and dictionaries, got {error}") from error


def _plain(value: Any) -> Any:
    """Byte strings of Python 2 as text, in lists and dictionaries."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@layout("coco_instances", {"annotations": "instances_{split}.json"}, aliases={"val": "val2017", "train": "train2017"})
def coco_instances(source: Source) -> list[Item]:
    """COCO detection: every picture, those without boxes too; category ids are mapped to names."""
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
    """ADE20K: a grey PNG per picture, 0 = unlabelled; `mask_classes` reads it when it is needed."""
    items = []
    for mask in (path for path in source.files.values() if "annotations" in path.parts):
        pictures = source.root / "images" / mask.parent.name
        found = sorted(path for path in pictures.glob(f"{mask.stem}.*") if path.is_file())
        if not found:
            raise ValueError(f"{mask.name}: expected a picture {mask.stem}.jpg in {pictures}, got none")
        item = Item(mask.stem, image=found[0].relative_to(source.root).as_posix())
        item.mask = mask.relative_to(source.root).as_posix()
        items.append(item)
    return items


def mask_classes(path: str | Path) -> np.ndarray:
    """Classes (height, width) uint8 of a mask file: 0 -> IGNORED, 1..150 -> 0..149. ValueError for no grey PNG."""
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as picture:
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{Path(path).name}: expected an 8-bit mask with one channel, got mode {picture.mode}")
        stored = np.asarray(picture)
    return (stored - np.uint8(1)).astype(np.uint8)
