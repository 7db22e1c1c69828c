"""ONE-PEACE as `plait.models.auto` sees it: recognise its files, build model and processor together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.models.one_peace import weights
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.processor import OnePeaceFeatureExtractor, OnePeaceImageProcessor, OnePeaceProcessor
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.models.one_peace.weights import is_official
from plait.weights.files import Checkpoint

CONFIG, BASE_MODEL, PROCESSOR = OnePeaceConfig, OnePeaceModel, OnePeaceProcessor
IMAGE_PROCESSOR, FEATURE_EXTRACTOR = OnePeaceImageProcessor, OnePeaceFeatureExtractor

HEADS = {"AutoModelForImageClassification": OnePeaceForClassification}
"""Auto class of transformers -> the class it loads."""

__all__ = [
    "BASE_MODEL",
    "CONFIG",
    "FEATURE_EXTRACTOR",
    "HEADS",
    "IMAGE_PROCESSOR",
    "PROCESSOR",
    "from_directory",
    "from_official",
    "is_official",
]


def from_official(checkpoint: Checkpoint, **options: Any) -> tuple[OnePeacePreTrainedModel, OnePeaceProcessor]:
    """Model and processor of an official file; options of `loading.from_official`."""
    model = weights.from_official(checkpoint, **options)
    return model, OnePeaceProcessor.from_config(model.config)


def from_directory(path: Path, **options: Any) -> tuple[OnePeacePreTrainedModel, OnePeaceProcessor]:
    """Model and processor of a model directory; options of `loading.from_directory`.

    Of a pretraining directory this is the encoder alone, unless `model_class` asks for the whole.
    """
    if "model_class" not in options and weights.stored_class(path) is OnePeaceForPreTraining:
        options["model_class"] = OnePeaceModel
    model = weights.from_directory(path, **options)
    if (path / "tokenizer.json").exists():
        return model, OnePeaceProcessor.from_pretrained(path, trust_remote_code=False)
    return model, OnePeaceProcessor.from_config(model.config)
