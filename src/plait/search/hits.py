"""`Hit`: one result of a search. In a notebook several show themselves as cards: a picture, the score, the name."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.reading import is_gone
from plait.search.filters import COLUMNS

_SIDE = 160
"""Pixels of a picture in a notebook, all inside the cell."""
_STYLE = "display:inline-block;width:170px;margin:4px;vertical-align:top;font-size:12px;overflow-wrap:anywhere"


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search.

    Attributes:
        path: of the file; None for an indexed text.
        score: cosine similarity of query and item, from -1 to 1.
        modality: text, image, video or audio.
        caption, label: as the manifest or `Index.update` gave them.
        id: of the row: the resolved path of a file, or the id of its sample.
        checksum: first 32 hexadecimal digits of the SHA-256 of the content.
        meta: the other fields of the manifest row; of a photograph that was found in a folder, its notes: taken,
            latitude, longitude, camera, place, words.
        moment: of a video whose moments are indexed, seconds from and to of the one that fits best.
        match: probability that it fits, by the model that ranked the hits anew; None where none did.
    """

    path: str | None
    score: float
    modality: str
    caption: str | None
    id: str
    label: str | None = None
    checksum: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    moment: tuple[float, float] | None = None
    match: float | None = None

    def _repr_html_(self) -> str:
        """A thumbnail or player with its score, for notebooks."""
        return HitList([self])._repr_html_()

    @property
    def is_gone(self) -> bool:
        """Whether its file is no longer where it was when it was added: moved, renamed, deleted or not mounted."""
        return self.path is not None and is_gone(self.path)


class HitList(list[Hit]):
    """Results of a search, best first; a notebook shows them as cards."""

    def _repr_html_(self) -> str:
        """Thumbnails, players and scores."""
        shown = "".join(f'<figure style="{_STYLE}">{_picture(hit)}{_words(hit)}</figure>' for hit in self)
        return f"<div>{shown or 'nothing found'}</div>"


def _words(hit: Hit) -> str:
    """Score, kind and name of a hit."""
    name = hit.caption or (Path(hit.path).name if hit.path else hit.id)
    return f"<figcaption>{hit.score:.3f} {html.escape(hit.modality)}<br>{html.escape(name)}</figcaption>"


def _picture(hit: Hit) -> str:
    """The picture, or the first frame, of a hit; nothing for other kinds, and its error where it cannot be read."""
    from plait.embedder.parts import Part, load
    from plait.media.values import medium
    from plait.report.page import picture_uri

    try:
        kind = medium(hit.modality)
        if hit.path is None or not (kind.is_drawn or kind.frames_of):
            return ""
        loaded = load(Part(hit.modality, Path(hit.path)), None)
    except (ValueError, OSError) as error:
        # the file may be gone since it was indexed
        return f"<small>{html.escape(str(error).splitlines()[0])}</small>"
    picture = loaded[0] if isinstance(loaded, list) else loaded
    picture.thumbnail((_SIDE, _SIDE))
    return f'<img alt="" src="{picture_uri(picture, quality=82)}">'


def facts(stats: Mapping[str, Any]) -> str:
    """What an index holds, as a small table."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in stats.items())
    return f"<table>{rows}</table>"


Hits = list[Hit]


def hit_of(row: Mapping[str, Any], score: float, **more: Any) -> Hit:
    """The hit that a row of the table is, its meta read."""
    return Hit(score=score, meta=json.loads(row["meta"] or "{}"), **{name: row[name] for name in COLUMNS}, **more)
