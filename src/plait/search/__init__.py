"""Index media on disk and query them with text, images, audio or any mixture. Names resolve on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.lazy import lazily

if TYPE_CHECKING:
    from plait.search.index import AddReport, Hit, Index
    from plait.search.page import write_contact_sheet

__all__ = ["AddReport", "Hit", "Index", "write_contact_sheet"]

__getattr__, __dir__ = lazily(
    __name__, __all__, {"index": ("AddReport", "Hit", "Index"), "page": ("write_contact_sheet",)}
)
