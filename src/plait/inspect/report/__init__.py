"""report.html: a run or a study as one page that needs nothing but a browser."""

from __future__ import annotations

from plait.inspect.report.page import build_report, section, write_page

__all__ = ["build_report", "section", "write_page"]
