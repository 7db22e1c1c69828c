"""An untrained mPLUG-Owl around any causal language model: what stage 1 begins with.

directory of a language model -> its weights, a fresh or given vision tower, a fresh abstractor -> model, processor
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from plait.errors import no_code_of
from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig
from plait.models.mplug_owl.language_model import adopt, build_language_model
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.nn.vit import clip_tower


def around(
    llm: str | Path,
    *,
    vision: VisionConfig | str | Path | None = None,
    abstractor: AbstractorConfig | None = None,
    temporal: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """Model and processor around the causal language model in the directory `llm`, whose weights are kept.

    vision: sizes of a fresh tower, or a transformers directory of a CLIP vision model to copy, at `image_size` pixels;
    abstractor: its sizes; temporal: whether it reads clips; seed: of what is fresh. Raises ValueError for a directory
    without a language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = Path(llm)
    _check_talks(llm)
    tower = None
    if isinstance(vision, str | Path):
        found, tower = clip_tower(Path(vision), image_size)
        found.pop("activation")  # QuickGELU, as all published towers
        vision = VisionConfig(**found)
    with no_code_of(llm):
        tokenizer: Any = AutoTokenizer.from_pretrained(llm, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype or torch.float32, trust_remote_code=False)
    config = MPlugOwlConfig(
        text_config=language_model.config.to_dict(), vision=vision, abstractor=abstractor, temporal=temporal,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            shell = build_language_model(config.text_sizes)
        model = MPlugOwlForConditionalGeneration(config, shell)
    model.language_model = adopt(language_model)
    model.set_attn_implementation("sdpa")
    if tower is not None:
        missing, unexpected = model.vision.load_state_dict(tower, strict=False)
        strangers = [key for key in missing if ".temporal." not in key] + list(unexpected)
        if strangers:
            raise ValueError(f"expected a CLIP tower in {vision}, got others: {strangers[0]}")
    model.generation_config = type(model.generation_config).from_model_config(config)
    return model.to(dtype).eval(), MPlugOwlProcessor.from_config(config, tokenizer)


def _check_talks(llm: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not (llm / "config.json").is_file():
        raise ValueError(f"expected a transformers directory of a language model, got {llm}; pass llm=DIR")
    kind = json.loads((llm / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"expected a causal language model of transformers in {llm}, got {kind}; pass llm=DIR")
