"""Builders of data sets from pinned public packages: `build("mini", out)` and `build("full", out)`."""

from plait.data.build.builder import build

__all__ = ["build"]
