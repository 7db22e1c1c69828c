"""What a task takes: parameters against the published files, FLOPs against arithmetic, and the verb."""

from __future__ import annotations

import pytest

from plait.cli import main
from plait.models.mplug2.composition import TABLE
from plait.models.mplug2.plan import Workload, dead_weights, media_of, plan_task, plan_tasks, sized

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
