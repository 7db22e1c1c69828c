"""Filters: a string of SQL or a mapping -> one condition for Lance, with `meta.NAME` read by its type."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from plait.errors import UsageError
from plait.modalities import names

COLUMNS = ("id", "modality", "path", "caption", "label", "checksum")


_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")

_FUNCTIONS = {"and", "or", "not", "in", "lower", "upper", "length", "starts_with", "ends_with", "contains", "abs"}
"""What may stand before a bracket in a filter. None of these makes a value larger than what it is given."""

_META = re.compile(
    r"\bmeta\.(\w+(?:\.\w+)*)"
    r"(?:(\s*(?:<=|>=|<>|!=|=|<|>)\s*-?\d)|(\s*(?:<>|!=|=)\s*(?:true|false)\b|\s+IS\s+(?:NOT\s+)?(?:TRUE|FALSE)\b))?",
    re.IGNORECASE,
)


_QUOTED = re.compile(r"('(?:[^']|'')*')")


def to_sql(where: str | Mapping[str, Any] | None, modality: str | None = None) -> str | None:
    """SQL of a filter, or None when there is none.

    Args:
        where: a string is SQL over the columns id, modality, path, caption, label, checksum; `meta.NAME` reads
            a field of meta (a number when it is compared with a number). A mapping asks for equality: names
            that are no column are fields of meta, a list means any of its values, None a field that is absent.
        modality: one modality on top of that.

    Returns:
        A condition for Lance.

    Raises:
        UsageError: for a modality that is none.
        ValueError: for a name in a mapping that no field can have.

    Example:
        >>> to_sql({"label": ["cat", "dog"]}, "image")
        "modality = 'image' AND (label = 'cat' OR label = 'dog')"
    """
    if modality not in (None, *names()):
        raise UsageError(f"expected a modality among {', '.join(names())}, got {modality!r}; choose one of them")
    if where is not None and not isinstance(where, str | Mapping):
        got = type(where).__name__
        raise UsageError(f"expected a filter as SQL or as names with values, got a {got}; such as \"label = 'dog'\"")
    parts = [] if modality is None else [f"modality = {quote(modality)}"]
    if isinstance(where, Mapping):
        parts += [_equals(name, value) for name, value in where.items()]
    elif where and where.strip():

        def read_meta(match: re.Match[str]) -> str:
            # Lance has a getter per type: numbers are compared with numbers, truth values with truth values
            name, number, truth = match.groups()
            if "." in name:
                raise UsageError(f"expected a field of meta by one name, got meta.{name}; filter on a field of its own")
            kind = "float" if number else "bool" if truth else "string"
            return f"json_get_{kind}(meta, '{name}')" + (number or truth or "")

        outside_quotes = " ".join(_QUOTED.split(where)[::2])
        for name in _CALLED.findall(outside_quotes):
            if name.lower() not in _FUNCTIONS:
                # repeat('a', 1000000000) takes all memory, and there are hundreds more
                raise UsageError(f"expected a filter of {', '.join(sorted(_FUNCTIONS))}, got the function {name:.40}")
        pieces = _QUOTED.split(where)  # every other piece is a quoted string: leave it alone
        parts.append("(" + "".join(p if n % 2 else _META.sub(read_meta, p) for n, p in enumerate(pieces)) + ")")
    return " AND ".join(parts) or None


def quote(value: str) -> str:
    """An SQL string literal: quotes inside are doubled, which is all the escaping that SQL strings have."""
    return "'" + value.replace("'", "''") + "'"


def _equals(name: str, value: Any) -> str:
    """SQL that asks whether a column, or a field of meta, has a value, or one of a list of values."""
    if isinstance(value, list | tuple | set):
        return "(" + " OR ".join(_equals(name, one) for one in value) + ")" if value else "false"
    if name not in COLUMNS and not re.fullmatch(r"\w+", name):
        raise ValueError(f"expected a filter on {', '.join(COLUMNS)} or a field of meta, got {name!r}")
    if isinstance(value, np.generic):  # values of NumPy compare as Python's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number for {name}, got {value}; use a number that a row can have")
    if value is None:
        return f"{name if name in COLUMNS else f'json_get_string(meta, {quote(name)})'} IS NULL"
    if name in COLUMNS:
        return f"{name} = {quote(str(value))}"
    # before numbers: a bool is an int in Python, and JSON tells them apart
    if isinstance(value, bool):
        return f"json_get_bool(meta, {quote(name)}) = {str(value).lower()}"
    if isinstance(value, int | float):
        return f"json_get_float(meta, {quote(name)}) = {value}"
    return f"json_get_string(meta, {quote(name)}) = {quote(str(value))}"
