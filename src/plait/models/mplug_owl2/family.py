"""mPLUG-Owl2 as `plait.models.auto` sees it: recognise its files, build model and processor together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.models.mplug_owl2 import weights
from plait.models.mplug_owl2.config import MPlugOwl2Config, is_official_config
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration, MPlugOwl2Model
from plait.models.mplug_owl2.processor import MPlugOwl2ImageProcessor, MPlugOwl2Processor, find_tokenizer
from plait.models.mplug_owl2.tasks import MPlugOwl2Skills
from plait.models.mplug_owl2.weights import is_official, with_adapter
from plait.weights.files import Checkpoint

CONFIG, BASE_MODEL, PROCESSOR = MPlugOwl2Config, MPlugOwl2Model, MPlugOwl2Processor
IMAGE_PROCESSOR, GENERATIVE_MODEL = MPlugOwl2ImageProcessor, MPlugOwl2ForConditionalGeneration
SKILLS = MPlugOwl2Skills

__all__ = [
    "BASE_MODEL",
    "CONFIG",
    "GENERATIVE_MODEL",
    "IMAGE_PROCESSOR",
    "PROCESSOR",
    "SKILLS",
    "from_directory",
    "from_official",
    "is_official",
    "is_official_config",
    "with_adapter",
]


def from_official(
    checkpoint: Checkpoint, *, tokenizer: Any = None, **options: Any
) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """Model and processor of an official file or directory; options of `loading.from_official`.

    tokenizer: where no tokenizer.model or qwen.tiktoken lies beside the weights. Raises ValueError without one.
    """
    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    tokenizer = tokenizer or find_tokenizer(place)
    if tokenizer is None:
        raise ValueError(f"expected tokenizer.model or qwen.tiktoken in {place}, got neither; put it there")
    model = weights.from_official(checkpoint, **options)
    return model, MPlugOwl2Processor.from_config(model.config, tokenizer, answer_end="</s>")


def from_directory(path: Path, **options: Any) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """Model and processor of a model directory; options of `loading.from_directory`."""
    return weights.from_directory(path, **options), MPlugOwl2Processor.from_pretrained(path, trust_remote_code=False)
