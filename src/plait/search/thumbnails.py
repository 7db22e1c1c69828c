"""Small pictures of rows, made once: INDEX/thumbnails/<checksum>.webp.

hit -> is there one for its content? -> else decode, shrink, write beside the index -> path

They belong to a content, so what is moved keeps its own and what changes gets another. An index that may only be read
has none written; its pictures are made each time.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from plait.embedder.parts import Part, load
from plait.media.image import load_image
from plait.media.values import medium
from plait.media.video import load_video
from plait.places import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

    from plait.search.hits import Hit
    from plait.search.index import Index

SIDE = 320
"""Pixels of the longer side."""

_FOLDER, _CHECKSUM = "thumbnails", "[0-9a-f]{16,64}"


def thumbnail(index: Index, hit: Hit) -> Path | Image | None:
    """A small image of a hit.

    Args:
        index: beside whose rows it is kept.
        hit: of an image or a video; of a video with a moment the frame in its middle.

    Returns:
        The path of the WebP file, the image itself where the index cannot be written, or None for what has no
        image, is gone or damaged.
    """
    kind = medium(hit.modality)
    if hit.path is None or not (kind.is_drawn or kind.frames_of):
        return None
    # a checksum is of a file that somebody may have made: a name, and nothing that leads elsewhere
    if not re.fullmatch(_CHECKSUM, hit.checksum):
        return _drawn(hit)
    at = "" if hit.moment is None else f"-{round(1000 * sum(hit.moment) / 2)}"
    place = index.path / _FOLDER / f"{hit.checksum}{at}.webp"
    if place.is_file():
        return place
    picture = _drawn(hit)
    if picture is None:
        return None
    with suppress(OSError):
        atomic_write(place, lambda aside: picture.save(aside, "WEBP", quality=80))
        return place
    return picture


def _drawn(hit: Hit) -> Image | None:
    """The picture, or the frame of a film, made small; None where it cannot be read."""
    if hit.path is None:
        return None
    path = Path(hit.path)
    try:
        if medium(hit.modality).frames_of:
            middle = None if hit.moment is None else [sum(hit.moment) / 2]
            picture = load_video(path, 1, at=middle, longest_side=SIDE).frames[0]
        elif hit.modality == "image":
            picture = load_image(path)
        else:
            picture = load(Part(hit.modality, path), None)
    except (ValueError, OSError):  # gone or damaged since it was indexed
        return None
    picture.thumbnail((SIDE, SIDE))
    return picture


def sweep(index: Index) -> int:
    """Delete thumbnails of contents that no row of the index has any more; how many went."""
    folder, gone = index.path / _FOLDER, 0
    if not folder.is_dir():
        return 0
    held = {row["checksum"] for row in index.list()}
    for file in folder.glob("*.webp"):
        # what somebody else put here stays
        ours = re.fullmatch(rf"({_CHECKSUM})(-\d+)?", file.stem)
        if ours is not None and ours[1] not in held:
            file.unlink(missing_ok=True)
            gone += 1
    return gone
