"""Official directories and files: both variants, Megatron, LoRA outputs, conversion; one line for what does not fit."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.cli import main
from plait.models.convert import convert
from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.weights import key_map, official_names
from plait.parity.run import runner_module
from plait.weights.files import LazyState, StateError

from .tiny import GOLDENS, official_directory

both_ways = runner_module("key_lists").both_ways
config_of = runner_module("mplug_owl2").config_of
expand_placeholders = runner_module("mplug_owl2_model").expand_placeholders
CASES = ["owl2_mm_prefill_decode", "owl21_mm_prefill_decode", "owl21_mm_multiway"]


def stored_logits(case: str):
    tensors = load_file(GOLDENS / case / "tensors.safetensors")
    return tensors["in.input_ids"], tensors["in.images"], tensors["out.logits"]


def logits(model, case: str) -> torch.Tensor:
    ids, pixels, _ = stored_logits(case)
    made = expand_placeholders(
        ids, pixels, tokens_per_image=model.config.tokens_per_image, image_token_id=model.config.image_token
    )
    with torch.no_grad():
        return model(made.input_ids, pixel_values=made.pixel_values).logits


@pytest.mark.parametrize("case", CASES)
def test_an_official_directory_loads_by_its_keys(tmp_path, case) -> None:
    model, processor = plait.load(official_directory(tmp_path / "owl", case))
    torch.testing.assert_close(logits(model, case), stored_logits(case)[2], atol=2e-5, rtol=1e-4)
    assert processor.tokens_per_image == model.config.tokens_per_image
    assert processor.encode("USER: <|image|>hi")[:2] == [1, 375]


def test_the_keys_and_not_the_config_say_whether_ways_exist(tmp_path) -> None:
    case = "owl21_mm_multiway"
    model, _ = plait.load(official_directory(tmp_path / "owl", case, multiway=False))
    assert model.config.routed == ["q", "k", "v"]
    torch.testing.assert_close(logits(model, case), stored_logits(case)[2], atol=2e-5, rtol=1e-4)


def test_what_transformers_wrote_around_a_config_says_nothing(tmp_path) -> None:
    clutter = {"tokenizer_class": "QWenTokenizer", "is_decoder": False, "top_k": 50, "id2label": {"0": "LABEL_0"}}
    model, _ = plait.load(official_directory(tmp_path / "owl", "owl21_mm_prefill_decode", **clutter))
    assert model.config.trained_length == 64
    with pytest.raises(ValueError, match=r"known field in the official config\.json, got 'beams_of_light'"):
        plait.load(official_directory(tmp_path / "other", "owl21_mm_prefill_decode", beams_of_light=3))


def test_tables_take_the_rows_of_the_file(tmp_path) -> None:
    model, _ = plait.load(official_directory(tmp_path / "owl", "owl21_mm_prefill_decode", vocab_size=4000))
    assert model.config.vocab_size == 208 and model.config.image_id == 208


@pytest.mark.parametrize("case", CASES)
def test_converting_there_and_back_is_bit_exact(case) -> None:
    state = load_file(GOLDENS / case / "weights.safetensors")
    config = MPlugOwl2Config.from_official(json.loads((GOLDENS / case / "config.json").read_text()), state)
    native, report = key_map(config).forward(state)
    back = key_map(config).backward(native)
    # Sine tables are no weights: they are computed, and the power function of NumPy rounds by processor. They are as
    # close as their own golden case asks; every weight comes back bit for bit.
    tables = [key for key in state if key.endswith("_pos_embed")]
    assert all(torch.equal(back[key], state[key]) for key in state if key not in tables)
    for key in tables:
        torch.testing.assert_close(back[key], state[key], atol=1e-5, rtol=1e-5)
    assert set(back) - set(state) <= {key for key in back if key.endswith(("inv_freq", "pos_embed"))}
    assert all(report.dropped.values())


@pytest.mark.parametrize("case", CASES)
def test_convert_writes_a_directory_with_the_same_answers(tmp_path, case, capsys) -> None:
    source = official_directory(tmp_path / "owl", case)
    assert main(["convert", str(source), str(tmp_path / "out"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["added"] == [] and all(key.endswith(("inv_freq", "pos_embed")) for key in done["dropped"])
    model, processor = plait.load(tmp_path / "out")
    torch.testing.assert_close(logits(model, case), stored_logits(case)[2], atol=2e-5, rtol=1e-4)
    assert processor.encode("a</s>USER: b") == plait.load(source)[1].encode("a</s>USER: b")


@pytest.mark.parametrize("name", ["owl2_llama2_7b", "owl21_qwen7b", "owl21_qwen7b_multiway"])
def test_every_published_key_is_explained_both_ways(name) -> None:
    with gzip.open(GOLDENS / f"keys.{name}.json.gz") as file:
        keys = json.load(file)["keys"]
    assert both_ways(keys, key_map(config_of(keys))) is True
    assert "model.stranger" in str(both_ways({**keys, "model.stranger": [1]}, key_map(config_of(keys))))


def test_a_megatron_checkpoint_converts_to_the_same_model(tmp_path) -> None:
    case = CASES[0]
    with gzip.open(GOLDENS / "megatron_mapping.json.gz") as file:
        mapping = json.load(file)["mapping"]
    nested: dict = {"iteration": 3, "args": None}
    for key, value in load_file(GOLDENS / case / "weights.safetensors").items():
        if mapping.get(key, "computed") == "computed":
            continue
        inner = nested
        for part in mapping[key][:-1]:
            inner = inner.setdefault(part, {})
        inner[mapping[key][-1]] = value
    directory = tmp_path / "mp_rank_00"
    directory.mkdir()
    torch.save(nested, directory / "model_optim_rng.pt")
    (directory / "tokenizer.model").write_bytes((GOLDENS / "prompts_tokenize" / "tokenizer.model").read_bytes())
    official = json.loads((GOLDENS / case / "config.json").read_text())
    done = convert(directory / "model_optim_rng.pt", tmp_path / "out", official_config=official)
    assert done.model_type == "mplug_owl2" and done.dropped == {} and done.added == ()
    model, _ = plait.load(tmp_path / "out")
    torch.testing.assert_close(logits(model, case), stored_logits(case)[2], atol=2e-5, rtol=1e-4)


def test_a_megatron_name_of_another_layout_is_refused() -> None:
    names = ["vision_abstractor.vit_eos", "optimizer.step"]
    with pytest.raises(StateError, match=r"got 1 others: optimizer\.step"):
        official_names(LazyState(dict.fromkeys(names, lambda: torch.zeros(1))))


def test_lora_outputs_merge_into_the_base(tmp_path) -> None:
    base = official_directory(tmp_path / "owl")
    target = "model.layers.0.self_attn.k_proj.multiway.1"
    down, up, eos = torch.randn(2, 32), torch.randn(32, 2), torch.randn(1, 1, 32)
    output = tmp_path / "lora"
    output.mkdir()
    (output / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    names = {f"base_model.model.{target}.lora_A.weight": down, f"base_model.model.{target}.lora_B.weight": up}
    torch.save(names, output / "adapter_model.bin")
    torch.save({"base_model.model.model.visual_abstractor.vit_eos": eos}, output / "non_lora_trainables.bin")
    plain, _ = plait.load(base)
    model, _ = plait.load(base, lora=output)
    changed = model.model.decoder.layers[0].attn.k_proj["visual"].weight
    before = plain.model.decoder.layers[0].attn.k_proj["visual"].weight
    torch.testing.assert_close(changed, before + 4 * up @ down)
    assert torch.equal(model.model.abstractor.end, eos)
    differing = [n for (n, a), b in zip(plain.named_parameters(), model.parameters()) if not torch.equal(a, b)]
    assert differing == ["model.abstractor.end", "model.decoder.layers.0.attn.k_proj.visual.weight"]
    torch.save({"base_model.model.other.lora_A.weight": down}, output / "adapter_model.bin")
    with pytest.raises(
        StateError, match=r"expected an adapter of this base .* got 1 of 1 weights that it does not have: other\.weight"
    ):
        plait.load(base, lora=output)
    with pytest.raises(ValueError, match=r"expected adapter_config\.json"):
        plait.load(base, lora=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "got 'surprise'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'silu'"),
        ({"pretraining_tp": 2}, "pretraining_tp = 1"),
    ],
)
def test_config_fields_no_published_model_has_are_refused(tmp_path, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        plait.load(official_directory(tmp_path / "owl", **change))


def test_an_owl21_without_seq_length_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="expected seq_length"):
        plait.load(official_directory(tmp_path / "owl", CASES[1], seq_length=None))


def test_missing_and_unknown_keys_are_listed(tmp_path) -> None:
    place = official_directory(tmp_path / "owl")
    index = json.loads((place / "pytorch_model.bin.index.json").read_text())
    del index["weight_map"]["model.layers.1.self_attn.o_proj.weight"]
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(StateError, match=r"1 missing: model\.decoder\.layers\.1\.attn\.o_proj\.weight"):
        plait.load(place)


def test_weights_without_a_tokenizer_or_config_are_refused(tmp_path) -> None:
    place = official_directory(tmp_path / "owl")
    (place / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"expected tokenizer\.model or qwen\.tiktoken"):
        plait.load(place)
    with pytest.raises(ValueError, match="expected no branch"):
        plait.load(official_directory(tmp_path / "b"), branch=("image",))
