"""mPLUG-Owl2 and mPLUG-Owl2.1: a causal decoder with a way per modality that reads images (arXiv 2311.04257).

    config -> model (vision tower -> abstractor -> decoder with the modality-adaptive module)
    conversation, processor: prompts and pictures -> tensors            tasks: what an assistant asks, what stages train
    weights: official files, Megatron, LoRA outputs, model directories -> model        upcycle: any Llama -> model

It chats, captions, answers and ranks answers about images, videos (as images) and text. Importing this package loads no
torch; names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.lazy import lazily

if TYPE_CHECKING:
    from pathlib import Path

    from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
    from plait.models.mplug_owl2.model import (
        MPlugOwl2ForConditionalGeneration,
        MPlugOwl2Model,
        MPlugOwl2PreTrainedModel,
    )
    from plait.models.mplug_owl2.processor import MPlugOwl2ImageProcessor, MPlugOwl2Processor
    from plait.weights.files import Checkpoint

_HOMES = {
    "config": ("AbstractorConfig", "MPlugOwl2Config", "VisionConfig", "is_official_config"),
    "model": ("MPlugOwl2ForConditionalGeneration", "MPlugOwl2Model", "MPlugOwl2PreTrainedModel"),
    "processor": ("MPlugOwl2ImageProcessor", "MPlugOwl2Processor"),
    "tasks": ("MPlugOwl2Skills",),
    "upcycle": ("write_upcycled",),
    "weights": ("is_official", "with_adapter"),
}
"""Module -> the names of it that users import from here."""

_ROLES = {
    "CONFIG": "MPlugOwl2Config",
    "BASE_MODEL": "MPlugOwl2Model",
    "GENERATIVE_MODEL": "MPlugOwl2ForConditionalGeneration",
    "PROCESSOR": "MPlugOwl2Processor",
    "IMAGE_PROCESSOR": "MPlugOwl2ImageProcessor",
    "SKILLS": "MPlugOwl2Skills",
}
"""What `plait.models.auto` asks every family for -> the class that it is here."""

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


def from_official(
    checkpoint: Checkpoint, *, tokenizer: Any = None, **options: Any
) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """Model and processor of an official file or directory.

    Args:
        checkpoint: what `plait.weights.files.read_checkpoint` gives.
        tokenizer: where no tokenizer.model (Owl2) or qwen.tiktoken (Owl2.1) lies beside the weights.
        options: of `weights.from_official`: official_config, dtype, device, lora, fields of `MPlugOwl2Config`.

    Raises:
        ValueError: without a tokenizer, and for weights that do not fit their configuration.
    """
    from plait.models.mplug_owl2 import weights
    from plait.models.mplug_owl2.processor import MPlugOwl2Processor
    from plait.processing.tokenizers import find_tokenizer

    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    tokenizer = tokenizer or find_tokenizer(place)
    if tokenizer is None:
        raise ValueError(f"expected tokenizer.model or qwen.tiktoken in {place}, got neither; put it there")
    model = weights.from_official(checkpoint, **options)
    # Owl2.1 was tuned to end in the text "</s>", which is no token of Qwen's.
    return model, MPlugOwl2Processor.from_config(model.config, tokenizer, answer_end="</s>")


def from_directory(path: Path, **options: Any) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """Model and processor of a model directory.

    Args:
        path: a directory that `save_pretrained` of both wrote.
        options: of `weights.from_directory`: dtype, device, fields of `MPlugOwl2Config`.

    Raises:
        ValueError: for weights that do not fit their configuration.
    """
    from plait.models.mplug_owl2 import weights
    from plait.models.mplug_owl2.processor import MPlugOwl2Processor

    return weights.from_directory(path, **options), MPlugOwl2Processor.from_pretrained(path, trust_remote_code=False)


__getattr__, __dir__ = lazily(__name__, __all__, _HOMES, _ROLES)
