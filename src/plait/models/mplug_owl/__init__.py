"""mPLUG-Owl: images and videos into a language model (arXiv 2304.14178).

    config -> model (vision tower -> abstractor -> any causal language model of transformers)
    conversation, processor: prompts, pictures, clips -> tensors        tasks: what an assistant asks, what stages train
    weights: official files, trainer checkpoints, model directories, a bare language model -> model

It chats, captions, answers and ranks answers about images, videos and text. Importing this package loads no torch;
names resolve on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plait.lazy import lazily

if TYPE_CHECKING:
    from pathlib import Path

    from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig
    from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
    from plait.models.mplug_owl.processor import MPlugOwlImageProcessor, MPlugOwlProcessor
    from plait.weights.files import Checkpoint

_HOMES = {
    "config": ("AbstractorConfig", "MPlugOwlConfig", "VisionConfig", "is_official_config"),
    "model": ("MPlugOwlForConditionalGeneration",),
    "processor": ("MPlugOwlImageProcessor", "MPlugOwlProcessor"),
    "tasks": ("MPlugOwlSkills",),
    "weights": ("is_official",),
}
"""Module -> the names of it that users import from here."""

_ROLES = {
    "CONFIG": "MPlugOwlConfig",
    "BASE_MODEL": "MPlugOwlForConditionalGeneration",
    "GENERATIVE_MODEL": "MPlugOwlForConditionalGeneration",
    "PROCESSOR": "MPlugOwlProcessor",
    "IMAGE_PROCESSOR": "MPlugOwlImageProcessor",
    "SKILLS": "MPlugOwlSkills",
}
"""What `plait.models.auto` asks every family for -> the class that it is here."""

__all__ = [
    "AbstractorConfig",
    "MPlugOwlConfig",
    "MPlugOwlForConditionalGeneration",
    "MPlugOwlImageProcessor",
    "MPlugOwlProcessor",
    "VisionConfig",
]


def from_official(
    checkpoint: Checkpoint, *, tokenizer: Any = None, **options: Any
) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """Model and processor of an official file or directory.

    Args:
        checkpoint: what `plait.weights.files.read_checkpoint` gives.
        tokenizer: where no tokenizer.model (LLaMA) or tokenizer.json (BLOOM) lies beside the weights.
        options: of `weights.from_official`: official_config, dtype, device, lora_alpha, fields of `MPlugOwlConfig`.

    Raises:
        ValueError: without a tokenizer, and for weights that do not fit their configuration.
    """
    from plait.models.mplug_owl import weights
    from plait.models.mplug_owl.processor import MPlugOwlProcessor
    from plait.processing.tokenizers import find_tokenizer

    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    # The released processor puts bos before a prompt itself, and none before the pieces between media (section 8).
    tokenizer = tokenizer or find_tokenizer(place, add_bos=False)
    if tokenizer is None:
        raise ValueError(f"expected tokenizer.model or tokenizer.json in {place}, got neither; put it there")
    model = weights.from_official(checkpoint, **options)
    return model, MPlugOwlProcessor.from_config(model.config, tokenizer)


def from_directory(path: Path, **options: Any) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """Model and processor of a model directory.

    Args:
        path: a directory that `save_pretrained` of both wrote.
        options: of `weights.from_directory`: dtype, device, fields of `MPlugOwlConfig`.

    Raises:
        ValueError: for weights that do not fit their configuration.
    """
    from plait.models.mplug_owl import weights
    from plait.models.mplug_owl.processor import MPlugOwlProcessor

    return weights.from_directory(path, **options), MPlugOwlProcessor.from_pretrained(path, trust_remote_code=False)


__getattr__, __dir__ = lazily(__name__, __all__, _HOMES, _ROLES)
