"""Index media on disk and query them with text, images, audio or any mixture. Names resolve on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.search.index import AddReport, Hit, Index
    from plait.search.page import write_contact_sheet

_HOMES = {
    "AddReport": "plait.search.index",
    "Hit": "plait.search.index",
    "Index": "plait.search.index",
    "write_contact_sheet": "plait.search.page",
}

__all__ = ["AddReport", "Hit", "Index", "write_contact_sheet"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait.search' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
