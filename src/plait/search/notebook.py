"""Hits as a notebook shows them: a small picture of each, its score and its name, all inside the cell."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plait.embedder.parts import Part, load
from plait.media.values import medium
from plait.report.page import picture_uri

_SIDE = 160
_STYLE = "display:inline-block;width:170px;margin:4px;vertical-align:top;font-size:12px;overflow-wrap:anywhere"


def cards(rows: Iterable[Mapping[str, Any]]) -> str:
    """Cards in a row, as HTML.

    Args:
        rows: path, caption, id, modality and score of each hit.
    """
    shown = "".join(f'<figure style="{_STYLE}">{_picture(row)}{_words(row)}</figure>' for row in rows)
    return f"<div>{shown or 'nothing found'}</div>"


def facts(stats: Mapping[str, Any]) -> str:
    """What an index holds, as a small table."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in stats.items())
    return f"<table>{rows}</table>"


def _words(row: Mapping[str, Any]) -> str:
    """Score, kind and name of a hit."""
    name = row["caption"] or (Path(row["path"]).name if row["path"] else row["id"])
    return f"<figcaption>{row['score']:.3f} {html.escape(row['modality'])}<br>{html.escape(name)}</figcaption>"


def _picture(row: Mapping[str, Any]) -> str:
    """The picture, or the first frame, of a hit; nothing for other kinds, and its error where it cannot be read."""
    try:
        kind = medium(row["modality"])
        if row["path"] is None or not (kind.is_drawn or kind.frames_of):
            return ""
        loaded = load(Part(row["modality"], Path(row["path"])), None)
    except (ValueError, OSError) as error:  # the file may be gone since it was indexed
        return f"<small>{html.escape(str(error).splitlines()[0])}</small>"
    picture = loaded[0] if isinstance(loaded, list) else loaded
    picture.thumbnail((_SIDE, _SIDE))
    return f'<img alt="" src="{picture_uri(picture, quality=82)}">'
