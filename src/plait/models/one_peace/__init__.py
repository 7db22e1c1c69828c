"""ONE-PEACE: shared attention, one feed-forward per modality (arXiv 2305.11172).

    config -> model (encoder of text, image, audio) -> tasks (classification), pretraining (contrast, denoising)
                                                    -> vision (pictures, videos), dense (backbones), regions (heads)
    processor: texts, pictures and sounds -> tensors          weights: official files and model directories -> model

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.lazy import lazily

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plait.models.one_peace.config import (
        AdapterSizes,
        DecoderConfig,
        DetectionConfig,
        OnePeaceConfig,
        SegmentationConfig,
    )
    from plait.models.one_peace.dense import DetectionBackbone, SegmentationBackbone
    from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
    from plait.models.one_peace.pretraining import OnePeaceForPreTraining
    from plait.models.one_peace.processor import OnePeaceFeatureExtractor, OnePeaceImageProcessor, OnePeaceProcessor
    from plait.models.one_peace.regions import (
        OnePeaceBackbone,
        OnePeaceForObjectDetection,
        OnePeaceForUniversalSegmentation,
    )
    from plait.models.one_peace.tasks import OnePeaceForClassification
    from plait.models.one_peace.vision import OnePeaceImageClassifier, OnePeaceVideoClassifier
    from plait.weights.files import Checkpoint

_HOMES = {
    "config": ("AdapterSizes", "DecoderConfig", "DetectionConfig", "OnePeaceConfig", "SegmentationConfig"),
    "dense": ("DetectionBackbone", "SegmentationBackbone"),
    "model": ("OnePeaceModel", "OnePeacePreTrainedModel"),
    "pretraining": ("OnePeaceForPreTraining",),
    "processor": ("OnePeaceFeatureExtractor", "OnePeaceImageProcessor", "OnePeaceProcessor"),
    "regions": (
        "OnePeaceBackbone",
        "OnePeaceForObjectDetection",
        "OnePeaceForUniversalSegmentation",
        "skills",
    ),
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
    "SKILLS": "skills",
}
"""What `plait.models.auto` asks every family for -> the class that it is here."""

_HEADS = {
    "AutoModelForZeroShotImageClassification": "OnePeaceModel",
    "AutoModelForImageClassification": "OnePeaceForClassification",
    "AutoModelForAudioClassification": "OnePeaceForClassification",
    "AutoModelForSequenceClassification": "OnePeaceForClassification",
    "AutoModelForVideoClassification": "OnePeaceVideoClassifier",
    "AutoModelForObjectDetection": "OnePeaceForObjectDetection",
    "AutoModelForUniversalSegmentation": "OnePeaceForUniversalSegmentation",
    "AutoModelForSemanticSegmentation": "OnePeaceForUniversalSegmentation",
    "AutoBackbone": "OnePeaceBackbone",
}
"""Auto class of transformers -> the class that it loads."""

ALSO = {"AutoModelForImageClassification": ("OnePeaceImageClassifier",)}
"""Auto class -> further classes, each of which it loads where a configuration names it among its architectures."""

__all__ = [
    "AdapterSizes",
    "DecoderConfig",
    "DetectionBackbone",
    "DetectionConfig",
    "OnePeaceBackbone",
    "OnePeaceConfig",
    "OnePeaceFeatureExtractor",
    "OnePeaceForClassification",
    "OnePeaceForObjectDetection",
    "OnePeaceForPreTraining",
    "OnePeaceForUniversalSegmentation",
    "OnePeaceImageClassifier",
    "OnePeaceImageProcessor",
    "OnePeaceModel",
    "OnePeacePreTrainedModel",
    "OnePeaceProcessor",
    "OnePeaceVideoClassifier",
    "SegmentationBackbone",
    "SegmentationConfig",
]


_OWN = ("encoder_wrapper.", "image_adapter.")
"""How keys of its files begin, behind the prefixes of the two frameworks that held the vision models."""


def is_official(keys: Sequence[str]) -> bool:
    """Whether these are keys of an official ONE-PEACE file: the full model, its vision branch, or one of its heads.

    Args:
        keys: names of the tensors of a checkpoint, in any order.
    """
    return any(key.removeprefix("backbone.").removeprefix("net.").startswith(_OWN) for key in keys)


def from_official(checkpoint: Checkpoint, **options: Any) -> tuple[OnePeacePreTrainedModel, OnePeaceProcessor]:
    """Model and processor of an official file.

    Args:
        checkpoint: what `plait.weights.files.read_checkpoint` returns.
        options: of `weights.from_official`: `official_config`, `branch`, `model_class`, `dtype`,
            `device` and fields of `OnePeaceConfig`.

    Returns:
        The model in evaluation mode, and a processor for its image size, sampling rate and
            durations.

    Raises:
        ValueError: for a file without settings, unknown settings, and keys that are missing or too
            many.
    """
    from plait.models.one_peace import weights
    from plait.models.one_peace.processor import OnePeaceProcessor

    keys = list(checkpoint.state)
    # The four vision models: of two frameworks, or with a head right behind the branch.
    if "head.weight" in keys or any(key.startswith("backbone.") for key in keys):
        from plait.models.one_peace.regions import from_official_vision

        options.pop("branch", None)  # there is one
        model = from_official_vision(checkpoint, **options)
    else:
        model = weights.from_official(checkpoint, **options)
    return model, OnePeaceProcessor.from_config(model.config)


def from_directory(path: Path, **options: Any) -> tuple[OnePeacePreTrainedModel, OnePeaceProcessor]:
    """Model and processor of a model directory.

    Of a pretraining directory this is the encoder alone, unless `model_class` asks for the whole:
    what embeds has no use for the decoder, and reads none of it.

    Args:
        path: a directory written by `save_pretrained`.
        options: of `weights.from_directory`: `branch`, `dtype`, `device`, `model_class` and fields
            of `OnePeaceConfig`.

    Returns:
        The model in evaluation mode, and the processor stored beside it, or a fresh one where there
            is none.

    Raises:
        ValueError: for an unknown field or branch, and keys that do not fit.
    """
    from plait.models.one_peace import weights
    from plait.models.one_peace.config import OnePeaceConfig
    from plait.models.one_peace.model import OnePeaceModel
    from plait.models.one_peace.pretraining import OnePeaceForPreTraining
    from plait.models.one_peace.processor import OnePeaceProcessor

    if "model_class" not in options and weights.stored_class(path) is OnePeaceForPreTraining:
        options["model_class"] = OnePeaceModel
    named = (OnePeaceConfig.from_pretrained(path, trust_remote_code=False).architectures or [""])[0]
    if named in (*_HOMES["regions"], *_HOMES["vision"]):
        options.setdefault("model_class", __getattr__(named))
    model = weights.from_directory(path, **options)
    if any((path / name).exists() for name in ("tokenizer.json", "preprocessor_config.json")):
        # Saved directories name a loader in `auto_map`; nothing that a directory brings is ever executed.
        return model, OnePeaceProcessor.from_pretrained(path, trust_remote_code=False)
    return model, OnePeaceProcessor.from_config(model.config)


__getattr__, __dir__ = lazily(__name__, __all__, _HOMES, _ROLES, heads=_HEADS)
