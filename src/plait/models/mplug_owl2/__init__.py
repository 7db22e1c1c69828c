"""mPLUG-Owl2 and mPLUG-Owl2.1 (arXiv 2311.04257): config, vision, abstractor, model, processor, weights.

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
    from plait.models.mplug_owl2.model import (
        MPlugOwl2ForConditionalGeneration,
        MPlugOwl2Model,
        MPlugOwl2PreTrainedModel,
    )
    from plait.models.mplug_owl2.processor import MPlugOwl2ImageProcessor, MPlugOwl2Processor

_HOMES = {
    "config": ("AbstractorConfig", "MPlugOwl2Config", "VisionConfig"),
    "model": ("MPlugOwl2ForConditionalGeneration", "MPlugOwl2Model", "MPlugOwl2PreTrainedModel"),
    "processor": ("MPlugOwl2ImageProcessor", "MPlugOwl2Processor"),
}
"""Module -> the names of it that users import from here."""

__all__ = [
    "AbstractorConfig",
    "MPlugOwl2Config",
    "MPlugOwl2ForConditionalGeneration",
    "MPlugOwl2ImageProcessor",
    "MPlugOwl2Model",
    "MPlugOwl2PreTrainedModel",
    "MPlugOwl2Processor",
    "VisionConfig",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:  # modules of the package come here too, before they are imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
