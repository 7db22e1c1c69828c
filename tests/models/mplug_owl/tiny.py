"""Tiny models and prompts for the tests of this family."""

from __future__ import annotations

from typing import Any

from PIL import Image

from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor

from ..mplug_owl2.tiny import byte_tokenizer, redraw

LLAMA = {
    "model_type": "llama", "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
BLOOM = {"model_type": "bloom", "vocab_size": 260, "hidden_size": 32, "n_layer": 2, "n_head": 4}
TEXTS = {"llama": LLAMA, "bloom": BLOOM}
PROMPTS = (
    "Human: <image>\nHuman: What is it?\nAI: ",
    "Human: Say something.\nAI: ",
    "Human: <image><image>\nHuman: Which?\nAI: ",
    "Human: <|video|>\nHuman: And here, beside <image>?\nAI: ",
    "x",
)
"""Five ragged prompts with four images and a video."""


def images(count: int = 4) -> list[Image.Image]:
    """Pictures of different sizes."""
    return [
        Image.effect_mandelbrot((20 + 9 * i, 50 - 7 * i), (-2, -1, 1, 1), 20 + i).convert("RGB") for i in range(count)
    ]


def video(count: int = 3) -> list[Image.Image]:
    """Frames of one size."""
    return [Image.effect_mandelbrot((24, 20), (-2 + 0.2 * i, -1, 1, 1), 20).convert("RGB") for i in range(count)]


def config(text: str = "llama", **changes: Any) -> MPlugOwlConfig:
    """A model of two layers that reads clips, for images of 16 pixels and 3 queries."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    fields: dict[str, Any] = {
        "text_config": {**TEXTS[text], **ids},
        "vision": VisionConfig(dim=16, num_heads=2, num_layers=2, mlp_dim=24, image_size=16, patch_size=4),
        "abstractor": AbstractorConfig(num_queries=3, num_heads=2, num_layers=2, mlp_dim=24),
        "temporal": True,
    }
    return MPlugOwlConfig(**{**fields, **changes})


def model_and_processor(
    text: str = "llama", **changes: Any
) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """A model with weights that matter, and its processor."""
    model = MPlugOwlForConditionalGeneration(config(text, **changes)).eval()
    redraw(model)
    return model, MPlugOwlProcessor.from_config(model.config, byte_tokenizer(), num_frames=3)
