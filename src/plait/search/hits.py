"""`Hit`: one result of a search; several show themselves in a notebook."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from plait.search.filters import COLUMNS


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
        return self.path is not None and not os.path.exists(self.path)


class HitList(list[Hit]):
    """Results of a search, best first; a notebook shows them as cards."""

    def _repr_html_(self) -> str:
        """Thumbnails, players and scores."""
        from plait.search.notebook import cards

        return cards([asdict(hit) for hit in self])


Hits = list[Hit]


def hit_of(row: Mapping[str, Any], score: float, **more: Any) -> Hit:
    """The hit that a row of the table is, its meta read."""
    return Hit(score=score, meta=json.loads(row["meta"] or "{}"), **{name: row[name] for name in COLUMNS}, **more)
