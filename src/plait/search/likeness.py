"""What is like a file, and which files are copies of one another. Nothing here deletes anything.

file -> its vector -> nearest rows (`similar`)
rows -> pairs with near vectors -> a closer look: pixels, frames and length, sound -> groups (`duplicates`)

Near vectors mean the same subject, not the same file: ten photographs of one dog have them, and so have two clips that
begin black. A pair is called a copy only where the media themselves agree:
- pictures: a small grey version, its brightness and contrast set alike.
- clips: several frames spread over them, those that show something, and the length.
- sounds: loudness over time in several bands, and the length.
Pictures with near vectors that do not agree, taken within seconds, are a series.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plait.errors import UsageError
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.media.values import medium
from plait.media.video import load_video
from plait.search.finding import Found, find
from plait.search.rows import batches, by_id, vectors_of
from plait.terminal import progress_bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from plait.search.index import Index

WITHIN = 0.1
"""Cosine distance of vectors of pairs that are looked at closely."""

_GRID = 16
"""Cells of the small grey picture, in each direction."""
_AGREE = 0.95
"""Correlation from which on two small pictures, or two sounds, are the same: copies that were scaled, compressed or
made lighter stay above, other pictures of the same subject below (benchmarks/near_duplicates.py)."""
_FLAT = 4.0
"""Standard deviation of grey levels (of 255) below which a frame shows nothing: black, white or fog."""
_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of a clip's length at which its frames are compared."""
_TELLING = 3
"""Frames that have to show something."""
_LENGTH = 0.03
"""Share by which lengths may differ, beside a fifth of a second: other containers round otherwise."""
_RATE, _BANDS, _TIMES = 8000, 16, 32
"""Of sounds: Hz, bands from 60 Hz up, and pieces in time."""
_SERIES = 10.0
"""Seconds between two pictures of a series."""
_NEIGHBOURS = 20
"""Rows nearest to each that are looked at, in an index too large to compare all pairs."""
_ALL_PAIRS = 30_000
_LOADERS = 4

Looks = tuple[np.ndarray, float]
"""What is compared of a file: (pieces, numbers) and its length in seconds, 0 without one."""


@dataclass(frozen=True)
class Group:
    """Rows that belong together.

    Attributes:
        kind: "copy" (the same image, clip or audio again) or "series" (images taken within seconds).
        paths: of the rows, sorted.
        similarity: lowest cosine between neighbours by which the group hangs together.
    """

    kind: Literal["copy", "series"]
    paths: list[str]
    similarity: float


def similar(
    index: Index, file: str | Path, k: int = 10, *, within: float | None = None, modality: str | None = None
) -> Found:
    """What is most like a file, the file itself left out.

    Args:
        index: which is searched; a file that is one of its rows needs no model.
        file: any image, clip or audio that the model takes.
        k: hits at most.
        within: cosine distance at most; None gives the nearest however far.
        modality: only rows of this kind.

    Raises:
        UsageError: for a distance outside 0 to 2. ValueError: for a file that cannot be read.
    """
    path = Path(file).resolve()
    own = by_id(index, [str(path)], ["id", "checksum", "vector"], key="path")
    query: Any = np.array(own[0]["vector"], np.float32) if own and path.exists() else path
    lowest = None if within is None else 1.0 - _distance(within)
    found = find(index, query, k + len(own), modality=modality, min_score=lowest)
    ids = {row["id"] for row in own}
    return Found([hit for hit in found.hits if hit.id not in ids][:k], None, found.nearest)


