"""ONE-PEACE: shared attention, one feed-forward per modality (arXiv 2305.11172).

    config -> model (encoder of text, image, audio) -> tasks (classification), pretraining (contrast, denoising)
                                                    -> vision (pictures, videos), dense (detection, segmentation)
    processor: texts, pictures and sounds -> tensors          weights: official files and model directories -> model

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig
    from plait.models.one_peace.dense import AdapterSizes, DetectionBackbone, SegmentationBackbone
    from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
    from plait.models.one_peace.pretraining import OnePeaceForPreTraining
    from plait.models.one_peace.processor import OnePeaceFeatureExtractor, OnePeaceImageProcessor, OnePeaceProcessor
    from plait.models.one_peace.tasks import OnePeaceForClassification
    from plait.models.one_peace.vision import OnePeaceImageClassifier, OnePeaceVideoClassifier
    from plait.weights.files import Checkpoint

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

_ROLES = {
    "CONFIG": "OnePeaceConfig",
    "BASE_MODEL": "OnePeaceModel",
    "PROCESSOR": "OnePeaceProcessor",
    "IMAGE_PROCESSOR": "OnePeaceImageProcessor",
    "FEATURE_EXTRACTOR": "OnePeaceFeatureExtractor",
}
"""What `plait.models.auto` asks every family for -> the class that it is here."""

_HEADS = {"AutoModelForImageClassification": "OnePeaceForClassification"}
"""Auto class of transformers -> the class that it loads."""

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


def is_official(keys: Sequence[str]) -> bool:
    """Whether these are keys of an official ONE-PEACE file (the full model or its vision branch)."""
    return any(key.startswith(("encoder_wrapper.", "image_adapter.")) for key in keys)


def from_official(checkpoint: Checkpoint, **options: Any) -> tuple[OnePeacePreTrainedModel, OnePeaceProcessor]:
    """Model and processor of an official file; options of `weights.from_official`."""
    from plait.models.one_peace import weights
    from plait.models.one_peace.processor import OnePeaceProcessor

    model = weights.from_official(checkpoint, **options)
    return model, OnePeaceProcessor.from_config(model.config)


def from_directory(path: Path, **options: Any) -> tuple[OnePeacePreTrainedModel, OnePeaceProcessor]:
    """Model and processor of a model directory; options of `weights.from_directory`.

    Of a pretraining directory this is the encoder alone, unless `model_class` asks for the whole: what embeds has no
    use for the decoder, and reads none of it.
    """
    from plait.models.one_peace import weights
    from plait.models.one_peace.model import OnePeaceModel
    from plait.models.one_peace.pretraining import OnePeaceForPreTraining
    from plait.models.one_peace.processor import OnePeaceProcessor

    if "model_class" not in options and weights.stored_class(path) is OnePeaceForPreTraining:
        options["model_class"] = OnePeaceModel
    model = weights.from_directory(path, **options)
    if (path / "tokenizer.json").exists():
        return model, OnePeaceProcessor.from_pretrained(path, trust_remote_code=False)
    return model, OnePeaceProcessor.from_config(model.config)


def __getattr__(name: str) -> Any:
    if name == "HEADS":
        return {auto: __getattr__(head) for auto, head in _HEADS.items()}
    wanted = _ROLES.get(name, name)
    home = next((module for module, names in _HOMES.items() if wanted in names), None)
    if home is None:  # modules of the package come here too, before they are imported
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), wanted)


def __dir__() -> list[str]:
    return sorted(__all__)
