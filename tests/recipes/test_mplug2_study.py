"""The study of mPLUG-2 end to end, one step per run, and what it measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from plait.data.drawn_tasks import Example
from plait.recipes import mplug2_evaluate as evaluate
from plait.recipes import mplug2_measures as measures
from plait.recipes import mplug2_small as small
from plait.recipes import mplug2_study as module
from plait.types import Sample


def snippets(split):
    texts = [("a joy to watch", "positive"), ("dull and long", "negative")] * (4 if split == "test" else 64)
    return tuple(Sample(f"{split}{i}", text=text, label=label) for i, (text, label) in enumerate(texts))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(small, "snippets", snippets)
    monkeypatch.setattr(evaluate, "COUNT", 4)
    monkeypatch.setattr(measures, "PRIOR_EXAMPLES", 20)
    evaluate.held_out.cache_clear()
    yield
    evaluate.held_out.cache_clear()


def test_one_command_trains_measures_and_writes_the_page(quick, tmp_path, capsys):
    steps = dict.fromkeys(("pretrain_steps", "answer_steps", "control_steps", "class_steps"), 1)
    assert module.study(tmp_path, **steps, device="cpu") == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    arms = {(row["task"], row["arm"]) for row in summary["rows"]}
    assert {("order", "one frame"), ("order", "language only"), ("text: feeling", "tf-idf")} <= arms
    assert {task for task, arm in arms if arm == "shuffled labels"} == {task for task, _ in arms}
    assert set(summary["gap"]) == {"pretraining", "pretraining-apart"}
    assert "universal layers apart" in printed and "which way does it move?" not in printed
    page = (tmp_path / "report.html").read_text()
    assert "data:image/webp" in page and "shuffled labels" in page
    before = (tmp_path / "seed-0" / "results.json").stat().st_mtime_ns
    assert module.study(tmp_path, **steps, device="cpu") == 0  # everything is kept
    assert (tmp_path / "seed-0" / "results.json").stat().st_mtime_ns == before


def test_language_alone_knows_priors_and_no_pictures(quick):
    drawings = small.drawings()
    examples = drawings.examples("motion", "test", 300)
    assert np.mean(measures.language_only(drawings, "motion", examples)) < 0.3


def test_tf_idf_learns_words(quick):
    rows = [[(s.text, int(s.label == "positive")) for s in snippets(split)] for split in ("train", "test")]
    assert np.mean(measures.tf_idf(*rows, steps=20)) == 1.0


def test_separability_is_half_for_one_cloud_and_whole_for_two():
    torch.manual_seed(0)
    a, b = torch.randn(400, 4), torch.randn(400, 4)
    assert abs(measures.separability(a, b) - 0.5) < 0.08
    assert measures.separability(a, b + 6) > 0.98


def test_a_caption_may_be_any_reference_and_an_answer_only_the_answer(quick):
    made = small.processor()
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    caption = Example("caption", frames, "", "bear", None, ("bear", "animal"))
    assert measures.same("animal", caption, made) == 1 and measures.same("bus", caption, made) == 0
    assert measures.same("animal", Example("name", frames, "what?", "bear"), made) == 0


def test_summaries_average_seeds_and_keep_each(quick):
    row = {"task": "order", "arm": "mPLUG-2", "chance": 0.5}
    results = [
        {"rows": [row | {"hits": hits}], "zero_shot": [], "gap": {"pretraining": {"separability": gap}}, "examples": []}
        for hits, gap in (([1.0, 0.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 0.0, 0.0], 0.8))
    ]
    summary = module.summarise(results)
    (line,) = summary["rows"]
    assert line["per_seed"] == [0.75, 0.5] and line["value"] == pytest.approx(0.625)
    assert line["interval"][0] < 0.625 < line["interval"][1]
    assert summary["gap"]["pretraining"]["separability"] == pytest.approx(0.9)
