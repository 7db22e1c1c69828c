"""Plait: modular multimodal foundation models. Importing this package loads no torch; names resolve on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.assistant import Assistant
    from plait.chat import Chat
    from plait.embedder import Embedder
    from plait.models.auto import load
    from plait.models.plugins import use
    from plait.search import Index
    from plait.types import Sample

__version__ = "0.1.0"

_HOMES = {
    "Assistant": "plait.assistant",
    "Chat": "plait.chat",
    "Embedder": "plait.embedder",
    "Index": "plait.search",
    "Sample": "plait.types",
    "load": "plait.models.auto",
    "use": "plait.models.plugins",
}

__all__ = ["Assistant", "Chat", "Embedder", "Index", "Sample", "__version__", "load", "use"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
