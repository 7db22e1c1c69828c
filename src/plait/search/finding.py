"""A whole search: nearest rows, best moments, words, what is far enough to be nothing, and a second look.

query -> vectors (rows, moments) --\\
                                     > one list (reciprocal ranks) -> second look (`Assistant.match`) -> the first k
words -> full text ----------------/
         below the floor: nothing found
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from plait.embedder.parts import Part, parts_of
from plait.errors import UsageError
from plait.media.values import medium
from plait.search.background import FALSE_ALARMS, Floors, floors
from plait.search.filters import COLUMNS, to_sql
from plait.search.hits import Hit, Hits, hit_of
from plait.search.moments import best_moments
from plait.search.words import find_words

if TYPE_CHECKING:
    from plait.assistant import Assistant
    from plait.search.index import Index

RANKS = 60
"""Constant of reciprocal rank fusion, 1 / (60 + rank): Cormack, Clarke and Buettcher, SIGIR 2009."""
_DEPTH = 100
"""Hits of each list before they are joined."""
_LOOKED_AT = 20
"""Hits that a second look ranks anew: each costs a pass of a large model."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        hits: best first; maybe none.
        floors: from which scores on a hit counts as found; None where all count.
        nearest: the best score of all, found or not; None where no vector was asked with.
    """

    hits: Hits
    floors: Floors | None = None
    nearest: float | None = None


def find(
    index: Index,
    query: Any = None,
    k: int = 10,
    *,
    words: str | None = None,
    where: str | Mapping[str, Any] | None = None,
    modality: str | None = None,
    weights: Mapping[str, float] | None = None,
    min_score: float | Literal["auto"] | None = None,
    false_alarms: float = FALSE_ALARMS,
    moments: bool = True,
    second: Assistant | None = None,
) -> Found:
    """Search by meaning, by words or by both, and say when nothing is found.

    Args:
        index: which is searched.
        query: an item as `Embedder.embed` takes it; None searches for words alone and opens no model.
        k: hits at most.
        words: all of them have to be in the caption, label, path or notes (date, place, camera) of a row. What
            both lists hold comes first, by reciprocal rank fusion.
        where, modality, weights: as in `Index.search`.
        min_score: the lowest score of a hit by vector; "auto" reads it from what absent things score. A hit that
            has the words stays whatever its score.
        false_alarms: share of searches for absent things that may find something, for "auto".
        moments: whether moments of videos are searched too, where the index has some.
        second: looks at the best 20 again and ranks them by whether they fit the text of the query; a model that can
            match, or rank answers.

    Returns:
        `Found`. Scores are cosines; those of a search for words alone, b / (1 + b) of their BM25 b.

    Raises:
        UsageError: for neither query nor words, a wrong filter, modality or score, and a second look without text.
        ValueError: as `Index.search`.

    Example:
        >>> find(index, "a dog", words="rex 2024", min_score="auto").hits
        []
    """
    if query is None and not (words or "").strip():
        raise UsageError("expected a query or words, got neither; give one of them")
    if not (min_score is None or min_score == "auto" or isinstance(min_score, int | float)):
        raise UsageError(f'expected a lowest score as a number or "auto", got {min_score!r}')
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"expected k of at least 1, got {k!r}")
    condition, depth = to_sql(where, modality), max(k, _DEPTH)
    if query is None:
        return Found(_by_words(index, words or "", depth, condition, None)[:k])
    parts = [] if isinstance(query, np.ndarray) else parts_of(query, weights)
    text = " ".join(part.value for part in parts if medium(part.modality).is_words and part.weight > 0)
    if second is not None and not text:
        raise UsageError("expected a text in the query for a second look, got none; add one, or leave the model out")
    vector = query if isinstance(query, np.ndarray) else index.embedder.embed([query], weights=weights)[0]
    hits = index.search(vector, depth, where=where, modality=modality)
    if moments and modality in (None, "video"):
        hits = _with_moments(index, hits, vector, depth, condition)
    nearest, floor = (hits[0].score if hits else None), None
    if min_score == "auto":
        floor = floors(index, _asked(query, parts), false_alarms)
        hits = [hit for hit in hits if hit.score >= floor.by_kind.get(hit.modality, 1.0)]
    elif min_score is not None:
        hits = [hit for hit in hits if hit.score >= min_score]
    if words and words.strip():
        hits = _joined([hits, _by_words(index, words, depth, condition, vector)])
    if second is not None:
        hits = _looked_at(second, hits[: max(k, _LOOKED_AT)], text)
    return Found(hits[:k], floor, nearest)


def _asked(query: Any, parts: Sequence[Part]) -> Sequence[Part]:
    """Parts of a query. Raises UsageError for a bare vector, of which nobody knows what it was made of."""
    if isinstance(query, np.ndarray):
        raise UsageError("expected a query of words or media for an automatic score, got a vector; pass a number")
    return parts


def _with_moments(index: Index, hits: Hits, vector: np.ndarray, depth: int, condition: str | None) -> Hits:
    """Hits, those of videos with their best moment and the better of the two scores."""
    unit = np.asarray(vector, np.float32) / np.linalg.norm(vector)
    best = {row["id"]: row for row in best_moments(index, unit, depth, condition, [*COLUMNS, "meta"])}
    known = {hit.id: hit for hit in hits}
    for name, row in best.items():
        before = known.get(name) or hit_of(row, -1.0)
        known[name] = replace(before, score=max(before.score, row["score"]), moment=row["moment"])
    return sorted(known.values(), key=lambda hit: -hit.score)


def _by_words(index: Index, words: str, depth: int, condition: str | None, vector: np.ndarray | None) -> Hits:
    """Rows that hold the words, scored by their vectors where there is one to compare with."""
    columns = [*COLUMNS, "meta", "vector"]
    rows = find_words(index, words, depth, condition, columns)
    if vector is None:
        return [hit_of(row, row["_score"] / (1 + row["_score"])) for row in rows]
    unit = np.asarray(vector, np.float32) / np.linalg.norm(vector)
    return [hit_of(row, float(np.asarray(row["vector"], np.float32) @ unit)) for row in rows]


def _joined(lists: Sequence[Hits]) -> Hits:
    """Several lists as one, by the sum of reciprocal ranks; equals by their cosine."""
    shares: dict[str, float] = {}
    known: dict[str, Hit] = {}
    for hits in lists:
        for rank, hit in enumerate(hits, 1):
            shares[hit.id] = shares.get(hit.id, 0.0) + 1 / (RANKS + rank)
            known.setdefault(hit.id, hit)  # the first list knows moments
    return sorted(known.values(), key=lambda hit: (-shares[hit.id], -hit.score))


def _looked_at(second: Assistant, hits: Hits, text: str) -> Hits:
    """Hits ranked by whether the model says that they fit the text; what it cannot see stays behind, in order."""
    seen = [hit for hit in hits if hit.path is not None and hit.modality in second.skills.kinds and not hit.is_gone]
    shares = second.match([Path(hit.path) for hit in seen if hit.path], text, on_bad="skip") if seen else []
    ranked = {hit.id: replace(hit, match=share) for hit, share in zip(seen, shares, strict=True) if share is not None}
    rest = [hit for hit in hits if hit.id not in ranked]
    return sorted(ranked.values(), key=lambda hit: -(hit.match or 0.0)) + rest
