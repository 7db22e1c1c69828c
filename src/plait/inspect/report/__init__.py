"""report.html: a run as one page that needs nothing but a browser."""

from __future__ import annotations

from plait.inspect.report.page import build_report

__all__ = ["build_report"]
