"""Weights that are missing or no numbers, and directories that never end, are one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from plait.embedder import Embedder
from plait.models import auto, shipped
from plait.reading import check_layers
from plait.search import Index
from plait.weights.files import read_checkpoint
from plait.weights.lora import read_adapter

from .fuzzing import within

LAYER = "trunk.q_proj"


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
