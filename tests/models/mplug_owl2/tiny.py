"""Tiny models, tokenizers and Llama directories for the tests of this family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor

GOLDENS = Path(__file__).parents[2] / "goldens" / "mplug_owl2"
COLORS = ("red", "green", "navy", "white", "orange")
PROMPTS = (
    "USER: <|image|>What is it? ASSISTANT:",
    "USER: Say something. ASSISTANT:",
    "USER: <|image|> against <|image|> now? ASSISTANT:",
    "USER: a ASSISTANT:",
    "USER: a longer text without any picture at all, a ASSISTANT:",
    "<|image|>ASSISTANT:",
    "USER: look <|image|> ASSISTANT:",
    "x",
)
"""Eight ragged prompts with five images in all."""


def images() -> list[Image.Image]:
    """One image per placeholder of PROMPTS, of different sizes."""
    return [Image.effect_mandelbrot((20 + 9 * i, 50 - 7 * i), (-2, -1, 1, 1), 20 + i).convert("RGB") for i in range(5)]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens behind a start and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<|s|>": 0, "<|end|>": 1, **{c: i + 2 for i, c in enumerate(alphabet)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|s|>", eos_token="<|end|>", pad_token="<|s|>", padding_side="left"
    )


def redraw(model: torch.nn.Module, std: float = 0.25) -> None:
    """Give every parameter, norms included, values that matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + ("norm" in name))


def config(**changes: Any) -> MPlugOwl2Config:
    """A model of two layers with grouped keys, for images of 16 pixels and 3 queries."""
    fields: dict[str, Any] = {
        "vocab_size": 260, "dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48,
        "vision": VisionConfig(dim=16, num_heads=2, num_layers=2, mlp_dim=24, image_size=16, patch_size=4),
        "abstractor": AbstractorConfig(num_queries=3, num_heads=2, num_layers=2, mlp_dim=24, grid_size=4),
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return MPlugOwl2Config(**{**fields, **changes})


def model_and_processor(**changes: Any) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """A random model and its processor."""
    settings = config(**changes)
    model = MPlugOwl2ForConditionalGeneration(settings).eval()
    redraw(model)
    return model, MPlugOwl2Processor.from_config(settings, byte_tokenizer())


def llama_directory(path: Path, *, tie: bool = True, rope: dict[str, Any] | None = None) -> LlamaForCausalLM:
    """A random Llama with grouped keys, its tokenizer beside it."""
    settings = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tie, bos_token_id=0, eos_token_id=1, pad_token_id=0,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 50000.0},
    )  # fmt: skip
    llama = LlamaForCausalLM(settings).eval()
    redraw(llama)
    llama.tie_weights()
    llama.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return llama


def official_directory(path: Path, case: str = "owl2_mm_prefill_decode", **changes: Any) -> Path:
    """A directory laid out as the published ones, with the weights of a golden case, in two shards."""
    path.mkdir()
    official = json.loads((GOLDENS / case / "config.json").read_text())
    kind = "mplug_owl2_1" if "kv_channels" in official else "mplug_owl2"
    (path / "config.json").write_text(json.dumps({"model_type": kind, **official, **changes}))
    state = load_file(GOLDENS / case / "weights.safetensors")
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{number + 1}-of-33.bin"
        torch.save({name: state[name] for name in part}, path / file)
        index |= dict.fromkeys(part, file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (path / "tokenizer.model").write_bytes((GOLDENS / "prompts_tokenize" / "tokenizer.model").read_bytes())
    return path
