"""The leaderboard shows what was measured and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.cli.evaluate import evaluate
from plait.evaluation.compare import leaderboard, write_leaderboard


def result(name: str, score: float, limit: int | None = None) -> dict:
    return {
        "task": "esc50",
        "about": "ESC-50",
        "split": "all",
        "rule": None,
        "primary": "top1",
        "score": score,
        "interval": [score - 1, score + 1],
        "items": 10,
        "items_in_split": 20,
        "limit": limit,
        "scores": {"top1": score, "chance_top1": 2.0},
        "failures": {"media missing": {"count": 3, "ids": []}},
        "model": {"name": name, "family": "clip", "way": "zero_shot"},
        "date": "2026-01-01",
        "environment": {"commit": "abc"},
    }


def test_rows_are_sorted_by_score_and_say_where_they_come_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, score in (("weak", 10.0), ("strong", 90.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(name, score, limit=10)))
    evaluate("leaderboard", str(tmp_path), out=tmp_path / "board.md")
    page = (tmp_path / "board.md").read_text()
    assert page.index("strong") < page.index("weak")
    row = "| strong | clip | 90.00 | 89.00 to 91.00 | 2.00 | 10 of 20 | 3 | zero_shot | 2026-01-01, abc | strong.json |"
    assert row in page
    assert "## esc50 (all)" in page


def test_a_directory_without_results_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected result\.json files of plait eval"):
        leaderboard(tmp_path)


def test_no_cell_of_a_stranger_ends_a_row_or_makes_a_link(tmp_path: Path) -> None:
    odd = "a | b\n[x](javascript:1) <img src=x> `c` \x1b[2J"
    result = {
        "task": odd,
        "split": odd,
        "rule": odd,
        "primary": odd,
        "about": odd,
        "model": {"name": odd, "family": odd},
    }
    result |= {"score": 1.0, "scores": {}, "interval": None, "items": odd, "items_in_split": odd, "limit": None}
    result |= {"failures": {}, "date": odd, "environment": {"commit": odd}}
    (tmp_path / "r.json").write_text(json.dumps(result))
    page = write_leaderboard(tmp_path, tmp_path / "page.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| a")]
    assert len(rows) == 1 and rows[0].replace(r"\|", "").count("|") == 11
    assert "<img" not in page and "\x1b" not in page and "[x](" not in page.replace(r"\[x\](", "")
