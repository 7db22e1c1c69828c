"""mPLUG-Owl as `plait.models.auto` sees it: recognise its files, build model and processor together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.models.mplug_owl import weights
from plait.models.mplug_owl.config import MPlugOwlConfig, is_official_config
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlImageProcessor, MPlugOwlProcessor
from plait.models.mplug_owl.tasks import MPlugOwlSkills
from plait.models.mplug_owl.weights import is_official
from plait.processing.tokenizers import llama_tokenizer
from plait.weights.files import Checkpoint

CONFIG, BASE_MODEL, PROCESSOR = MPlugOwlConfig, MPlugOwlForConditionalGeneration, MPlugOwlProcessor
IMAGE_PROCESSOR, GENERATIVE_MODEL = MPlugOwlImageProcessor, MPlugOwlForConditionalGeneration
SKILLS = MPlugOwlSkills

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
]


def from_official(
    checkpoint: Checkpoint, *, tokenizer: Any = None, **options: Any
) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """Model and processor of an official file or directory; options of `loading.from_official`.

    tokenizer: where no tokenizer.model (LLaMA) or tokenizer.json (BLOOM) lies beside the weights. Raises ValueError
    without one.
    """
    place = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    tokenizer = tokenizer or find_tokenizer(place)
    if tokenizer is None:
        raise ValueError(f"expected tokenizer.model or tokenizer.json in {place}, got neither; put it there")
    model = weights.from_official(checkpoint, **options)
    return model, MPlugOwlProcessor.from_config(model.config, tokenizer)


def from_directory(path: Path, **options: Any) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """Model and processor of a model directory; options of `loading.from_directory`."""
    return weights.from_directory(path, **options), MPlugOwlProcessor.from_pretrained(path, trust_remote_code=False)


def find_tokenizer(directory: Path) -> Any:
    """The tokenizer that lies in a directory, None where there is none."""
    if (directory / "tokenizer.json").exists():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    return llama_tokenizer(directory, add_bos=False) if (directory / "tokenizer.model").exists() else None
