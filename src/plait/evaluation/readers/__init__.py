"""Readers of official annotation files: a directory as its data set publishes it -> typed items, in a fixed order.

Every layout is registered under its name; `read` finds its files in a directory and returns the items.
"""

from __future__ import annotations

from plait.evaluation.readers import (  # noqa: F401  (each module registers its layouts)
    captions,
    choices,
    classes,
    language,
    mini,
    pairs,
    questions,
    regions,
    retrieval,
    tables,
)
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import LAYOUTS, Layout, Source, read

__all__ = ["LAYOUTS", "Item", "Layout", "Source", "read"]
