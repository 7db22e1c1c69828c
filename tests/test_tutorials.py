"""The tutorials run from the first cell to the last, and reach what they tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from plait import modalities

TUTORIALS = Path(__file__).parents[1] / "examples" / "tutorials"
CELL = re.compile(r"^# %%.*$", re.MULTILINE)


def worked_through(name: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a tutorial in an empty folder; the names that it leaves."""
    monkeypatch.chdir(desk)
    monkeypatch.setattr(modalities, "_REGISTRY", {})
    file = TUTORIALS / name
    names: dict[str, Any] = {"__name__": file.stem}
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    return names


@pytest.mark.slow
def test_a_sound_finds_the_image_of_what_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    pytest.importorskip("soundfile")
    found = worked_through("search_by_sound.py", tmp_path, monkeypatch)
    assert found["right"] >= 4 * len(found["sounds"]) / found["images"]


@pytest.mark.slow
def test_owl2_learns_conversations_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worked_through("tune_owl2.py", tmp_path, monkeypatch)
    worth = found["worth"]
    assert worth["after"]["value"] < worth["trivial"]["value"] < worth["before"]["value"]
    assert found["said"] == {name: name for name in found["COLOURS"]}


@pytest.mark.slow
def test_depth_is_learned_beside_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    assert worked_through("add_a_modality.py", tmp_path, monkeypatch)["accuracy"] > 0.75


def test_tutorials_are_notebooks_kept_as_text_and_are_listed() -> None:
    listed = (TUTORIALS.parent / "README.md").read_text(encoding="utf-8")
    files = sorted(TUTORIALS.glob("*.py"))
    assert len(files) == 3
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "format_name: percent" in text and len(CELL.findall(text)) >= 10
        assert f"](tutorials/{file.name})" in listed
