"""mPLUG-2 (arXiv 2302.00402): shared and modality-specific modules over text, image and video, picked per task.

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.models.mplug2.alignment import MPlug2ForRetrieval
    from plait.models.mplug2.config import MPlug2Config, VisionConfig
    from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel
    from plait.models.mplug2.pretraining import MPlug2ForPreTraining
    from plait.models.mplug2.processor import MPlug2ImageProcessor, MPlug2Processor
    from plait.models.mplug2.tasks import (
        MPlug2ForConditionalGeneration,
        MPlug2ForGrounding,
        MPlug2ForImageClassification,
        MPlug2ForSequenceClassification,
        MPlug2ForVideoClassification,
    )

_HOMES = {
    "alignment": ("MPlug2ForRetrieval",),
    "config": ("MPlug2Config", "VisionConfig"),
    "model": ("MPlug2Model", "MPlug2PreTrainedModel"),
    "pretraining": ("MPlug2ForPreTraining",),
    "processor": ("MPlug2ImageProcessor", "MPlug2Processor"),
    "tasks": (
        "MPlug2ForConditionalGeneration",
        "MPlug2ForGrounding",
        "MPlug2ForImageClassification",
        "MPlug2ForSequenceClassification",
        "MPlug2ForVideoClassification",
    ),
}
"""Module -> the names of it that users import from here."""

__all__ = [
    "MPlug2Config",
    "MPlug2ForConditionalGeneration",
    "MPlug2ForGrounding",
    "MPlug2ForImageClassification",
    "MPlug2ForPreTraining",
    "MPlug2ForRetrieval",
    "MPlug2ForSequenceClassification",
    "MPlug2ForVideoClassification",
    "MPlug2ImageProcessor",
    "MPlug2Model",
    "MPlug2PreTrainedModel",
    "MPlug2Processor",
    "VisionConfig",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:  # modules of the package come here too, before they are imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
