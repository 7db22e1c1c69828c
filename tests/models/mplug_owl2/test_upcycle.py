"""An upcycled Llama answers text exactly as its source: grouped keys, tied heads, long-context rotary scaling."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

import plait
from plait.cli import main
from plait.models.mplug_owl2.config import VisionConfig
from plait.models.mplug_owl2.upcycle import upcycle

from .tiny import byte_tokenizer, images, llama_directory, redraw

SMALL = VisionConfig(dim=16, num_heads=2, num_layers=1, mlp_dim=24, image_size=16, patch_size=4)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("routed", [("norm", "k", "v"), ("norm", "q", "k", "v", "out", "mlp"), ()])
@pytest.mark.parametrize(("tie", "rope"), [(True, None), (False, None), (False, LLAMA3)])
def test_text_logits_equal_the_source_exactly(tmp_path, tie, rope, routed, attn) -> None:
    llama = llama_directory(tmp_path, tie=tie, rope=rope)
    model, _ = upcycle(tmp_path, vision=SMALL, routed=routed)
    llama.set_attn_implementation(attn)
    model.set_attn_implementation(attn)
    ids = torch.randint(2, 258, (2, 21))
    assert torch.equal(model(ids).logits, llama(ids).logits)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), llama.generate(ids, **options))


SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "eos_token_id": 1,
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES, num_key_value_heads=2),
        Qwen2Config(**SIZES, num_key_value_heads=4, tie_word_embeddings=True),
        MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
        MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=None, head_dim=16, tie_word_embeddings=True),
        LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    ],
    ids=["qwen2", "qwen2 tied", "mistral", "mistral of wide heads", "llama with biases"],
)
def test_relatives_with_biases_or_other_heads_upcycle_too(tmp_path, config) -> None:
    source = AutoModelForCausalLM.from_config(config).eval()
    redraw(source)
    source.tie_weights()
    source.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, _ = upcycle(tmp_path, vision=SMALL)
    source.set_attn_implementation("sdpa")
    model.set_attn_implementation("sdpa")
    ids = torch.randint(2, 258, (2, 9))
    assert torch.equal(model(ids).logits, source(ids).logits)


def test_every_way_begins_as_the_source(tmp_path) -> None:
    llama_directory(tmp_path)
    model, _ = upcycle(tmp_path, vision=SMALL, ways={"text": ["text"], "visual": ["image"], "audio": ["audio"]})
    state = model.state_dict()
    keys = [key for key in state if ".text." in key]
    assert len(keys) == 2 * 4
    for key in keys:
        assert all(torch.equal(state[key], state[key.replace(".text.", f".{w}.")]) for w in ("visual", "audio"))


@torch.no_grad()
def test_a_clip_tower_keeps_its_features(tmp_path) -> None:
    llama_directory(tmp_path / "llama")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    clip = CLIPVisionModel(config).eval()
    redraw(clip)
    clip.save_pretrained(tmp_path / "clip")
    model, _ = upcycle(tmp_path / "llama", vision=tmp_path / "clip")
    pixels = torch.randn(2, 3, 16, 16)
    from plait.nn.attention import attention_function

    hidden: list[torch.Tensor] = []
    model.model.vision(pixels, attention_function("sdpa"), hidden)
    torch.testing.assert_close(hidden[-1], clip(pixels).last_hidden_state, atol=1e-4, rtol=1e-4)
    larger, _ = upcycle(tmp_path / "llama", vision=tmp_path / "clip", image_size=32)
    assert larger.model.encode_images(torch.randn(1, 3, 32, 32)).shape == (1, 65, 32)


def test_the_verb_writes_a_model_that_takes_images(tmp_path, capsys) -> None:
    llama = llama_directory(tmp_path / "llama")
    arguments = ["upcycle", str(tmp_path / "llama"), str(tmp_path / "owl"), "--small-vision", "--image-size", "32"]
    assert main([*arguments, "--queries", "5"]) == 0
    model, processor = plait.load(tmp_path / "owl")
    batch = processor(text="USER: <|image|>hi ASSISTANT:", images=images()[:1])
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] <= batch["input_ids"].shape[1] + 2
    ids = torch.randint(2, 258, (1, 9))
    assert torch.equal(model(ids).logits, llama(ids).logits)
    assert main([*arguments]) == 2
    assert "expected a directory that does not exist yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "expected a model of llama, mistral, qwen2"),
        ({"hidden_act": "gelu"}, "expected hidden_act 'silu'"),
        ({"model_type": "mistral", "sliding_window": 16}, "expected full attention"),
    ],
)
def test_a_source_that_is_no_llama_is_one_clear_line(tmp_path, change, message) -> None:
    llama_directory(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | change))
    with pytest.raises(ValueError, match=message):
        upcycle(tmp_path, vision=SMALL)


@torch.no_grad()
def test_the_verb_takes_the_tower_of_a_whole_clip(tmp_path, capsys) -> None:
    llama = llama_directory(tmp_path / "llama")
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    CLIPModel(CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1})).save_pretrained(tmp_path / "clip")
    call = ["upcycle", str(tmp_path / "llama"), str(tmp_path / "owl"), "--vision", str(tmp_path / "clip")]
    assert main([*call, "--queries", "3"]) == 0
    model, processor = plait.load(tmp_path / "owl")
    ids = torch.randint(2, 258, (1, 9))
    assert torch.equal(model(ids).logits, llama(ids).logits)
    assert processor.image_processor.size["height"] == 16
    assert main([*call[:2], str(tmp_path / "other"), *call[3:], "--image-size", "18"]) == 1
    assert "expected images of a positive multiple of 4 pixels, got 18" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vision", "{llama}"], "expected a CLIP vision tower in .*, got 'llama' without image_size"),
        (["--vision", "{llama}/none"], "expected a transformers directory with config.json and a CLIP, got"),
        (["--small-vision", "--image-size", "33"], "expected images of a positive multiple of 16 pixels .*, got 33"),
        (["--small-vision", "--queries", "0"], "at least 1 query, got 128 and 0"),
        (["--small-vision", "--routed", "norm foo"], "expected routed parts among norm, q, k, v, out, mlp, got foo"),
    ],
)
def test_a_tower_that_does_not_fit_is_one_clear_line(tmp_path, capsys, options, message) -> None:
    llama_directory(tmp_path / "llama")
    capsys.readouterr()
    asked = [option.replace("{llama}", str(tmp_path / "llama")) for option in options]
    assert main(["upcycle", str(tmp_path / "llama"), str(tmp_path / "owl"), *asked]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line) and not (tmp_path / "owl").exists()


def test_a_source_without_tokenizer_is_one_clear_line(tmp_path, capsys) -> None:
    llama_directory(tmp_path / "llama")
    for file in (tmp_path / "llama").glob("tokenizer*"):
        file.unlink()
    capsys.readouterr()
    assert main(["upcycle", str(tmp_path / "llama"), str(tmp_path / "owl"), "--small-vision"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected a tokenizer in" in line and "tokenizer.json" in line


def test_no_directory_is_one_clear_line(tmp_path, capsys) -> None:
    assert main(["upcycle", str(tmp_path / "none"), str(tmp_path / "owl")]) == 1
    assert "no such file or directory; check the path" in capsys.readouterr().err
