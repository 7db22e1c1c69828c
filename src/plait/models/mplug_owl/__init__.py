"""mPLUG-Owl: images and videos into a language model (arXiv 2304.14178).

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig
    from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
    from plait.models.mplug_owl.processor import MPlugOwlImageProcessor, MPlugOwlProcessor

_HOMES = {
    "config": ("AbstractorConfig", "MPlugOwlConfig", "VisionConfig"),
    "model": ("MPlugOwlForConditionalGeneration",),
    "processor": ("MPlugOwlImageProcessor", "MPlugOwlProcessor"),
}
"""Module -> the names of it that users import from here."""

__all__ = [
    "AbstractorConfig",
    "MPlugOwlConfig",
    "MPlugOwlForConditionalGeneration",
    "MPlugOwlImageProcessor",
    "MPlugOwlProcessor",
    "VisionConfig",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:  # modules of the package come here too, before they are imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
