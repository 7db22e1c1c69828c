"""ONE-PEACE: shared attention, one feed-forward per modality (arXiv 2305.11172).

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig
    from plait.models.one_peace.dense import AdapterSizes, DetectionBackbone, SegmentationBackbone
    from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
    from plait.models.one_peace.pretraining import OnePeaceForPreTraining
    from plait.models.one_peace.processor import OnePeaceFeatureExtractor, OnePeaceImageProcessor, OnePeaceProcessor
    from plait.models.one_peace.tasks import OnePeaceForClassification
    from plait.models.one_peace.vision import OnePeaceImageClassifier, OnePeaceVideoClassifier

_HOMES = {
    "config": ("DecoderConfig", "OnePeaceConfig"),
    "dense": ("AdapterSizes", "DetectionBackbone", "SegmentationBackbone"),
    "model": ("OnePeaceModel", "OnePeacePreTrainedModel"),
    "pretraining": ("OnePeaceForPreTraining",),
    "processor": ("OnePeaceFeatureExtractor", "OnePeaceImageProcessor", "OnePeaceProcessor"),
    "tasks": ("OnePeaceForClassification",),
    "vision": ("OnePeaceImageClassifier", "OnePeaceVideoClassifier"),
}
"""Module -> the names of it that users import from here."""

__all__ = [
    "AdapterSizes",
    "DecoderConfig",
    "DetectionBackbone",
    "OnePeaceConfig",
    "OnePeaceFeatureExtractor",
    "OnePeaceForClassification",
    "OnePeaceForPreTraining",
    "OnePeaceImageClassifier",
    "OnePeaceImageProcessor",
    "OnePeaceModel",
    "OnePeacePreTrainedModel",
    "OnePeaceProcessor",
    "OnePeaceVideoClassifier",
    "SegmentationBackbone",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:  # modules of the package come here too, before they are imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
