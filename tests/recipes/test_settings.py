"""Options that would be read and ignored are refused, each in one line, before any data are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.cli import main
from plait.errors import UsageError
from plait.recipes import RECIPES, described, find_recipe
from plait.training.run import call_recipe, parse_settings, refuse_beside, settings_of
from plait.training.schedules import cosine, released_rate


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("mplug_owl.stage1", ["init=M", "tower=small"], "expected no tower=small beside init=M"),
        ("mplug_owl.stage1", ["init=M", "tower=published"], "expected no tower=published beside init=M"),
        ("mplug_owl.stage1", ["init=M", "clip=C", "temporal=false"], "expected no clip=C, temporal=False beside init"),
        ("mplug_owl.stage2", ["init=M", "lora=0", "lora_alpha=32"], "expected no lora_alpha=32.0 beside lora=0"),
        ("mplug_owl.stage2", ["init=M", "lora=0", "lora_dropout=0"], "expected no lora_dropout=0.0 beside lora=0"),
        ("mplug_owl2.joint", ["init=M", "lora_alpha=2"], "expected no lora_alpha=2.0 beside lora=0"),
        ("mplug_owl2.joint", ["init=M", "lora_dropout=0.1"], "expected no lora_dropout=0.1 beside lora=0"),
        ("mplug2.pretraining", ["init=M", "preset=base"], "expected no preset=base beside init=M"),
        ("mplug2.pretraining", ["init=M", "clip=C", "bert=B"], "expected no clip=C, bert=B beside init=M"),
        ("mplug2.answering", ["init=M", "distill=false", "alpha=0.4"], "expected no alpha=0.4 beside distill=false"),
    ],
)
def test_what_would_have_no_effect_is_refused(recipe: str, settings: list[str], said: str) -> None:
    function = find_recipe(recipe)
    with pytest.raises(UsageError, match=said):
        call_recipe(function, parse_settings(function, ["data=nowhere", *settings], 0))


def test_denoising_without_a_denoising_step_is_refused() -> None:
    from plait.models.auto import load_processor
    from plait.recipes.one_peace import Objective

    processor: Any = load_processor("nano")
    with pytest.raises(UsageError, match="expected no denoising=l2 beside denoise_every=0"):
        Objective("image", processor, 0, "l2")
    with pytest.raises(UsageError, match="expected denoising contrast, l2 or smooth_l1, got 'nonsense'"):
        Objective("image", processor, 8, "nonsense")
    assert Objective("image", processor, 0, None).denoising == "contrast"


def test_settings_that_were_not_given_are_beside_everything() -> None:
    refuse_beside("lora=0", lora_alpha=None)


@pytest.mark.parametrize("schedule", ["cosine", "released"])
def test_the_released_schedule_of_mplug2_is_a_setting(schedule: str, world: tuple[Path, Path]) -> None:
    """As in the released loop: each rate a step late."""
    data, models = world
    function = find_recipe("mplug2.captioning")
    given = [f"init={models / 'mplug2'}", f"data={data / 'videos.jsonl'}", "steps=4000", "batch_size=4"]
    (stage,) = call_recipe(function, parse_settings(function, [*given, f"schedule={schedule}"], 0)).stages
    rates = [stage.schedule(u, 4000, peak=2e-5, floor=1e-6, warmup=stage.warmup_steps(4000)) for u in range(600)]
    if schedule == "cosine":
        assert rates == [cosine(u, 4000, peak=2e-5, floor=1e-6, warmup=200) for u in range(600)]
        return
    how = {"peak": 2e-5, "floor": 1e-6, "start": 1e-6, "warmup": 200, "per_step": True, "step_size": 100}
    assert rates == [released_rate(u, **how, epochs=4000, steps_per_epoch=1) for u in range(600)]
    assert rates[:2] == [1e-6, 1e-6]
    assert rates[300] == cosine(299, 4000, peak=2e-5, floor=1e-6, warmup=200)


@pytest.mark.parametrize("setting", ["augmentation=0.1", "image_size=64"])
def test_finetuning_refuses_what_a_task_has_not(setting: str, world: tuple[Path, Path]) -> None:
    function = find_recipe("finetune")
    given = [f"model={world[1] / 'mplug2'}", f"data={world[0] / 'images.jsonl'}", "task=vqa", setting]
    with pytest.raises(UsageError, match=f"expected no {setting} beside task=vqa"):
        call_recipe(function, parse_settings(function, given, 0))


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_is_explained_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = described(find_recipe(name))
    assert {one.name for one in settings} == set(settings_of(find_recipe(name)))
    assert all(len(one.meaning) > 5 and one.meaning.endswith(".") for one in settings)
    assert main(["train", name, "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {one.name}: {one.kind} = {one.default}\n" in page for one in settings)


def test_help_of_a_recipe_that_is_none_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "one_peace.stag1", "--help"]) == 2
    assert "did you mean 'one_peace.stage1'?" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
    assert "Recipes: finetune, mplug2.pretraining" in capsys.readouterr().out
