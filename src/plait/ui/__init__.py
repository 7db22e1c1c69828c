"""A page in the browser over an index, a chat and an assistant: `plait ui`. It holds no rule of its own."""

from __future__ import annotations

from plait.ui.page import build, launch

__all__ = ["build", "launch"]
