"""LoRA directories of strangers: no pattern runs, and a wrong configuration is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plait.weights.lora import read_adapter

from ..fuzzing import within

LAYER = "trunk.layers.0.q_proj"


def adapter(place: Path, **settings: Any) -> Path:
    place.mkdir(exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2} | settings))
    weights = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, 3),
        f"base_model.model.{LAYER}.lora_B.weight": torch.ones(4, 2),
    }
    save_file(weights, place / "adapter_model.safetensors")
    return place


def added(place: Path) -> float:
    """What one element grew by: twice the scale."""
    return read_adapter(place).change[f"{LAYER}.weight"](torch.zeros(4, 3))[0, 0].item()


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*(.*)*(.*)*(.*)*z", ".*q_proj", "[", "trunk|q_proj"])
def test_a_pattern_is_refused_and_never_run(pattern: str, tmp_path: Path) -> None:
    with within(), pytest.raises(ValueError, match="regular expression"):
        added(adapter(tmp_path / "a", rank_pattern={pattern: 4}))


@pytest.mark.parametrize("name", ["q_proj", LAYER, f"^{LAYER}", r"layers\.0\.q_proj", f"^{LAYER}$"])
def test_a_name_gives_its_layers_their_own_scale(name: str, tmp_path: Path) -> None:
    assert added(adapter(tmp_path / "a", alpha_pattern={"proj": 50, "^q_proj": 60, name: 6})) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0},
        {"r": "2"},
        {"r": None},
        {"lora_alpha": [1]},
        {"lora_alpha": float("nan")},
        {"rank_pattern": ["q_proj"]},
        {"rank_pattern": {"q_proj": "4"}},
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected .*adapter_config\.json"):
        added(adapter(tmp_path / "a", **settings))
