"""`plait plan` counts what a stage trains without building the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from plait.cli import main
from plait.data.reader import Reader, as_it_is
from plait.recipes import RECIPES
from plait.recipes.one_peace import stage1
from plait.recipes.plan import describe, plan_stage
from plait.training.stages import Recipe, Stage


def model() -> nn.Module:
    return nn.ModuleDict({"adapters": nn.ModuleDict({"image": nn.Linear(3, 4), "audio": nn.Linear(5, 4)})})


def stage(name: str, **changes: Any) -> Stage:
    def source() -> Reader:
        return Reader(list(range(8)), lambda samples, rng: {"x": torch.ones(len(samples), 3)}, as_it_is)

    return Stage(name=name, objective=objective, batches=source, batch_size=8, **{"steps": 10, **changes})


def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
    y = torch.tanh(batch["x"].repeat(1, 2)[:, :5])
    loss = model["adapters"]["audio"](y).square().mean() + model["adapters"]["image"](batch["x"]).square().mean()
    return loss, {}


def two_stages(width: int = 4) -> Recipe:
    """The second stage trains audio only."""
    del width
    return Recipe(model, [stage("all"), stage("audio", trainable=("*.audio.*",))], lambda *_: None)


def test_frozen_parameters_have_no_gradients_and_no_optimiser_state() -> None:
    plan = plan_stage(model(), stage("audio", trainable=("*.audio.*",)))
    assert plan.trainable == {"adapters.audio": 24}
    assert plan.frozen == {"adapters.image": 16}
    assert plan.bytes == {"parameters": 4 * 40, "gradients": 4 * 24, "optimiser": 8 * 24}


def test_bytes_follow_the_dtype_and_moments_stay_in_single_precision() -> None:
    plan = plan_stage(model().to(torch.bfloat16), stage("all", steps=None, epochs=2))
    assert plan.bytes == {"parameters": 2 * 40, "gradients": 2 * 40, "optimiser": 8 * 40}
    assert plan.length == "2 epochs"
    assert "all" in describe(plan) and "640" not in describe(plan) and "480 B before activations" in describe(plan)


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny.two", "tiny_recipes:two_stages")
    monkeypatch.setitem(sys.modules, "tiny_recipes", SimpleNamespace(two_stages=two_stages))


@pytest.mark.usefixtures("tiny_recipe")
@pytest.mark.parametrize("words", [["tiny.two"], ["tiny", "two"]])
def test_every_stage_of_a_recipe_is_planned(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *words, "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [sum(plan["trainable"].values()) for plan in plans] == [40, 24]
    assert main(["plan", *words, "--set", "width=5"]) == 0
    said = capsys.readouterr().out
    assert "audio: 10 steps, batches of 8" in said and "GFLOPs a step" in said and "at once at most" in said


def test_a_real_recipe_is_planned_with_activations_and_flops(capsys: pytest.CaptureFixture) -> None:
    words = ["plan", "one_peace.stage1", "--set", "batch_size=8", "--json"]
    words[2:2] = ["--set", "denoise_every=0"]
    plans = {}
    for name, more in {"whole": [], "half": ["--processes", "2", "--dtype", "bf16"]}.items():
        assert main([*words, *more]) == 0
        (plans[name],) = json.loads(capsys.readouterr().out)
    assert 0.4 < plans["half"]["flops"] / plans["whole"]["flops"] < 0.6
    assert plans["half"]["bytes"]["activations"] < plans["whole"]["bytes"]["activations"]
    assert main([*words, "--processes", "3"]) == 2
    assert main([*words, "--dtype", "int8"]) == 2


@pytest.mark.usefixtures("tiny_recipe")
def test_an_unknown_recipe_names_the_nearest(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "tiny.tow"]) == 2
    assert "tiny.two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mplug2", "dance"], "expected a task of mplug2 (caption, answer,"),
        (["mplug2", "dance"], "or one of its recipes (pretraining, captioning,"),
        (["mplug2", "groud"], "got 'groud'; did you mean 'ground'?"),
        (["mplug2", "self_critcal"], "did you mean 'self_critical'?"),
        (["mplug_owl", "stage9"], "expected one of the recipes of mplug_owl (stage1, stage2), got 'stage9'; did you"),
        (["mplug2"], "expected a task of mplug2 (caption, answer,"),
        (["mplug2"], "got none; add one, such as plait plan mplug2 caption"),
        (["one_peace"], "got none; add one, such as plait plan one_peace stage1"),
    ],
)
def test_a_family_lists_its_tasks(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_stages_of_one_peace_train_complementary_parts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "one_peace.stage1", "--set", "batch_size=8", "--set", "denoise_every=0", "--json"]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    recipe = stage1()
    recipe.save(recipe.model_builder(), tmp_path / "model")
    assert (
        main(
            [
                "plan",
                "one_peace.stage2",
                "--set",
                f"init={tmp_path / 'model'}",
                "--set",
                "batch_size=4",
                "--set",
                "denoise_every=0",
                "--json",
            ]
        )
        == 0
    )
    (second,) = json.loads(capsys.readouterr().out)
    assert "trunk.mlp.audio" in first["frozen"] and "trunk.mlp.audio" in second["trainable"]
    for part in ("trunk.attn", "trunk.mlp.image", "trunk.mlp.text", "adapters.text", "adapters.image"):
        assert part in first["trainable"] and part not in first["frozen"]
        assert part in second["frozen"] and part not in second["trainable"]
    assert first["bytes"]["parameters"] == second["bytes"]["parameters"] > second["bytes"]["gradients"] > 0