def duplicates(
    index: Index, within: float = WITHIN, *, modality: str | None = None, show_progress: bool | None = None
) -> list[Group]:
    """Rows whose files are copies of one another, or a series. Nothing is deleted or changed.

    Args:
        index: it is only read, and so are the files of pairs with near vectors; what is gone or damaged is in no
            group.
        within: cosine distance of the vectors of a pair that is looked at closely; more costs time, and finds copies
            that a model sees differently.
        modality: only rows of this kind.
        show_progress: None shows a bar on stderr when the work takes longer than about a second.

    Returns:
        Groups, the largest first; a row is in one group of each kind at most.

    Raises:
        UsageError: for a distance outside 0 to 2, and a modality that has no likeness (texts).

    Example:
        >>> duplicates(index)[0].paths  # ['/photos/rex.jpg', '/photos/export/rex-small.jpg']
    """
    if modality is not None and medium(modality).is_words:
        raise UsageError(f"expected image, video or audio to look for copies of, got {modality}; choose one of them")
    pairs = near_pairs(index, 1.0 - _distance(within), modality)
    rows = {row["id"]: row for row in by_id(index, [name for pair in pairs for name in pair[:2]], ["modality", "path"])}
    taken = {row["id"]: row["meta"].get("taken") for row in index.list({"modality": "image"}) if row["id"] in rows}
    wanted = [(rows[name]["modality"], rows[name]["path"]) for name in rows if rows[name]["path"]]
    with ThreadPoolExecutor(_LOADERS) as pool:
        bar = progress_bar(
            "comparing", pool.map(lambda one: _look(*one), wanted), total=len(wanted), show=show_progress
        )
        looks = dict(zip([path for _, path in wanted], bar, strict=True))
    found: dict[Literal["copy", "series"], list[tuple[str, str, float]]] = {"copy": [], "series": []}
    for one, other, score in pairs:
        first, second = (looks.get(rows[name]["path"] or "") for name in (one, other))
        if first is None or second is None:
            continue
        if _agree(first, second):
            found["copy"].append((one, other, score))
        elif _seconds_apart(taken.get(one), taken.get(other)) <= _SERIES:
            found["series"].append((one, other, score))
    order = {name: str(row["path"]) for name, row in rows.items()}
    groups = [Group(kind, [str(rows[n]["path"]) for n in names], low) for kind, edges in found.items()
              for names, low in _grouped(edges, order)]  # fmt: skip
    return sorted(groups, key=lambda group: (group.kind, -len(group.paths), group.paths))


def near_pairs(index: Index, lowest: float, modality: str | None = None) -> list[tuple[str, str, float]]:
    """Pairs of rows of one kind with a cosine of at least `lowest`: (id, id, cosine), each once.

    All pairs up to 30,000 rows of a kind; beyond, each row with its 20 nearest, by the index's own search.
    """
    kinds = [modality] if modality else ["image", "video", "audio"]
    pairs: list[tuple[str, str, float]] = []
    for kind in kinds:
        pieces = [(b["id"].to_pylist(), vectors_of(b)) for b in batches(index, ["id"], f"modality = '{kind}'")]
        ids = [name for names, _ in pieces for name in names]
        if len(ids) < 2:
            continue
        if len(ids) > _ALL_PAIRS:
            pairs += _by_search(index, pieces, lowest, kind)
            continue
        vectors = np.concatenate([part for _, part in pieces])
        for start in range(0, len(ids), 1024):
            scores = vectors[start : start + 1024] @ vectors[start:].T
            # only what stands behind a row, so that each pair comes once and no row meets itself
            first, second = np.nonzero(np.triu(scores >= lowest, 1))
            pairs += [(ids[start + i], ids[start + j], float(scores[i, j])) for i, j in zip(first, second, strict=True)]
    return pairs


def _by_search(
    index: Index, pieces: Sequence[tuple[list[str], np.ndarray]], lowest: float, kind: str
) -> list[tuple[str, str, float]]:
    """Pairs of each row with its nearest, by search. pieces: ids and vectors (rows, dim) of one kind."""
    pairs = {}
    for names, vectors in pieces:
        for name, vector in zip(names, vectors, strict=True):
            for hit in index.search(vector, _NEIGHBOURS, modality=kind):
                if hit.id != name and hit.score >= lowest:
                    pairs[min(name, hit.id), max(name, hit.id)] = hit.score
    return [(*pair, score) for pair, score in pairs.items()]


def _distance(within: float) -> float:
    """A cosine distance. Raises UsageError for one outside 0 to 2."""
    if not 0 <= within <= 2:
        raise UsageError(f"expected a cosine distance from 0 to 2, got {within}; copies are within 0.1")
    return within


