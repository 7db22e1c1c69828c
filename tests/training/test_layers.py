"""Layers found in every family; computed again or compiled, they train as they do without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl2 import config as owl2
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.training.logging import read_metrics
from plait.training.parallel import blocks_of, groups_of
from plait.training.stages import Options

LLM = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, Any] = {
    "one_peace": lambda: OnePeaceForPreTraining(OnePeaceConfig.preset("nano")),
    "mplug2": lambda: MPlug2ForConditionalGeneration(MPlug2Config.preset("tiny")),
    "mplug_owl": lambda: MPlugOwlForConditionalGeneration(
        MPlugOwlConfig(
            text_config={"model_type": "llama", **LLM},
            vision=VisionConfig(dim=32, num_heads=2, num_layers=2, mlp_dim=64, image_size=16, patch_size=4),
            abstractor=AbstractorConfig(num_queries=4, num_heads=2, num_layers=1, mlp_dim=48),
        )
    ),
    "mplug_owl2": lambda: MPlugOwl2ForConditionalGeneration(
        owl2.MPlugOwl2Config(
            vocab_size=40,
            dim=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            mlp_dim=48,
            vision=owl2.VisionConfig(dim=16, num_heads=2, num_layers=2, mlp_dim=24, image_size=16, patch_size=4),
            abstractor=owl2.AbstractorConfig(num_queries=3, num_heads=2, num_layers=2, mlp_dim=24, grid_size=4),
        )
    ),
}
GROUPS = {
    "one_peace": {"model.trunk", "decoder.trunk"},
    "mplug2": {"model.vision", "model.text", "model.universal.stacks", "model.fusion", "model.decoder"},
    "mplug_owl": {"vision", "abstractor", "language_model.model"},
    "mplug_owl2": {"model.vision", "model.abstractor", "model.decoder"},
}
"""What FSDP2 spreads as a group each: vision, abstractor and trunk; inside them every layer is one as well."""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_towers_abstractor_and_trunk_are_groups_and_their_layers_blocks(family: str) -> None:
    with torch.device("meta"):
        model = FAMILIES[family]()
    blocks, groups = blocks_of(model), groups_of(model)
    assert set(groups) == GROUPS[family]
    assert all(name.startswith(tuple(groups)) for name in blocks)
    assert all(any(name.startswith(group) for name in blocks) for group in groups)


def test_a_model_without_a_list_of_its_layers_gives_what_repeats() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)), "head": nn.Linear(2, 1)})
    assert list(blocks_of(model)) == ["layers.0", "layers.1", "layers.2"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of dynamo, which hides it where it may
@pytest.mark.parametrize("how", [{"recompute": 1}, {"recompute": 2}, {"compile": "aot_eager"}])
def test_recomputed_and_compiled_layers_train_as_they_do_without(
    tiny: ModuleType, tmp_path: Path, how: dict[str, Any]
) -> None:
    losses = []
    for name, options in {"plain": Options(progress=False), "other": Options(progress=False, **how)}.items():
        model = tiny.build_deep()
        tiny.run(tmp_path / name, model, stages=[tiny.pair_stage(tiny.still(tiny.pair_loss))], options=options)
        losses.append([row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")])
        assert all(block._compiled_call_impl is None for block in blocks_of(model).values())
        assert all("forward" not in vars(block) for block in blocks_of(model).values())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_random_draws_inside_a_recomputed_layer_are_repeated(tiny: ModuleType, tmp_path: Path) -> None:
    losses = []
    for recompute in (0, 1):
        model = tiny.build_deep()
        for layer in model.layers:
            layer.ways["image"] = nn.Sequential(layer.ways["image"], nn.Dropout(0.3))
        stage = replace(tiny.pair_stage(tiny.still(tiny.pair_loss)), steps=4)
        options = Options(progress=False, recompute=recompute)
        tiny.run(tmp_path / str(recompute), model, stages=[stage], options=options)
        losses.append([row["loss"] for row in read_metrics(tmp_path / str(recompute) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_an_unknown_backend_is_named(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a compile backend of .*inductor.*, got 'indcutor'"):
        tiny.run(tmp_path, tiny.build_deep(), options=Options(progress=False, compile="indcutor"))
