"""What a task takes: parameters against the published files, FLOPs against arithmetic, and the verb."""

from __future__ import annotations

import json

import pytest

from plait.cli import main
from plait.evaluation.tasks import TASKS
from plait.models.mplug2.composition import TABLE
from plait.models.mplug2.plan import Workload, dead_weights, media_of, plan_paper, plan_task, plan_tasks, sized
from plait.recipes import RECIPES

PUBLISHED = {"large": 1_523_727_419, "base": 571_611_195}
"""Parameters of the official files without momentum copies (specification, section 2)."""


@pytest.mark.parametrize("preset", list(PUBLISHED))
def test_live_and_dead_weights_add_up_to_the_official_file(preset: str) -> None:
    plan = plan_task("answer", "video", sized(preset))
    assert plan.official_total == PUBLISHED[preset]
    assert plan.total + sum(plan.dead.values()) == PUBLISHED[preset]
    assert not plan.unneeded


def test_large_tasks_need_what_the_specification_says() -> None:
    caption, answer = (plan_task(task, "video", sized("large")) for task in ("caption", "answer"))
    assert round(caption.total / 1e6, 1) == 621.9
    assert round(answer.total / 1e6, 1) == 1031.5
    assert set(caption.unneeded) == {"text", "fusion"}
    assert round(caption.parameters["temporal"] / 1e6, 1) == 50.6


def test_every_cell_of_the_table_has_a_plan() -> None:
    for task in TABLE:
        plans = plan_tasks(task, {"preset": "tiny", "num_images": 2})
        assert [plan.medium for plan in plans] == list(media_of(task))
        for plan in plans:
            ways = TABLE[plan.task][plan.medium]  # ty: ignore[invalid-argument-type]
            assert set(ways.parts) <= set(plan.parameters)
            assert set(plan.flops) <= set(ways.parts)
            assert plan.official_total == 0


def test_flops_follow_arithmetic() -> None:
    config = sized("tiny", num_frames=3)
    one, twice = (plan_task("caption", "image", config, Workload(length=n)).flops for n in (4, 8))
    assert one["vision"] == twice["vision"]
    # of what grows with the length, projections and MLPs grow in proportion and attention over itself squared
    assert 2 * one["decoder"] - _keys(config) < twice["decoder"] < 4 * one["decoder"]
    dim, patches, side, layers = 24, 9, 4, 2
    linear = (3 * dim * dim + dim * dim + 8 * dim * dim) * (1 + patches) * layers
    attention = 2 * (1 + patches) ** 2 * dim * layers
    assert one["vision"] == 2 * (linear + attention + 3 * side * side * dim * patches)


def _keys(config: object) -> int:
    """FLOPs of the keys and values of ten vision tokens in two layers of width 24."""
    return 2 * 2 * 10 * 24 * 24 * 2


def test_each_of_two_compared_pictures_costs() -> None:
    pair, three = (plan_task("compare", "image", sized("tiny", num_images=n)) for n in (2, 3))
    assert plan_task("compare", "image", sized("tiny")) == pair
    for part in ("vision", "fusion"):
        assert 2 * three.flops[part] == 3 * pair.flops[part]
    assert three.flops["text"] == pair.flops["text"]  # read once


def test_no_official_file_means_nothing_left_behind() -> None:
    plan = plan_task("caption", "video", sized("tiny"))
    assert (plan.dead, plan.unneeded, plan.official_total) == ({}, {}, 0)
    assert sum(dead_weights(sized("base")).values()) > 0


def test_plan_verb_prints_modules_and_leftovers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "mplug2", "caption", "--set", "beams=2"]) == 0
    out = capsys.readouterr().out
    assert "621.9 M" in out
    assert "1,523.7 M" in out
    assert "CLIP's text tower" in out


def test_plan_verb_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "mplug2", "caption", "--set", "frames=3"]) == 1
    assert "frames" in capsys.readouterr().err
    assert main(["plan", "mplug2", "caption", "--set", "frames"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_every_task_of_the_paper_has_its_modules_and_callers() -> None:
    rows = plan_paper({"preset": "tiny", "num_images": 2})
    assert len(rows) == 36 and len({one.name for one, _ in rows}) == 36
    for one, plan in rows:
        if plan is None:
            assert one.about and not (one.evaluation or one.recipe)
            continue
        assert (plan.task, plan.medium) == (one.task, one.medium)
        assert one.evaluation in TASKS and one.recipe in RECIPES
    # no cell is left without a task
    assert {plan.task for _, plan in rows if plan is not None} == set(TABLE)


def test_plan_verb_prints_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "mplug2", "--all", "--set", "preset=tiny"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 36 + 1
    (line,) = [line for line in out.splitlines() if line.startswith("MSRVTT captions")]
    assert (
        "caption video" in line and "temporal" in line and line.split()[-2:] == ["msrvtt_caption", "mplug2.captioning"]
    )
    assert "COCO detection: mPLUG-2 is no backbone" in out
    assert main(["plan", "mplug2", "--all", "--json", "--set", "preset=tiny"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["plan"]["parameters"]["decoder"] > 0 and rows[-1]["plan"] is None
    for command, word in ((["one_peace", "--all"], "mplug2"), (["mplug2", "caption", "--all"], "TASK=caption")):
        assert main(["plan", *command]) == 2
        assert word in capsys.readouterr().err
