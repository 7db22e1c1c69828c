"""Moments of videos: pieces of some seconds, each with a vector of its own, so that a hit tells when it happens.

videos of an index -> frames of each piece -> image vectors, their mean -> INDEX/moments.lance -> best moment of a clip

A moment belongs to a content (checksum), not to a path: what is moved or renamed keeps its moments, and those of a clip
that changed or went are swept out when moments are next made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import UsageError
from plait.media.values import medium
from plait.reading import address_of
from plait.search.filters import quote
from plait.search.index import Problems, one_line, open_beside, writing
from plait.search.rows import by_id
from plait.search.sources import Problem
from plait.terminal import progress_bar

if TYPE_CHECKING:
    from plait.search.index import Index

_TABLE = "moments"
_FRAMES = 2
"""Pictures of a moment, in the middle of its halves."""
_SIDE = 512
"""Pixels of their longer side: towers see 224 to 448, and a long clip has hundreds of moments in memory."""
_SHORTEST = 0.5
"""Seconds of a moment at least."""


@dataclass(slots=True)
class Made:
    """What `add_moments` did.

    Attributes:
        clips, moments: newly made. unchanged: clips that had theirs.
        skipped: clips that cannot be read, and why.
    """

    clips: int
    moments: int
    unchanged: int
    skipped: Problems


def seconds_of(text: str) -> float:
    """`"5s"`, `"5"`, `"1.5 s"` or `"2m"` -> seconds.

    Raises:
        UsageError: for anything else, and for less than half a second.
    """
    found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(s|sec|m|min)?\s*", text)
    seconds = float(found[1]) * (60 if (found[2] or "s").startswith("m") else 1) if found else 0.0
    if seconds < _SHORTEST:
        raise UsageError(f"expected a length of at least {_SHORTEST:g}s such as 5s, got {text!r}; correct it")
    return seconds


def add_moments(index: Index, every: float, *, show_progress: bool | None = None) -> Made:
    """Index the moments of every video of an index; clips that have them already are passed over.

    Args:
        index: gains moments, a clip a commit, so that a kill loses at most one; rows stay as they are.
        every: seconds of a moment; the last one of a clip is up to half longer or shorter.
        show_progress: None shows a bar on stderr when the work takes longer than about a second.

    Raises:
        UsageError: for a model that embeds no images, and moments too short.
        ValueError: while another process is writing.

    Example:
        >>> add_moments(index, 5.0).moments  # 120
    """
    if every < _SHORTEST:
        raise UsageError(f"expected moments of at least {_SHORTEST:g} s, got {every:g}; give more")
    frames_of = medium("video").frames_of or ""
    if frames_of not in index.embedder.accepts:
        raise UsageError(f"expected a model that embeds pictures for moments, got {index.description['model']}")
    clips = {row["checksum"]: row["path"] for row in index.list({"modality": "video"}) if row["path"]}
    made = Made(0, 0, 0, [])
    with writing(index.path):
        table = open_beside(index.path, _TABLE, _schema(index.description["dim"]))
        with one_line():
            held = table.search().select(["checksum", "every"]).to_arrow().to_pylist()
        done = {row["checksum"] for row in held if row["every"] == every}
        if stale := {row["checksum"] for row in held} - (done & set(clips)):
            with one_line():
                table.delete(f"checksum IN ({', '.join(map(quote, sorted(stale)))})")
        made.unchanged = len(done & set(clips))
        waiting = [content for content in clips if content not in done]
        for content in progress_bar("moments", waiting, unit="clip", show=show_progress):
            if address_of(clips[content]):
                made.skipped.append(Problem(clips[content], "at an address; moments are made of files of this machine"))
                continue
            try:
                pieces, vectors = _embedded(index, clips[content], every, frames_of)
            except (ValueError, OSError) as error:
                made.skipped.append(Problem.of(clips[content], error))
                continue
            with one_line():
                table.add(_rows(content, every, pieces, vectors))
            made.clips += 1
            made.moments += len(pieces)
    return made


def _embedded(index: Index, path: str, every: float, kind: str) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Pieces (seconds from, to) of one clip, and their unit vectors (pieces, dim)."""
    from plait.media.video import load_video

    pieces: list[tuple[float, float]] = []

    def times(seconds: float) -> list[float]:
        count = max(1, int(seconds / every + 0.5))
        pieces[:] = [(n * every, (n + 1) * every if n + 1 < count else seconds) for n in range(count)]
        return [begin + (end - begin) * (n + 0.5) / _FRAMES for begin, end in pieces for n in range(_FRAMES)]

    film = load_video(Path(path), at=times, longest_side=_SIDE)
    vectors = index.embedder.embed([{kind: frame} for frame in film.frames], show_progress=False)
    means = vectors.reshape(len(pieces), _FRAMES, -1).mean(1)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("the frames of a moment have opposite vectors, which leave no direction")
    return pieces, (means / lengths).astype(np.float32)


