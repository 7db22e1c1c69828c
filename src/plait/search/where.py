"""Filters: what a person writes -> the SQL that Lance runs.

"label = 'dog' AND meta.style = 'noto'"  or  {"label": "dog", "style": "noto"}  ->  SQL over the columns
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from plait.errors import UsageError
from plait.types import MODALITIES

COLUMNS = ("id", "modality", "path", "caption", "label", "checksum")

_META = re.compile(r"\bmeta\.(\w+)(\s*(?:<=|>=|<>|!=|=|<|>)\s*-?\d)?")
_QUOTED = re.compile(r"('(?:[^']|'')*')")


def to_sql(where: str | Mapping[str, Any] | None, modality: str | None = None) -> str | None:
    """SQL of a filter, or None when there is none.

    A string is SQL over the columns id, modality, path, caption, label, checksum; `meta.NAME` reads a field of meta (a
    number when it is compared with a number). A mapping asks for equality: names that are no column are fields of meta,
    a list means any of its values. Raises UsageError for a modality that is none.
    """
    if modality not in (None, *MODALITIES):
        raise UsageError(f"expected a modality among {', '.join(MODALITIES)}, got {modality!r}; choose one of them")
    parts = [] if modality is None else [f"modality = {quote(modality)}"]
    if isinstance(where, Mapping):
        parts += [_equals(name, value) for name, value in where.items()]
    elif where and where.strip():
        pieces = _QUOTED.split(where)  # every other piece is a quoted string: leave it alone
        parts.append("(" + "".join(p if n % 2 else _META.sub(_read_meta, p) for n, p in enumerate(pieces)) + ")")
    return " AND ".join(parts) or None


def quote(value: str) -> str:
    """An SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def _read_meta(match: re.Match[str]) -> str:
    name, comparison = match.groups()
    getter = "json_get_float" if comparison else "json_get_string"
    return f"{getter}(meta, '{name}')" + (comparison or "")


def _equals(name: str, value: Any) -> str:
    if isinstance(value, list | tuple | set):
        return "(" + " OR ".join(_equals(name, one) for one in value) + ")" if value else "false"
    if name not in COLUMNS and not re.fullmatch(r"\w+", name):
        raise ValueError(f"expected a filter on {', '.join(COLUMNS)} or a field of meta, got {name!r}")
    if value is None:
        return f"{name if name in COLUMNS else f'json_get_string(meta, {quote(name)})'} IS NULL"
    if name in COLUMNS:
        return f"{name} = {quote(str(value))}"
    if isinstance(value, bool):
        return f"json_get_bool(meta, {quote(name)}) = {str(value).lower()}"
    if isinstance(value, int | float):
        return f"json_get_float(meta, {quote(name)}) = {value}"
    return f"json_get_string(meta, {quote(name)}) = {quote(str(value))}"
