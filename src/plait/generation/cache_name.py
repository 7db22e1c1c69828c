"""The name under which transformers hands key/value caches around.

Since 5.24 it is `cache`, before it was `past_key_values`; models of this library take either and return transformers'.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import GenerationMixin
from transformers.cache_utils import Cache

_PREPARED = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _PREPARED else "past_key_values"
CACHE_NAMES = ["cache", "past_key_values"]


def named(cache: Any) -> dict[str, Any]:
    """The cache as the keyword argument that transformers expects."""
    return {CACHE: cache}


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that a caller of either age passed. Raises ValueError for two different ones."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("expected one cache, got `cache` and `past_key_values`; pass `cache` alone")
    return past_key_values if cache is None else cache
