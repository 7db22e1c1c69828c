"""One self-contained page in the house's style: sections of HTML -> a file that needs nothing but a browser.

Runs, evaluations, searches and studies write their pages here. Titles and names are words and escaped; leads and bodies
are HTML, and whoever makes them escapes what comes from files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from plait.places import atomic_write, check_replaceable
from plait.report import charts

if TYPE_CHECKING:
    from PIL.Image import Image

_HERE = Path(__file__).parent
SIGN = '<meta name="generator" content="Plait">'
"""In the head of every page: a file with it may be replaced by the next one."""


def write_page(path: Path, title: str, sections: Sequence[str], footer: str = "Made by Plait.") -> Path:
    """Write HTML sections as one self-contained page in the house's style.

    Args:
        path: of the page, in a directory that exists; new, or a page of Plait's that it replaces.
        title, footer: plain text.
        sections: HTML, whose makers escaped what comes from files.

    Returns:
        The path.

    Raises:
        UsageError: for a file that Plait did not write, which stays.

    Example:
        >>> write_page(Path("a.html"), "Results", [hero("Results"), section("Scores", "", "<p>42</p>", "scores")])
    """
    check_replaceable(path, SIGN)
    body = "\n".join(sections)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    for slot, content in {
        "title": escape(title),
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        # the player's script alone needs JavaScript: pages without players have none
        "script": f"<script>\n{script}</script>\n" if 'class="player"' in body else "",
        "braid": charts.braid(),
        "footer": escape(footer),
        "body": body,  # last: what it holds may look like a slot
    }.items():
        page = page.replace(f"<!--{slot}-->", content)
    return atomic_write(path, page)


def hero(title: str, lead: str = "", body: str = "") -> str:
    """The head of a page, as HTML.

    Args:
        title: plain text.
        lead, body: HTML: what the page is about, and what to see first.
    """
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<header class="hero"><h1>{escape(title)}</h1>{intro}{body}</header>'


def section(title: str, lead: str, body: str, name: str) -> str:
    """A heading, what it is about and its content, as HTML.

    Args:
        title: plain text.
        lead, body: HTML.
        name: the anchor.
    """
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{intro}{body}</section>'


def data_uri(content: bytes, kind: str) -> str:
    """A media file inside the page.

    Args:
        content: of the file.
        kind: its MIME type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture_uri(picture: Image, **options: bool | int) -> str:
    """An image as WebP inside the page.

    Args:
        picture: of PIL.
        options: of Pillow's writer, such as lossless or quality.
    """
    stream = io.BytesIO()
    picture.save(stream, "WEBP", **options)
    return data_uri(stream.getvalue(), "image/webp")
