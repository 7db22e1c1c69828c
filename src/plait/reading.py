"""Files that Plait did not make, read within bounds: only regular ones, only so large, only of the expected shape.

path -> check_regular -> read_json -> a dictionary or a list, or one line

A model directory or a data set may come from anybody. A pipe in the place of a file waits for ever, `/dev/zero` never
ends, and brackets in brackets are deeper than Python goes.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON = 1 << 26
"""Bytes of a JSON file that is read whole: shard indexes of the largest models have a few million."""

_SHAPES: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}


def check_regular(path: str | Path) -> None:
    """Raise ValueError where `path` is there and no regular file, without opening it. Links are followed."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return  # whoever opens it says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"expected a regular file, got {path}, a device or a pipe; copy its content into a file")


def shape_of(value: Any) -> str:
    """What a JSON value is, in words, without its content."""
    return f"the number {value}" if type(value) in (int, float) else _SHAPES.get(type(value), type(value).__name__)


def read_json(path: str | Path, shape: type = dict) -> Any:
    """The JSON value in a file. Raises ValueError for what is no JSON or of another shape, OSError for no file."""
    path = Path(path)
    check_regular(path)
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(f"expected a JSON file of at most {MAX_JSON} bytes, got {path} of {size}; check the file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise ValueError(f"expected JSON in {path}, got {reason}; check the file") from error
    if not isinstance(value, shape):
        raise ValueError(f"expected {_SHAPES[shape]} in {path}, got {shape_of(value)}; check the file")
    return value
