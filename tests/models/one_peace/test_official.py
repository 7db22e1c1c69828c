"""Official files: there and back bit for bit, branches, upgrades, and one clear line for what does not fit."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig, parse_conv_spec
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.weights import from_official, key_map
from plait.parity.run import runner_module
from plait.weights.files import StateError, read_checkpoint

from ...parity.released import official_buffers

both_ways = runner_module("key_lists").both_ways
GOLDENS = Path(__file__).parents[2] / "goldens" / "one_peace"


def official_file(tmp_path: Path, case: str, **changes) -> Path:
    """A file laid out as the published ones, with the weights of a golden case."""
    cfg = json.loads((GOLDENS / case / "config.json").read_text()) | changes
    state = load_file(GOLDENS / case / "weights.safetensors")
    path = tmp_path / f"{case}.pt"
    torch.save({"args": None, "cfg": {"model": cfg, "task": {}}, "model": state, "extra_state": {}}, path)
    return path


def test_an_official_file_loads_and_embeds(tmp_path):
    model, processor = plait.load(official_file(tmp_path, "embeddings_val"), official=True)
    stored = load_file(GOLDENS / "embeddings_val" / "tensors.safetensors")
    vectors = model.get_image_features(stored["in.src_images"])
    torch.testing.assert_close(vectors, stored["out.image_embedding"], atol=2e-5, rtol=1e-4)
    assert processor(images=[__import__("PIL.Image").Image.new("RGB", (9, 5))])["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("case", ["embeddings_val", "pretrain_vl", "pretrain_al"])
def test_converting_there_and_back_is_bit_exact(case):
    state = load_file(GOLDENS / case / "weights.safetensors")
    config = OnePeaceConfig.from_official(json.loads((GOLDENS / case / "config.json").read_text()))
    native, report = key_map(config).forward(state)
    back = key_map(config).backward(native)
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert set(back) - set(state) == official_buffers(back) - set(state)
    assert all(reason for reason in report.dropped.values())


def test_one_branch_of_an_official_file_reads_nothing_else(tmp_path):
    path = official_file(tmp_path, "embeddings_val")
    whole, _ = plait.load(path)
    image, _ = plait.load(path, branch=("image",))
    assert image.modalities == ("image",)
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(image.get_image_features(pixels), whole.get_image_features(pixels))


def test_a_converted_directory_equals_the_file(tmp_path):
    model, processor = plait.load(official_file(tmp_path, "embeddings_val"))
    model.save_pretrained(tmp_path / "dir")
    processor.save_pretrained(tmp_path / "dir")
    again, reloaded = plait.load(tmp_path / "dir")
    text = ["a dog", "snow"]
    assert torch.equal(processor(text=text)["input_ids"], reloaded(text=text)["input_ids"])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_missing_key_is_listed(tmp_path):
    path = official_file(tmp_path, "embeddings_val")
    content = torch.load(path)
    del content["model"]["text_proj.weight"]
    torch.save(content, path)
    with pytest.raises(StateError, match=r"1 missing: projections\.text\.weight"):
        plait.load(path)


def test_an_unknown_key_is_listed(tmp_path):
    path = official_file(tmp_path, "embeddings_val")
    content = torch.load(path)
    content["model"]["encoder_wrapper.surprise"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(StateError, match=r"encoder_wrapper\.surprise"):
        plait.load(path)


def test_an_unknown_config_field_is_an_error(tmp_path):
    path = official_file(tmp_path, "embeddings_val", surprise=1)
    with pytest.raises(ValueError, match=r"got 'surprise'"):
        plait.load(path)


def test_options_no_published_model_uses_are_refused():
    cfg = json.loads((GOLDENS / "embeddings_val" / "config.json").read_text())
    cfg["encoder"]["scale_heads"] = True
    with pytest.raises(ValueError, match="scale_heads = False"):
        OnePeaceConfig.from_official(cfg)


@pytest.mark.parametrize(("name", "value"), [("shrink_alpha", 0.1), ("use_attn_bias", False)])
def test_options_of_adapters_that_change_gradients_or_tables_are_refused(name, value):
    cfg = json.loads((GOLDENS / "embeddings_val" / "config.json").read_text())
    cfg["encoder"]["image_adapter"][name] = value
    with pytest.raises(ValueError, match=f"expected model.encoder.image_adapter.{name} = "):
        OnePeaceConfig.from_official(cfg)


def test_the_vision_branch_file_equals_the_full_model_without_its_final_norm(tmp_path):
    path = official_file(tmp_path, "embeddings_val")
    full, _ = plait.load(path)
    state = load_file(GOLDENS / "embeddings_val" / "weights.safetensors")
    keep = {
        key.removeprefix("encoder_wrapper.").replace("fusion_model.", "encoder.", 1): value
        for key, value in state.items()
        if key.startswith("encoder_wrapper.")
        and not any(word in key for word in ("text", "audio", "image_layer_norm", "version"))
    }
    with open(tmp_path / "vision.pkl", "wb") as file:
        pickle.dump({"model": keep, "__author__": "test", "matching_heuristics": True}, file)
    vision = from_official(read_checkpoint(tmp_path / "vision.pkl"))
    pixels = torch.randn(1, 3, 64, 64)
    features = vision.encode({"image": pixels}).features["image"]
    normed = full.trunk.norm["image"](features)
    torch.testing.assert_close(normed, full.encode({"image": pixels}).features["image"], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="without projections"):
        vision.get_image_features(pixels)


@pytest.mark.parametrize("name", ["one-peace.pt", "pretrain_stage1_vl", "pretrain_stage2_al"])
def test_every_published_key_is_explained_both_ways(name):
    with gzip.open(GOLDENS / "keys" / f"{name}.keys.json.gz") as file:
        keys = json.load(file)
    modalities = [m for m in ("text", "image", "audio") if f"encoder_wrapper.{m}_adapter.cls_embedding" in keys]
    config = OnePeaceConfig(modalities=modalities, decoder=None if "one-peace" in name else DecoderConfig())
    assert both_ways({key: shape for key, (shape, _) in keys.items()}, key_map(config)) is True
    rules = key_map(config, base="model." if config.decoder else "")
    native, _ = rules.forward({key: torch.empty(shape, device="meta") for key, (shape, _) in keys.items()})
    with torch.device("meta"):
        from plait.models.one_peace.model import OnePeaceModel

        model = (OnePeaceForPreTraining if config.decoder else OnePeaceModel)(config)
    missing = set(model.state_dict()) - set(native)
    assert missing <= {"logit_scale"}
    assert all(native[key].shape == value.shape for key, value in model.state_dict().items() if key in native)


def test_a_key_list_with_a_stranger_is_refused():
    assert "stranger" in str(both_ways({"stranger": [1]}, key_map(OnePeaceConfig())))


@pytest.mark.parametrize(
    ("text", "layers"),
    [("[(512, 10, 5)] + [(512, 3, 2)] * 2", [(512, 10, 5), (512, 3, 2), (512, 3, 2)]), ("[(4, 2, 2)]", [(4, 2, 2)])],
)
def test_convolution_lists_are_read_without_evaluating_code(text, layers):
    assert parse_conv_spec(text) == layers


def test_code_in_a_convolution_list_is_refused():
    with pytest.raises(ValueError, match="expected"):
        parse_conv_spec("__import__('os').system('true')")
