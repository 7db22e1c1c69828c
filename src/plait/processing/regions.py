"""Objects in pictures: COCO annotations -> boxes, classes, masks -> the square that a detector takes, and back.

annotations -> Objects -> fit (scaled, cut or padded to a square with its picture) -> labels of transformers' detectors
boxes and masks found -> COCO results | drawn on the picture

Padding is at the right and the lower edge, of zeros behind the normalisation (specification ONE-PEACE, 8.4).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from plait.errors import import_extra
from plait.processing.images import CLIP_MEAN, CLIP_STD, resize, to_tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Objects:
    """What one image holds. boxes: (n, 4) corners in pixels; classes: (n,); masks: (n, height, width) bool."""

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None


def read_objects(
    annotations: Sequence[Mapping[str, Any]], numbers: Mapping[Any, int], size: tuple[int, int], name: str
) -> Objects:
    """COCO annotations of one image; crowds are left out, as no detector learns from them.

    Args:
        annotations: `bbox` x, y, width, height; `category_id`; `segmentation` polygons, run lengths or an array (all
            of an image have one, or masks are left out); `iscrowd`.
        numbers: category -> class of the model.
        size: width and height of the image.
        name: of the image, for messages.

    Raises:
        ValueError: for an image without pixels, a box outside of it, an unknown category, a mask of another size, and
            an image of crowds alone.
    """
    width, height = size
    if not (width and height):
        raise ValueError(f"{name}: expected a picture with pixels, got {width} x {height}; leave it out")
    single = [one for one in annotations if not one.get("iscrowd")]
    if annotations and not single:
        raise ValueError(f"{name}: expected an object that is no crowd, got crowds alone; leave the picture out")
    boxes, classes, masks = [], [], []
    for one in single:
        category = one.get("category_id")
        if category not in numbers:
            known = ", ".join(map(str, list(numbers)[:8]))
            raise ValueError(f"{name}: expected a category among {known}, got {category!r}; correct its category_id")
        x, y, w, h = (float(value) for value in one["bbox"])
        # A pixel of tolerance: annotation tools round.
        if not (w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
            raise ValueError(
                f"{name}: expected a box inside of {width} x {height} pixels, got x, y, width, height "
                f"{', '.join(f'{value:g}' for value in (x, y, w, h))}; correct its bbox"
            )
        boxes.append([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)])
        classes.append(numbers[category])
        if one.get("segmentation") is not None and len(one["segmentation"]):
            masks.append(read_mask(one["segmentation"], size, name))
    whole = np.stack(masks) if masks and len(masks) == len(boxes) else None
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64), whole)


def read_mask(segmentation: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """One mask (height, width) bool, of polygons, run lengths (compressed: extra eval) or an array of numpy.

    Args:
        segmentation: as in COCO files, or (height, width) numbers of which other than 0 are inside.
        size: width and height of the image.
        name: of the image, for messages.

    Raises:
        ValueError: for a mask of another size.
    """
    shape = (size[1], size[0])
    if isinstance(segmentation, Mapping):
        counts, stored = segmentation["counts"], tuple(segmentation["size"])
        if stored == shape and isinstance(counts, str | bytes):
            with warnings.catch_warnings():
                # It fills an array in a way that newer numpy is about to give up.
                warnings.simplefilter("ignore", DeprecationWarning)
                return import_extra("pycocotools.mask").decode(dict(segmentation)).astype(bool)
        found = np.zeros(0, bool)
        if stored == shape and sum(counts) == shape[0] * shape[1]:
            # Runs of outside and inside in turn, column by column.
            found = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size).T
        shown = stored
    elif isinstance(segmentation, list) and isinstance(segmentation[0], list | tuple) and len(segmentation[0]) % 2 == 0:
        return np.any(
            [_filled(np.array(polygon, np.float64).reshape(-1, 2), shape) for polygon in segmentation], axis=0
        )
    else:
        found = np.asarray(segmentation) != 0
        shown = found.shape
    if found.shape != shape:
        raise ValueError(
            f"{name}: expected a mask of {shape} pixels, got one of {shown}; make it as large as the picture"
        )
    return found


def _filled(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels (height, width) bool whose centres lie in a polygon, as COCO fills it. corners: (n, 2) x and y.

    Pillow fills the pixels under the outline too: a row and a column more than COCO counts.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
        if first < last:
            rows = np.arange(first, last)
            across = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            # What lies right of an edge changes sides there.
            crossings[rows, np.clip(np.ceil(across - 0.5), 0, width).astype(np.int64)] += 1
    return np.cumsum(crossings[:, :width], axis=1) % 2 == 1


@dataclass
class Fitted:
    """An image as a square. pixels: (3, side, side); mask: (side, side) bool, True = image; size: width, height."""

    pixels: Tensor
    mask: Tensor
    size: tuple[int, int]
    objects: Objects | None = None


def fit(
    image: Image,
    side: int,
    objects: Objects | None = None,
    *,
    scale: float = 1.0,
    place: tuple[float, float] = (0.5, 0.5),
    flip: bool = False,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Fitted:
    """An image whose longer side is `side` pixels, padded to a square, and its objects with it.

    Args:
        image: RGB.
        side: of the square.
        objects: in pixels of the image.
        scale: of the longer side; above 1 the image is cut to the square (large-scale jitter).
        place: where it is cut, 0 to 1 of what goes over, across and down.
        flip: left to right.
        mean, std: per channel.

    Returns:
        A `Fitted`; objects of which less than a tenth is left are gone.

    Raises:
        ValueError: for an image without pixels.
    """
    if not (image.width and image.height):
        raise ValueError(f"expected a picture with pixels, got {image.width} x {image.height}; leave it out")
    from PIL.Image import Resampling, Transpose, fromarray

    ratio = scale * side / max(image.size)
    width, height = (max(1, round(length * ratio)) for length in image.size)
    left, top = (round(share * max(0, length - side)) for share, length in zip(place, (width, height), strict=True))
    area = (left, top, min(left + side, left + width), min(top + side, top + height))
    cut = resize(image, width, height).crop(area)
    cut = cut.transpose(Transpose.FLIP_LEFT_RIGHT) if flip else cut
    values = (to_tensor(cut) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    pixels, mask = torch.zeros(3, side, side), torch.zeros(side, side, dtype=torch.bool)
    pixels[:, : cut.height, : cut.width], mask[: cut.height, : cut.width] = values, True
    fitted = Fitted(pixels, mask, cut.size)
    if objects is None:
        return fitted
    factors = np.array([width / image.width, height / image.height] * 2, np.float32)
    whole = objects.boxes * factors - np.array([left, top] * 2, np.float32)
    boxes = np.clip(whole, 0, np.array(cut.size * 2, np.float32))
    areas, before = (np.prod(one[:, 2:] - one[:, :2], axis=1) for one in (boxes, whole))
    kept = areas > 0.1 * before
    boxes = boxes[kept]
    if flip:
        boxes[:, [0, 2]] = cut.width - boxes[:, [2, 0]]
    masks = None
    if objects.masks is not None:
        masks = np.zeros((int(kept.sum()), side, side), bool)
        for out, one in zip(masks, objects.masks[kept]):
            small = fromarray(one).resize((width, height), Resampling.NEAREST).crop(area)
            out[: cut.height, : cut.width] = np.asarray(small)[:, :: -1 if flip else 1]
    fitted.objects = Objects(boxes, objects.classes[kept], masks)
    return fitted


def detection_labels(fitted: Fitted) -> dict[str, Tensor]:
    """What detectors of transformers learn from.

    Returns:
        class_labels (n,); boxes (n, 4) centre and sides as shares of the image without its padding; masks
        (n, side, side) bool where there are any.
    """
    assert fitted.objects is not None
    boxes = torch.from_numpy(fitted.objects.boxes)
    centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
    labels = {
        "class_labels": torch.from_numpy(fitted.objects.classes),
        "boxes": centred / torch.tensor(fitted.size * 2),
    }
    masks = fitted.objects.masks
    return labels if masks is None else {**labels, "masks": torch.from_numpy(masks)}


def coco_results(found: Mapping[str, Any], image_id: Any, categories: Mapping[int, Any]) -> list[dict[str, Any]]:
    """One image's boxes (and masks) as rows of a COCO results file; masks need the extra eval.

    Args:
        found: scores, labels and boxes of `post_process_object_detection`, and masks where they were asked for.
        image_id: of the image.
        categories: class -> category_id.

    Returns:
        image_id, category_id, score and bbox x, y, width, height per box, and segmentation (run lengths) per mask.
    """
    rows = []
    for i, (score, label, box) in enumerate(zip(found["scores"], found["labels"], found["boxes"], strict=True)):
        x0, y0, x1, y1 = (round(float(value), 2) for value in box)
        row = {"image_id": image_id, "category_id": categories[int(label)], "score": float(score)}
        row["bbox"] = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
        if "masks" in found:
            tools = import_extra("pycocotools.mask")
            runs = tools.encode(np.asfortranarray(np.asarray(found["masks"][i], np.uint8)))
            row["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
        rows.append(row)
    return rows


def drawn(image: Image, found: Mapping[str, Any], names: Mapping[int, str]) -> Image:
    """The image with boxes, their names and scores, and masks as a veil in the colour of their class.

    Args:
        image: as it was looked at.
        found: as in `coco_results`, in its pixels.
        names: class -> name.
    """
    from colorsys import hsv_to_rgb

    from PIL import Image as PILImage
    from PIL import ImageDraw

    out = image.convert("RGB")
    pen = ImageDraw.Draw(out)
    # Worst first, so that the best lie on top.
    for i in reversed(range(len(found["scores"]))):
        label = int(found["labels"][i])
        # Steps of the golden ratio around the wheel: neighbours in number differ in colour.
        colour = tuple(round(255 * part) for part in hsv_to_rgb(0.618034 * label % 1, 0.85, 0.95))
        if "masks" in found:
            veil = PILImage.fromarray(np.asarray(found["masks"][i], np.uint8) * 110)
            out.paste(colour, mask=veil)
        box = [float(value) for value in found["boxes"][i]]
        pen.rectangle(box, outline=colour, width=max(1, round(max(out.size) / 400)))
        text, corner = f"{names[label]} {float(found['scores'][i]):.2f}", (box[0] + 2, max(0.0, box[1] - 12))
        pen.rectangle(pen.textbbox(corner, text), fill=colour)
        pen.text(corner, text, fill="white")
    return out
