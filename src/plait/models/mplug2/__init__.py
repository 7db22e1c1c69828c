"""mPLUG-2 (arXiv 2302.00402): shared and modality-specific modules over text, image and video, picked per task.

    composition (which modules a task uses) -> model -> tasks (captions, answers, boxes, classes)
                                                     -> alignment (retrieval) -> pretraining
    processor: texts, pictures and clips -> tensors           weights: official files and model directories -> model

Importing this package loads no torch; names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.lazy import lazily

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from plait.models.mplug2.alignment import MPlug2ForRetrieval
    from plait.models.mplug2.config import MPlug2Config, VisionConfig
    from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel
    from plait.models.mplug2.pretraining import MPlug2ForPreTraining
    from plait.models.mplug2.processor import MPlug2ImageProcessor, MPlug2Processor
    from plait.models.mplug2.skills import MPlug2Skills
    from plait.models.mplug2.tasks import (
        MPlug2ForConditionalGeneration,
        MPlug2ForGrounding,
        MPlug2ForImageClassification,
        MPlug2ForSequenceClassification,
        MPlug2ForVideoClassification,
    )
    from plait.weights.files import Checkpoint

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
    "skills": ("MPlug2Skills", "skills"),
}
"""Module -> the names of it that users import from here."""

_ROLES = {
    "CONFIG": "MPlug2Config",
    "BASE_MODEL": "MPlug2Model",
    "PROCESSOR": "MPlug2Processor",
    "IMAGE_PROCESSOR": "MPlug2ImageProcessor",
    "PLANNER": "plan",
    "SKILLS": "skills",
}
"""What `plait.models.auto` asks every family for -> the class that it is here."""

_HEADS = {
    "AutoModelForImageTextToText": "MPlug2ForConditionalGeneration",
    "AutoModelForImageClassification": "MPlug2ForImageClassification",
    "AutoModelForVideoClassification": "MPlug2ForVideoClassification",
    "AutoModelForSequenceClassification": "MPlug2ForSequenceClassification",
}
"""Auto class of transformers -> the class that it loads."""

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
    "MPlug2Skills",
    "VisionConfig",
]


def is_official(keys: Sequence[str]) -> bool:
    """Whether these are keys of an official mPLUG-2 or mPLUG file.

    Args:
        keys: names of the tensors of a checkpoint, in any order.

    Returns:
        True where a vision encoder stands beside a text encoder or a text decoder under the
            released names.
    """
    # Plait's own directories keep their network under `model.`, which no official file has.
    found = {key.partition(".")[0] for key in keys if not key.startswith("model.")}
    return "visual_encoder" in found and bool({"text_encoder", "text_decoder"} & found)


def from_official(checkpoint: Checkpoint, **options: Any) -> tuple[MPlug2PreTrainedModel, MPlug2Processor]:
    """Model and processor of an official file.

    Args:
        checkpoint: what `plait.weights.files.read_checkpoint` returns.
        options: of `weights.from_official`: `task`, `model_class`, `branch`, `dtype`, `device`,
            `official_config` and fields of `MPlug2Config`.

    Returns:
        The model in evaluation mode, and a processor for its image size, frames and `official`.

    Raises:
        ValueError: for tensors of another model, unknown settings, and keys that are missing or too
            many.
    """
    from plait.models.mplug2 import weights
    from plait.models.mplug2.processor import MPlug2Processor

    model = weights.from_official(checkpoint, **options)
    return model, MPlug2Processor.from_config(model.config)


def from_directory(path: Path, **options: Any) -> tuple[MPlug2PreTrainedModel, MPlug2Processor]:
    """Model and processor of a model directory.

    Args:
        path: a directory written by `save_pretrained`.
        options: of `weights.from_directory`. `image_size`, `num_frames` and `official` change the
            processor too.

    Returns:
        The model in evaluation mode, and the processor stored beside it, or a fresh one where there
            is no tokenizer.

    Raises:
        ValueError: for a field that does not exist, a branch that is not there, and keys that do
            not fit.
    """
    from plait.models.mplug2 import weights
    from plait.models.mplug2.processor import MPlug2Processor

    model = weights.from_directory(path, **options)
    if not (path / "tokenizer.json").exists():
        return model, MPlug2Processor.from_config(model.config)
    # Saved directories name a loader in `auto_map`; nothing that a directory brings is ever executed.
    processor = MPlug2Processor.from_pretrained(path, trust_remote_code=False)
    if "image_size" in options:
        processor.image_processor.size = {"height": model.config.image_size, "width": model.config.image_size}
    processor.num_frames = options.get("num_frames", processor.num_frames)
    processor.official = options.get("official", processor.official)
    return model, processor


__getattr__, __dir__ = lazily(__name__, __all__, _HOMES, _ROLES, heads=_HEADS)
