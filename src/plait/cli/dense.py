"""The verb `plait detect`: objects of pictures as lines, JSON, COCO results and drawings."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.assist import How, JsonOption, MediaArgument, ask_all
from plait.cli.options import (
    AdapterOption,
    BadOption,
    BatchOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelArgument,
    raise_limits,
)
from plait.errors import UsageError

if TYPE_CHECKING:
    from plait.assistant import Assistant, Detected, Request


def detect(
    model: ModelArgument,
    media: MediaArgument,
    *,
    threshold: Annotated[float, typer.Option(help="score from which on an object is told", min=0, max=1)] = 0.5,
    draw: Annotated[Path | None, typer.Option(help="new directory for pictures with boxes and masks on them")] = None,
    coco: Annotated[
        Path | None, typer.Option(help="COCO results file to write; categories count labels from 1")
    ] = None,
    batch_size: BatchOption = 4,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    on_bad: BadOption = "fail",
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> None:
    """Find the objects of images: label, score and x0 y0 x1 y1 in pixels; masks go into drawings and COCO results."""
    raise_limits(limits)
    from plait.places import atomic_directory, atomic_write

    rows: list[dict[str, Any]] = []
    if coco is not None and coco.is_dir():
        raise UsageError(f"expected a file for --coco, got the directory {coco}; name a file in it")
    with nullcontext() if draw is None else atomic_directory(draw) as pictures:

        def keep(assistant: Assistant, request: Request, found: list[Detected]) -> None:
            if coco is not None:
                rows.extend(_results(assistant.skills.labels, request, found))
            if pictures is not None:
                _draw(pictures, assistant.skills.labels, request, found)

        how = How(batch_size, device, dtype, adapter, on_bad, as_json, {"threshold": threshold})
        ask_all("detect", model, media, "", how, keep)
        if coco is not None:
            atomic_write(coco, json.dumps(rows) + "\n")


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
    """One picture of the drawings, named like what it shows; a second one of that name gets a number."""
    from plait.media.image import load_image
    from plait.processing.regions import drawn

    stem, number = Path(request.name).stem, 1
    place = directory / f"{stem}.png"
    while place.exists():
        number += 1
        place = directory / f"{stem}-{number}.png"
    picture = load_image(request.value)
    drawn(picture, _table(labels, found), dict(enumerate(labels))).save(place)
