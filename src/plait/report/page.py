"""One self-contained page in the house's style: sections of HTML -> a file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from plait.places import atomic_write
from plait.report import charts

_HERE = Path(__file__).parent


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write HTML sections as one self-contained page in the house's style; returns its path."""
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    for slot, content in {
        "title": escape(title),
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "script": (_HERE / "page.js").read_text(encoding="utf-8"),
        "braid": charts.braid(),
        "body": "\n".join(sections),
    }.items():
        page = page.replace(f"<!--{slot}-->", content)
    return atomic_write(path, page)


def section(title: str, lead: str, body: str, name: str) -> str:
    """A heading, what it is about and its content, as HTML."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{title}</h2>{intro}{body}</section>'
