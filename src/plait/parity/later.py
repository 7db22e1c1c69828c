"""Kinds of golden cases that no runner serves yet, each with the issue that brings it.

The table is empty when the last of these issues closes.
"""

from __future__ import annotations

_KINDS: dict[str, tuple[int, str]] = {}

LATER: dict[str, dict[str, int]] = {
    system: dict.fromkeys(kinds.split(), issue) for system, (issue, kinds) in _KINDS.items()
}
"""System -> beginning of the names of its cases -> issue."""
