"""The page of a training run: its curves, and what a finetuned model is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.report.run import run_page

from ..pages import Checker, write_curves


def test_a_plain_training_run_gets_its_curves(tmp_path: Path) -> None:
    write_curves(tmp_path / "run", "stage1")
    page = run_page(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<section") == 1
    assert 'id="curves"' in page


def test_a_run_has_its_page_whatever_its_name(tmp_path: Path) -> None:
    write_curves(tmp_path / "stage2-shuffled", "stage2")
    assert 'id="curves"' in run_page(tmp_path / "stage2-shuffled").read_text(encoding="utf-8")


def test_a_finetuned_model_shows_what_it_is_worth(tmp_path: Path) -> None:
    write_curves(tmp_path / "run", "vqa")
    one = {"metric": "accuracy", "value": 0.5, "interval": [0.25, 0.75]}
    found = {
        "task": "vqa",
        "rows": {"test": 8},
        "trivial": {**one, "about": "always '<b>'"},
        "before": None,
        "after": one,
    }
    (tmp_path / "run" / "finetune.json").write_text(json.dumps(found))
    written = run_page(tmp_path / "run").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(written)
    assert checker.open == [] and "0.250 to 0.750" in written and "on 8 rows" in written
    assert "always &#x27;&lt;b&gt;&#x27;" in written and "the model as it came" not in written


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run with metrics\.jsonl"):
        run_page(tmp_path)


def test_names_of_a_run_are_escaped(tmp_path: Path) -> None:
    write_curves(tmp_path / "<b>run", "stage<i>1")
    page = run_page(tmp_path / "<b>run").read_text(encoding="utf-8")
    assert "&lt;b&gt;run" in page and "stage&lt;i&gt;1" in page
    assert "<b>run" not in page and "<i>1" not in page


def test_a_finetuned_model_shows_its_command_and_what_it_says_right_and_wrong(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    one = {"metric": "accuracy", "value": 0.5, "interval": [0.0, 1.0]}
    said = [
        {"id": "a.png", "right": ["drum"], "said": "drum"},
        {"id": "<b>.png", "right": ["bell"], "said": "drum"},
    ]
    worth = {"task": "classify", "rows": {"train": 2, "test": 2}, "trivial": one, "after": one, "date": "2026-12-01"}
    (run / "finetune.json").write_text(json.dumps({**worth, "said": said}))
    settings = {"data": "my data", "lora": 8, "medium": None}
    (run / "config.json").write_text(json.dumps({"recipe": "finetune", "seed": 3, "arguments": settings}))
    page = run_page(run).read_text(encoding="utf-8")
    assert "plait train finetune --set &#x27;data=my data&#x27; --set lora=8 --seed 3" in page
    assert "medium" not in page.partition("How it was made")[2] and "Measured on 2026-12-01." in page
    assert "Wrong: 1 of 1" in page and "Right: 1 of 1" in page and "&lt;b&gt;.png" in page and "<b>.png" not in page
    assert "<td>bell</td><td></td><td>1</td>" in page  # taken for a drum
