"""The verbs `plait detect` and `plait segment`: objects and classes of pictures as lines, JSON, files and drawings."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.assist import How, MediaArgument, ask_all, asks
from plait.cli.options import ModelArgument
from plait.errors import UsageError

if TYPE_CHECKING:
    from plait.assistant import Assistant, Detected, Request


@asks(batch_size=4)
def detect(
    model: ModelArgument,
    media: MediaArgument,
    *,
    threshold: Annotated[
        float, typer.Option(help="score from which on an object is told, from 0 to 1", min=0, max=1)
    ] = 0.5,
    draw: Annotated[
        Path | None, typer.Option(help="new directory for pictures with boxes and masks on them; none without it")
    ] = None,
    coco: Annotated[
        Path | None, typer.Option(help="new COCO results file; categories count labels from 1; none without it")
    ] = None,
    how: How,
) -> None:
    """Find the objects of images: label, score and x0 y0 x1 y1 in pixels; masks go into drawings and COCO results."""
    from plait.places import atomic_directory, atomic_write

    rows: list[dict[str, Any]] = []
    if coco is not None and os.path.lexists(coco):  # before a model is loaded for it
        raise UsageError(f"expected no file at --coco {coco}, got one; choose another name, nothing was changed")
    with nullcontext() if draw is None else atomic_directory(draw) as pictures:

        def keep(assistant: Assistant, request: Request, found: list[Detected]) -> None:
            if coco is not None:
                rows.extend(_results(assistant.skills.labels, request, found))
            if pictures is not None:
                _draw(pictures, assistant.skills.labels, request, found)

        ask_all("detect", model, media, "", how._replace(options={"threshold": threshold}), keep)
        if coco is not None:
            atomic_write(coco, json.dumps(rows) + "\n")


@asks(batch_size=1)
def segment(
    model: ModelArgument,
    media: MediaArgument,
    *,
    masks: Annotated[
        Path | None, typer.Option(help="new directory for grey PNG, a class number per pixel; none without it")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option(help="new directory for pictures with classes on them; none without it")
    ] = None,
    multi_scale: Annotated[bool, typer.Option(help="look at the published scales, mirrored too: many looks")] = False,
    how: How,
) -> None:
    """Name the class of every pixel of images: the share of each class, and class maps and drawings as files."""
    from plait.places import atomic_directory

    with nullcontext() if masks is None else atomic_directory(masks) as maps:  # noqa: SIM117 (two directories)
        with nullcontext() if draw is None else atomic_directory(draw) as pictures:

            def keep(assistant: Assistant, request: Request, found: Any) -> list[tuple[str, float]]:
                import numpy as np
                from PIL import Image

                labels = assistant.skills.labels
                if maps is not None:
                    # 8 bits are what data sets of up to 255 classes come with, and what `plait eval` reads.
                    grey = found.astype(np.uint8) if len(labels) <= 256 else found
                    Image.fromarray(grey).save(_place(maps, request))
                numbers, counts = np.unique(found, return_counts=True)
                order = np.argsort(-counts)
                if pictures is not None:
                    _draw_classes(pictures, request, found, labels)
                return [(labels[numbers[i]], counts[i] / found.size) for i in order]

            ask_all("segment", model, media, "", how._replace(options={"multi_scale": multi_scale}), keep)


def _draw_classes(directory: Path, request: Request, found: Any, labels: tuple[str, ...]) -> None:
    """A picture under veils of its classes, each named where its box begins."""
    import numpy as np

    from plait.media.image import load_image
    from plait.processing.regions import drawn

    numbers = np.unique(found)
    masks = [found == number for number in numbers]
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1], rows[-1]))
    table = {"scores": [mask.mean() for mask in masks], "labels": numbers, "boxes": boxes, "masks": masks}
    drawn(load_image(request.value), table, dict(enumerate(labels))).save(_place(directory, request))


def _place(directory: Path, request: Request) -> Path:
    """Where a picture made of another one goes, named like it; a second one of that name gets a number."""
    stem, number = Path(request.name).stem, 1
    place = directory / f"{stem}.png"
    while place.exists():
        number += 1
        place = directory / f"{stem}-{number}.png"
    return place


def _table(labels: tuple[str, ...], found: list[Detected]) -> dict[str, Any]:
    """Objects as the columns that `plait.processing.regions` reads."""
    columns = {
        "scores": [one.score for one in found],
        "labels": [labels.index(one.label) for one in found],
        "boxes": [one.box for one in found],
    }
    has_masks = any(one.mask is not None for one in found)
    return columns | ({"masks": [one.mask for one in found]} if has_masks else {})


def _results(labels: tuple[str, ...], request: Request, found: list[Detected]) -> list[dict[str, Any]]:
    """Rows of a COCO results file; a picture whose name is a number has that as its id, as COCO's own have."""
    from plait.processing.regions import coco_results

    stem = Path(request.name).stem
    categories = {number: number + 1 for number in range(len(labels))}
    return coco_results(_table(labels, found), int(stem) if stem.isdecimal() else request.name, categories)


def _draw(directory: Path, labels: tuple[str, ...], request: Request, found: list[Detected]) -> None:
    """One picture with its objects."""
    from plait.media.image import load_image
    from plait.processing.regions import drawn

    picture = load_image(request.value)
    drawn(picture, _table(labels, found), dict(enumerate(labels))).save(_place(directory, request))
