"""mPLUG-2 as `plait.models.auto` sees it: recognise its files, build model and processor together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.models.mplug2 import plan, weights
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel
from plait.models.mplug2.processor import MPlug2ImageProcessor, MPlug2Processor
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForImageClassification,
    MPlug2ForSequenceClassification,
    MPlug2ForVideoClassification,
    MPlug2Skills,
)
from plait.models.mplug2.weights import is_official
from plait.weights.files import Checkpoint

CONFIG, BASE_MODEL, PROCESSOR = MPlug2Config, MPlug2Model, MPlug2Processor
IMAGE_PROCESSOR, SKILLS, PLANNER = MPlug2ImageProcessor, MPlug2Skills, plan

HEADS = {
    "AutoModelForImageTextToText": MPlug2ForConditionalGeneration,
    "AutoModelForImageClassification": MPlug2ForImageClassification,
    "AutoModelForVideoClassification": MPlug2ForVideoClassification,
    "AutoModelForSequenceClassification": MPlug2ForSequenceClassification,
}
"""Auto class of transformers -> the class it loads."""

__all__ = [
    "BASE_MODEL",
    "CONFIG",
    "HEADS",
    "IMAGE_PROCESSOR",
    "PLANNER",
    "PROCESSOR",
    "SKILLS",
    "from_directory",
    "from_official",
    "is_official",
    "processor_for",
]


def processor_for(config: MPlug2Config, **options: Any) -> MPlug2Processor:
    """A processor that makes what a model of this configuration takes; options of `MPlug2Processor.build`."""
    own: dict[str, Any] = {
        "num_frames": config.num_frames,
        "max_text_tokens": min(64, config.max_positions),
        "official": bool(config.official),
    }
    return MPlug2Processor.build(config.image_size, **{**own, **options})


def from_official(checkpoint: Checkpoint, **options: Any) -> tuple[MPlug2PreTrainedModel, MPlug2Processor]:
    """Model and processor of an official file; options of `loading.from_official`."""
    model = weights.from_official(checkpoint, **options)
    return model, processor_for(model.config)


def from_directory(path: Path, **options: Any) -> tuple[MPlug2PreTrainedModel, MPlug2Processor]:
    """Model and processor of a model directory; options of `loading.from_directory`.

    The processor follows changed fields: image size, frames and `official`.
    """
    model = weights.from_directory(path, **options)
    if not (path / "tokenizer.json").exists():
        return model, processor_for(model.config)
    processor = MPlug2Processor.from_pretrained(path, trust_remote_code=False)
    if "image_size" in options:
        processor.image_processor.size = {"height": model.config.image_size, "width": model.config.image_size}
    processor.num_frames = options.get("num_frames", processor.num_frames)
    processor.official = options.get("official", processor.official)
    return model, processor
