"""Model families, each a directory with the same files; `auto` is the one door to them. Some models ship with Plait."""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("nano",)
"""Names of the model directories inside the package."""


def shipped(name: str | Path) -> Path | None:
    """The directory of the shipped model `name`, or None where no model of that name ships."""
    return Path(__file__).parent / "shipped" / str(name) if str(name) in SHIPPED else None


def name_of_shipped(path: str | Path) -> str | None:
    """The name of the shipped model that lies in the directory `path`, or None where it is another directory."""
    return next((name for name in SHIPPED if shipped(name) == Path(path)), None)