def _look(kind: str, path: str) -> Looks | None:
    """What is compared of a file; None where it cannot be read, or shows nothing that tells it from others."""
    try:
        if kind == "image":
            grey = _grey(load_image(path))
            return None if grey is None else (grey[None], 0.0)
        if kind == "video":
            film = load_video(path, at=lambda seconds: [seconds * share for share in _AT], longest_side=256)
            greys = [_grey(frame) for frame in film.frames]
            return np.stack([np.zeros(_GRID * _GRID) if g is None else g for g in greys]), film.seconds
        return _heard(load_audio(path, sampling_rate=_RATE))
    except (ValueError, OSError):
        # gone or damaged since it was indexed: what cannot be compared is no copy
        return None


def _grey(picture: Image) -> np.ndarray | None:
    """A picture as (cells,) grey levels of mean 0 and length 1; None where it is flat."""
    from PIL.Image import Resampling

    levels = np.asarray(picture.convert("L").resize((_GRID, _GRID), Resampling.BOX), np.float64).ravel()
    return None if levels.std() < _FLAT else _unit(levels)


def _heard(samples: np.ndarray) -> Looks | None:
    """A sound (samples,) as loudness by band and time, of mean 0 and length 1, and its length in seconds."""
    size = 512
    if len(samples) < 2 * size:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: size // 2] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (frames, frequencies)
    edges = np.unique(np.geomspace(4, power.shape[1], _BANDS + 1).astype(int))
    bands = np.stack([power[:, low:high].sum(1) for low, high in itertools.pairwise(edges)], 1)
    pieces = np.array_split(np.log10(bands + 1e-3 * bands.max() + 1e-12), min(_TIMES, len(bands)))
    levels = np.stack([piece.mean(0) for piece in pieces]).ravel()
    return None if levels.std() < 1e-3 else (_unit(levels)[None], len(samples) / _RATE)


def _unit(levels: np.ndarray) -> np.ndarray:
    """Numbers of mean 0 and length 1: what is lighter, darker or quieter as a whole stays the same."""
    centred = levels - levels.mean()
    return centred / np.linalg.norm(centred)


def _agree(one: Looks, other: Looks) -> bool:
    """Whether two files are the same medium again."""
    (first, seconds), (second, others) = one, other
    if first.shape != second.shape or abs(seconds - others) > max(0.2, _LENGTH * max(seconds, others)):
        return False
    shows = np.array([bool(a.any()) for a in first]), np.array([bool(b.any()) for b in second])
    if (shows[0] != shows[1]).any() or shows[0].sum() < min(_TELLING, len(first)):
        return False
    return bool(((first * second).sum(1)[shows[0]] >= _AGREE).all())


def _seconds_apart(one: str | None, other: str | None) -> float:
    """Between two notes of time; infinite where one is none."""
    try:
        return abs((datetime.fromisoformat(one or "") - datetime.fromisoformat(other or "")).total_seconds())
    except (ValueError, TypeError):
        # meta of a manifest may hold anything; zones on one side only do not compare
        return float("inf")


def _grouped(edges: Sequence[tuple[str, str, float]], order: dict[str, str]) -> list[tuple[list[str], float]]:
    """Ids that hang together by pairs, each group sorted by `order`, and the lowest cosine among its pairs."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while (above := leader.setdefault(name, name)) != name:
            leader[name] = leader.setdefault(above, above)  # halves the way for the next who asks
            name = above
        return name

    for one, other, _ in edges:
        leader[lead(one)] = lead(other)
    groups: dict[str, list[str]] = {}
    for name in sorted(leader, key=order.__getitem__):
        groups.setdefault(lead(name), []).append(name)
    lows: dict[str, float] = {}
    for one, _, score in edges:
        lows[lead(one)] = min(lows.get(lead(one), 2.0), score)
    return [(names, lows[top]) for top, names in groups.items()]


def size_of(path: str) -> int | None:
    """Bytes of a file, None where it is gone: what helps a person to choose among copies."""
    return os.path.getsize(path) if os.path.exists(path) else None
