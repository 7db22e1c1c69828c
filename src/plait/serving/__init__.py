"""The HTTP server: OpenAI's chat and embeddings, rerank and search, for whatever Plait's models take.

    request -> door (key, size) -> parts (text, media) -> service (an engine or batcher per model) -> JSON or events

**The rule of vectors**: each element of `input` is one vector; an element that is a list of parts is one fused vector;
`messages` is exactly one; anything else is a 400. Engines disagree here, and their users got one vector for several.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.serving.app import create_app
    from plait.serving.service import Models
    from plait.serving.settings import Settings

_HOMES = {"create_app": "plait.serving.app", "Models": "plait.serving.service", "Settings": "plait.serving.settings"}

__all__ = ["Models", "Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'plait.serving' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