def best_moments(
    index: Index, vector: np.ndarray, k: int, condition: str | None, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """The clips with the best moments, one row a clip.

    Args:
        index: without moments, nothing is found.
        vector: (dim,) of unit length.
        k: clips.
        condition: SQL that the rows of clips have to meet, see `plait.search.filters.to_sql`; None for none.
        columns: wanted of the rows.

    Returns:
        Rows with `score` (cosine of the best moment) and `moment` (seconds from, to), best first.
    """
    if not (index.path / f"{_TABLE}.lance").is_dir():
        return []
    table = open_beside(index.path, _TABLE, _schema(index.description["dim"]))
    request = table.search(vector).distance_type("dot")
    if condition:
        # the conditions speak of rows: first which clips they allow
        with one_line(condition):
            allowed = index.table.search().where(f"({condition}) AND modality = 'video'").select(["checksum"])
            contents = set(allowed.to_arrow()["checksum"].to_pylist())
        if not contents:
            return []
        request = request.where(f"checksum IN ({', '.join(map(quote, sorted(contents)))})")
    count = max(1, table.count_rows())
    best: dict[str, tuple[float, tuple[float, float]]] = {}
    wanted = 8 * k
    while True:  # many moments of one clip may stand in front of the next clip
        with one_line():
            found = request.limit(wanted).select(["checksum", "begin", "end", "_distance"]).to_arrow().to_pylist()
        for row in found:
            best.setdefault(row["checksum"], (1.0 - row["_distance"], (row["begin"], row["end"])))
        if len(best) >= k or wanted >= count:
            break
        wanted *= 4
    rows = by_id(index, list(best)[:k], ["modality", *columns], key="checksum")
    rows = [row for row in rows if row["modality"] == "video"]
    return [row | {"score": best[row["checksum"]][0], "moment": best[row["checksum"]][1]} for row in rows]


def count_moments(index: Index) -> int:
    """How many moments there are."""
    if not (index.path / f"{_TABLE}.lance").is_dir():
        return 0
    return open_beside(index.path, _TABLE, _schema(index.description["dim"])).count_rows()


def _schema(dim: int) -> Any:
    """Of the table of moments; dim: width of a vector."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("checksum", pa.string(), nullable=False),
            pa.field("every", pa.float64(), nullable=False),
            pa.field("begin", pa.float64(), nullable=False),
            pa.field("end", pa.float64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def _rows(content: str, every: float, pieces: Sequence[tuple[float, float]], vectors: np.ndarray) -> Any:
    """Moments of one clip as an Arrow table; vectors: (pieces, dim)."""
    import pyarrow as pa

    columns = {
        "checksum": [content] * len(pieces), "every": [every] * len(pieces),
        "begin": [begin for begin, _ in pieces], "end": [end for _, end in pieces],
        "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1]),
    }  # fmt: skip
    return pa.table(columns, schema=_schema(vectors.shape[1]))
