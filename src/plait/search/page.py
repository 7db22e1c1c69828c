"""Results one can look at and listen to: a single HTML page, nothing loaded from anywhere.

[(query, hits)] -> sections of cards: thumbnails and players as data URIs -> page.html
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.embedder.parts import Part, load, parts_of
from plait.errors import import_extra
from plait.media.image import load_image
from plait.media.values import medium
from plait.report.page import data_uri, hero, picture_uri, write_page
from plait.search.thumbnails import thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image

    from plait.search.hits import Hit
    from plait.search.index import Index

_THUMBNAIL = 320
_CLIP_SECONDS = 15
_CLIP_RATE = 24_000

_SPEAKER = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" '
    'stroke-linejoin="round" aria-hidden="true"><path d="M4 9v6h4l5 4V5L8 9z"/><path d="M16.5 8.5a5 5 0 0 1 0 7"/>'
    '<path d="M19 6a8.5 8.5 0 0 1 0 12"/></svg>'
)


def write_contact_sheet(
    path: str | Path, results: Sequence[tuple[Any, Sequence[Hit]]], *, title: str = "Search results", note: str = "",
    index: Index | None = None,
) -> Path:  # fmt: skip
    """Write one HTML page with a section per query: thumbnails, players and scores, nothing loaded from elsewhere.

    Args:
        path: of the page.
        results: pairs of a query, an item as `Embedder.embed` takes it, and its hits.
        title, note: of the page; both are plain text.
        index: where the hits are from: its thumbnails are used, and made where they are missing.

    Returns:
        The path.

    Raises:
        ValueError: for a query that is no item. A file that is gone is said so on the page.

    Example:
        >>> write_contact_sheet("found.html", [("a dog", index.search("a dog"))])
    """
    sections = [hero(title, html.escape(note))]
    for query, hits in results:
        parts = "".join(_query_part(part, first=n == 0) for n, part in enumerate(parts_of(query)))
        cards = "".join(_card(hit, index) for hit in hits) or "<p>Nothing found.</p>"
        header = f'<div class="query"><span class="tag">query</span>{parts}</div>'
        sections.append(f'<section class="found">{header}<div class="hits">{cards}</div></section>')
    return write_page(Path(path), title, sections)


def _query_part(part: Part, *, first: bool) -> str:
    """One part of a query as HTML: a sign, the medium or words, and its weight where it is not 1."""
    sign = "&minus;" if part.weight < 0 else "" if first else "+"
    weight = f'<span class="tag">&times; {abs(part.weight):g}</span>' if abs(part.weight) != 1 else ""
    if medium(part.modality).is_words:
        view = f"<q>{html.escape(part.value)}</q>"
    else:
        view = _seen(part)
        view += f'<span class="sub">{html.escape(Path(part.name).name)}</span>'
    return f'<span class="sign">{sign}</span><span class="part">{view}{weight}</span>'


def _card(hit: Hit, index: Index | None) -> str:
    """One hit as HTML: a thumbnail, player or quotation, with caption, score and its bar from 0 to 1.

    Names and pictures lead to the file itself; where it is gone, the card says so.
    """
    if hit.path is None:
        view = f"<blockquote>{html.escape(hit.caption or hit.id)}</blockquote>"
    elif index is not None and (small := thumbnail(index, hit)) is not None:
        view = f'<img alt="" loading="lazy" src="{picture_uri(load_image(small), quality=82)}">'
    else:
        view = ("" if medium(hit.modality).seconds is None else _SPEAKER) + _seen(Part(hit.modality, Path(hit.path)))
    name = html.escape(hit.caption or (Path(hit.path).name if hit.path else hit.id))
    title = name
    below = html.escape(
        " · ".join(t for t in (hit.modality, clock(hit), Path(hit.path).name if hit.path else hit.id) if t)
    )
    if hit.path and os.path.isabs(hit.path) and not hit.is_gone:
        link = f'<a href="{html.escape(Path(hit.path).as_uri())}">'
        name, below = f"{link}{name}</a>", f"{link}{below}</a>"
        view = view if medium(hit.modality).seconds is not None else f"{link}{view}</a>"
    width = max(0.0, min(1.0, hit.score)) * 100  # the same length means the same on every page
    return (
        f'<figure class="hit"><div class="view">{view}</div><figcaption><span class="score">{hit.score:.3f}</span>'
        f'<div class="name" title="{title}">{name}</div>'
        f'<div class="sub" title="{html.escape(hit.path or hit.id)}">{below}</div>'
        f'<div class="bar"><i style="width:{width:.0f}%"></i></div></figcaption></figure>'
    )


def _seen(part: Part) -> str:
    """A medium as HTML: a player of what has a length in seconds, a thumbnail of what can be drawn, else nothing."""
    kind = medium(part.modality)
    if kind.seconds is not None:
        return _player(part)
    return _image(part) if kind.is_drawn or kind.frames_of else ""


def _image(part: Part) -> str:
    """A thumbnail of a picture, or of the first frame of a video, as HTML."""
    try:
        loaded = load(part, None)
    except (ValueError, OSError) as error:
        # the file may be gone since it was indexed: the page says so
        return f'<span class="sub">{html.escape(str(error).splitlines()[0])}</span>'
    picture: Image = loaded[0] if isinstance(loaded, list) else loaded
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return f'<img alt="" loading="lazy" src="{picture_uri(picture, quality=82)}">'


def _player(part: Part) -> str:
    """The first `_CLIP_SECONDS` of a sound as a player, as HTML."""
    try:
        clip = load(part, _CLIP_RATE)[: _CLIP_SECONDS * _CLIP_RATE]
    except (ValueError, OSError) as error:
        return f'<span class="sub">{html.escape(str(error).splitlines()[0])}</span>'
    soundfile = import_extra("soundfile")
    stream = io.BytesIO()
    # MP3 keeps a page of many clips small; at 24 kHz it is clear enough to recognise them
    soundfile.write(stream, clip, _CLIP_RATE, format="MP3")
    return f'<audio controls preload="none" src="{data_uri(stream.getvalue(), "audio/mpeg")}"></audio>'


def table(hits: Sequence[Hit]) -> str:
    """Hits as lines of text for a terminal: number, score, kind, caption and path, all but the path cut short."""
    if not hits:
        return "nothing found"
    rows = [
        (str(n), f"{hit.score:.3f}", hit.modality, hit.caption or "", (hit.path or hit.id) + _beside(hit))
        for n, hit in enumerate(hits, 1)
    ]
    head = ("#", "score", "kind", "caption", "path")
    widths = [min(40, max(len(row[c]) for row in [head, *rows])) for c in range(4)]
    lines = ("  ".join([*(cell[:w].ljust(w) for cell, w in zip(row, widths)), row[4]]) for row in [head, *rows])
    return "\n".join(lines)


def _beside(hit: Hit) -> str:
    """Words behind the path of a hit: when it happens, how sure a second look is, and whether the file is gone."""
    match = "" if hit.match is None else f"fits: {hit.match:.0%}"
    said = [part for part in (clock(hit), match, "the file is gone" if hit.is_gone else "") if part]
    return f"  ({', '.join(said)})" if said else ""


def clock(hit: Hit) -> str:
    """When the best moment of a hit is: `at 1:05 to 1:10`; empty without one."""
    if hit.moment is None:
        return ""
    first, last = (f"{int(at) // 60}:{int(at) % 60:02d}" for at in hit.moment)
    return f"at {first} to {last}"


def to_json(hit: Hit) -> Mapping[str, Any]:
    """A hit as a JSON object: every attribute of `Hit`, by its name."""
    names = ("id", "score", "modality", "path", "is_gone", "caption", "label", "checksum", "meta", "moment", "match")
    return {name: getattr(hit, name) for name in names}
