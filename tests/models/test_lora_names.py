"""A LoRA set up with the names that everybody types, and what it may not pull apart."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import plait
from plait.errors import UsageError
from plait.models.merge import merge
from plait.weights.files import StateError

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny

# PEFT asks transformers in words of its own last version, and warns of the very ties that are tried here.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def build(name: str, *, tied: bool = False) -> tuple[Any, Any]:
    if name == "owl2":
        made = owl2_tiny.model_and_processor(tie_word_embeddings=tied)
    else:
        sizes = {"model_type": "llama", "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
        text = {"text_config": {**sizes, "pad_token_id": 0, "tie_word_embeddings": tied}}
        made = owl_tiny.model_and_processor(**(text if tied else {}))
    made[0].tie_weights()
    return made


@pytest.mark.parametrize("name", ["owl", "owl2"])
def test_the_usual_names_reach_inside_ways(name: str, tmp_path: Path) -> None:
    model, processor = build(name)
    base = copy.deepcopy(model)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    found = {n.split(".lora_A")[0] for n, _ in tuned.named_parameters() if ".lora_A" in n}
    assert {n.split("_proj")[0].rpartition(".")[2] for n in found} == {"q", "v"}
    if name == "owl2":  # values are routed: each of their ways has an adapter, also the one of images
        ways = {n.rpartition(".")[2] for n in found if "decoder" in n and "v_proj" in n}
        assert ways == set(base.model.decoder.layers[0].attn.v_proj)
    batch = processor(text="hello")
    want = tuned(**batch).logits
    tuned.save_pretrained(tmp_path / "adapter")
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    loaded, _ = plait.load(tmp_path / "base", adapter=tmp_path / "adapter")
    assert torch.allclose(loaded(**batch).logits, want, atol=1e-4)
    assert not torch.allclose(base(**batch).logits, want, atol=1e-2)
    with pytest.raises(UsageError, match="got the adapter"):
        plait.load(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["owl", "owl2"])
def test_tied_tables_stay_together_or_are_refused(name: str, tmp_path: Path) -> None:
    model, processor = build(name, tied=True)
    table = "token_embedding" if name == "owl2" else "embed_tokens"
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    batch = processor(text="hello")
    for ensured, whole in ((True, [table]), (False, [table]), (False, ["lm_head"]), (False, ["lm_head", table])):
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=whole, ensure_weight_tying=ensured)
        tuned = get_peft_model(plait.load(tmp_path / "base")[0], config)
        with torch.no_grad():
            for n, parameter in tuned.named_parameters():
                if "modules_to_save" in n:
                    parameter.add_(torch.ones_like(parameter))
        place = tmp_path / f"{ensured}{len(whole)}{whole[0]}"
        tuned.save_pretrained(place / "adapter")
        if not ensured:
            with pytest.raises(StateError, match="ensure_weight_tying"):
                plait.load(tmp_path / "base", adapter=place / "adapter")
            with pytest.raises(StateError, match="ensure_weight_tying"):
                merge(tmp_path / "base", place / "adapter", place / "merged")
            continue
        want = tuned(**batch).logits
        merge(tmp_path / "base", place / "adapter", place / "merged")
        for loaded in (plait.load(place / "merged"), plait.load(tmp_path / "base", adapter=place / "adapter")):
            assert torch.allclose(loaded[0](**batch).logits, want, atol=1e-4)
