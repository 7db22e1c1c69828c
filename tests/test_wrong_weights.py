"""Weights that are missing or no numbers, and directories that never end, are one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plait import Assistant, Chat
from plait.embedder import Embedder
from plait.models import auto, shipped
from plait.models.merge import merge
from plait.reading import check_layers
from plait.search import Index
from plait.weights.files import check_finite, read_checkpoint
from plait.weights.lora import read_adapter

from .fuzzing import within

LAYER = "trunk.q_proj"
SAVED = Path(__file__).parent / "fixtures" / "saved"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    own = shipped("nano")
    assert own is not None
    return Path(shutil.copytree(own, tmp_path / "nano"))


def test_a_foreign_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if "layer.0.output" not in k}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"expected all weights of BertModel .*layer\.0\.output"):
        Embedder(tmp_path)


def tiny(kind: str) -> Any:
    """A model of transformers that embeds, as small as it goes, and the beginning of names of weights that it needs."""
    import transformers as them

    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    image = {**text, "image_size": 4, "patch_size": 2}
    if kind == "clip":
        return them.CLIPModel(them.CLIPConfig(text_config=text, vision_config=image, projection_dim=8))
    if kind == "siglip":
        return them.SiglipModel(them.SiglipConfig(text_config=text, vision_config=image))
    sound = {"patch_embeds_hidden_size": 8, "depths": [1], "num_attention_heads": [1], "hidden_size": 8}
    sound |= {"num_mel_bins": 16, "spec_size": 16, "window_size": 2, "num_hidden_layers": 1}
    return them.ClapModel(them.ClapConfig(text_config=text, audio_config=sound, projection_dim=8))


@pytest.mark.parametrize("kind", ["clip", "siglip", "clap"])
def test_a_model_of_two_towers_that_lacks_weights_or_has_no_numbers_is_refused(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(key for key in weights if key.startswith("text_model.encoder.layer") and key.endswith("weight"))
    save_file({k: v for k, v in weights.items() if k != name}, file, {"format": "pt"})
    for opens in (Embedder, Chat, Assistant):
        with pytest.raises(ValueError, match=re.escape(name) if opens is Embedder else "expected"):
            opens(tmp_path)
    save_file({**weights, name: torch.full_like(weights[name], torch.inf)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"finite numbers in {re.escape(name)} of "):
        Embedder(tmp_path)


def test_folders_that_a_sentence_model_names_are_inside_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for names in (["CLIPModel"], ["Transformer", "Pooling"]):
        modules = [{"type": f"sentence_transformers.models.{name}", "path": "../other"} for name in names]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match="leads outside"):
            Embedder(tmp_path)
    for modules in ([1], [{}], [{"type": "a.Transformer", "path": 3}, {"type": "a.Pooling", "path": None}]):
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match="expected modules"):
            Embedder(tmp_path)


def spoilt(directory: Path, ending: str, number: float = torch.nan) -> str:
    """Write no number into one place of the first weight of a model directory whose name ends so; its name."""
    weights = load_file(directory / "model.safetensors")
    name = next(key for key in weights if key.endswith(ending))
    weights[name].view(-1)[-1] = number
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return name


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_base_of_no_numbers_is_refused_by_name(number: float, nano: Path, tmp_path: Path) -> None:
    name = spoilt(nano, "model.trunk.layers.0.attn.q_proj.weight", number).removeprefix("model.")
    said = rf"finite numbers in (model\.)?{re.escape(name)} of "
    with pytest.raises(ValueError, match=said):
        Embedder(nano).embed(["a dog"])
    with pytest.raises(ValueError, match=said):
        Assistant(nano)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["k_proj"]})
    )
    other = "model." + name.replace("q_proj", "v_proj").removesuffix(".weight")
    shape = load_file(nano / "model.safetensors")[f"{other}.weight"].shape
    weights = {"lora_A": torch.ones(1, shape[1]), "lora_B": torch.ones(shape[0], 1)}
    save_file(
        {f"base_model.model.{other}.{k}.weight": v for k, v in weights.items()},
        tmp_path / "lora" / "adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match=said):
        merge(nano, tmp_path / "lora", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_talking_model_of_no_numbers_is_refused_by_name(tmp_path: Path) -> None:
    place = Path(shutil.copytree(SAVED / "mplug_owl2", tmp_path / "owl2"))
    name = spoilt(place, "o_proj.weight")
    with pytest.raises(ValueError, match=f"finite numbers in {re.escape(name)} of "):
        Chat(place)


def test_large_finite_numbers_are_numbers() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn):
        check_finite(torch.full((9,), torch.finfo(dtype).max).to(dtype), "it")  # their sum is infinite
        with pytest.raises(ValueError, match="got NaN or infinity"):
            check_finite(torch.tensor([1.0, torch.nan]).to(dtype), "it")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_adapter_of_no_numbers_is_refused(number: float, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    down, up = torch.ones(1, 2), torch.tensor([[1.0], [number]])
    whole = torch.full((2,), number)
    weights = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up, "head.modules_to_save.default.bias": whole}
    save_file({f"base_model.model.{k}": v for k, v in weights.items()}, tmp_path / "adapter_model.safetensors")
    merged = read_adapter(tmp_path).merged({f"{LAYER}.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)})
    for name in merged:
        with pytest.raises(ValueError, match="finite numbers"):
            merged[name]


def test_a_query_vector_of_no_numbers_is_refused(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", "nano")
    vector = np.zeros(index.description["dim"], np.float32)
    vector[0] = np.nan
    with pytest.raises(ValueError, match="finite numbers"):
        index.search(vector)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_a_model_directory_is_refused(name: str, kind: str, nano: Path) -> None:
    (nano / name).unlink(missing_ok=True)
    os.mkfifo(nano / name) if kind == "pipe" else (nano / name).symlink_to("/dev/zero")
    for reads in (auto.load, auto.load_processor, read_checkpoint):
        if reads is read_checkpoint and name != "model.safetensors":  # it opens no other
            continue
        with within(), pytest.raises(ValueError, match=r"a device or a pipe|no such files|without model"):
            reads(nano)


@pytest.mark.parametrize(
    "config",
    [
        {"num_layers": 10**7},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"depths": [2, 10**6]},
        {"a": [{"n_layers": float("nan")}]},
    ],
)
def test_a_configuration_of_endless_layers_is_refused(config: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 4096 layers"):
        check_layers(config, "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "one_peace"} | config))
    with within(), pytest.raises(ValueError, match="at most 4096 layers"):
        auto.load(tmp_path)
