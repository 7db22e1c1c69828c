"""Index media on disk and query them with text, images, audio or any mixture. Names resolve on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.lazy import lazily

if TYPE_CHECKING:
    from plait.search.hits import Hit, HitList
    from plait.search.index import Index
    from plait.search.ledger import AddReport
    from plait.search.page import write_contact_sheet

__all__ = ["AddReport", "Hit", "HitList", "Index", "write_contact_sheet"]

_HOMES = {
    "hits": ("Hit", "HitList"),
    "index": ("Index",),
    "ledger": ("AddReport",),
    "page": ("write_contact_sheet",),
}

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
