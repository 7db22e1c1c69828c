"""Official files: hub layout, trainer checkpoints with both spellings of LoRA, what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.cli import main
from plait.models.auto import load
from plait.models.mplug_owl.config import config_fields, is_official_config
from plait.models.mplug_owl.weights import WRAPPER, from_official, is_official, plain_names
from plait.weights.files import LazyState, StateError, read_checkpoint

from ..mplug_owl2.tiny import GOLDENS, byte_tokenizer

OWL = GOLDENS.parent / "mplug_owl"


@pytest.fixture
def hub(tmp_path):
    """A directory like those on the hub: sharded pickles with an index, rotary buffers, a tokenizer."""
    place = tmp_path / "hub"
    place.mkdir()
    state = load_file(OWL / "generate_greedy" / "weights.safetensors")
    state["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names = sorted(state)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, keys in halves.items():
        torch.save({key: state[key] for key in keys}, place / file)
    index = {"weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (place / "config.json").write_bytes((OWL / "generate_greedy" / "config.json").read_bytes())
    byte_tokenizer().save_pretrained(place)
    return place


def test_a_hub_directory_loads_and_becomes_a_model_directory(hub, tmp_path) -> None:
    model, processor = load(hub)
    assert processor.tokens_per_media == 7 and model.config.media_ids == (200, 201)
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    again, _ = load(tmp_path / "out")
    ids = torch.tensor([[1, 5, *[200] * 7, 9]])
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(again(ids, pixel_values=pixels).logits, model(ids, pixel_values=pixels).logits)
    (hub / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"expected tokenizer\.model or tokenizer\.json"):
        load(hub)


@pytest.mark.parametrize("newer", [False, True])
def test_a_trainer_checkpoint_is_unwrapped_and_its_lora_merged(tmp_path, newer) -> None:
    case = OWL / "lora_merge"
    stored = load_file(case / "weights.safetensors")
    wrapped = {}
    for key, value in stored.items():
        plain = key.removeprefix(WRAPPER)
        if ".lora_" in plain:
            plain = plain.replace(".weight", ".default.weight")
        elif newer and f"{WRAPPER}{plain.replace('.weight', '.lora_A.weight')}" in stored:
            plain = plain.replace(".weight", ".base_layer.weight")
        wrapped[WRAPPER + plain] = value
    file = tmp_path / "pytorch_model.bin"
    torch.save(wrapped, file)
    checkpoint = read_checkpoint(file)
    assert is_official(checkpoint.state)
    config = json.loads((case / "config.json").read_text())
    reference = from_official(read_checkpoint(case / "weights.safetensors"), official_config=config)
    model = from_official(checkpoint, official_config=config)
    for name, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    weight = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[weight], stored[weight])


@pytest.mark.parametrize("alpha", [None, 8])
def test_convert_tells_the_factor_of_the_adapters_it_merged(tmp_path, capsys, alpha) -> None:
    stored, place = load_file(OWL / "lora_merge" / "weights.safetensors"), tmp_path / "checkpoint-500"
    place.mkdir()
    torch.save(
        {WRAPPER + key.removeprefix(WRAPPER): value for key, value in stored.items()}, place / "pytorch_model.bin"
    )
    config = json.loads((OWL / "lora_merge" / "config.json").read_text())
    config["lora"] = {} if alpha is None else {"lora_alpha": alpha}
    (place / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(place)
    assert main(["convert", str(place), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"note: merged 2 LoRA adapters with lora_alpha {alpha or 32}, as" in said
    assert ("the file does not say" in said) is (alpha is None)
    weight = "language_model.model.layers.0.self_attn.q_proj.weight"
    down, up = (stored[f"{WRAPPER}{weight.replace('.weight', f'.lora_{x}.weight')}"] for x in "AB")
    merged = load(tmp_path / "out")[0].state_dict()[weight]
    torch.testing.assert_close(merged, stored[weight] + (alpha or 32) / len(down) * up @ down)


def test_an_adapter_without_its_base_is_refused() -> None:
    stored = load_file(OWL / "lora_merge" / "weights.safetensors")
    alone = {key: (lambda value=value: value) for key, value in stored.items() if ".lora_" in key}
    with pytest.raises(StateError, match="expected a base weight for every adapter"):
        plain_names(LazyState(alone))


def test_a_bare_file_is_sized_by_its_weights(tmp_path) -> None:
    state = load_file(OWL / "video_generate" / "weights.safetensors")
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((OWL / "video_generate" / "config.json").read_text())
    model = from_official(read_checkpoint(tmp_path / "model.safetensors"))
    known = from_official(read_checkpoint(OWL / "video_generate" / "weights.safetensors"), official_config=config)
    assert model.config.temporal and {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in known.state_dict().items()
    }


def test_a_key_too_many_or_too_few_is_named(tmp_path) -> None:
    state = load_file(OWL / "generate_greedy" / "weights.safetensors")
    config = json.loads((OWL / "generate_greedy" / "config.json").read_text())
    del state["abstractor.vit_eos"]
    save_file(state, tmp_path / "few.safetensors")
    with pytest.raises(StateError, match=r"1 missing: abstractor\.end"):
        from_official(read_checkpoint(tmp_path / "few.safetensors"), official_config=config)


def test_configs_that_cannot_be_are_refused() -> None:
    assert is_official_config({"model_type": "mplug-owl"}) and not is_official_config({"model_type": "mplug_owl"})
    odd = {"visual_abstractor_config": {"hidden_size": 8, "encoder_hidden_size": 16}}
    with pytest.raises(ValueError, match="expected encoder_hidden_size = hidden_size"):
        config_fields(odd, {})
    with pytest.raises(ValueError, match="expected an abstractor as wide as the tower, got 8 and 1024"):
        config_fields({"visual_abstractor_config": {"hidden_size": 8}}, {})
    video = {"visual_abstractor_config": {"intermediate_size": 4096}}
    assert config_fields(video, {"temporal_query_tokens": (1, 64, 1024)})["abstractor"].mlp_dim == 2816
    assert config_fields(video, {})["abstractor"].mlp_dim == 4096
