"""Every cell of task and modality has its own instruction, and switched off there is none."""

from __future__ import annotations

import pytest

from plait.models.mplug2.composition import TEMPLATES, instruct


def test_instructions_tell_tasks_and_modalities_apart() -> None:
    lines = {instruct(task, medium, "who runs") for task, medium in TEMPLATES}
    assert len(lines) == len(TEMPLATES)
    assert all(line == line.lower() for line in lines)


def test_switched_off_only_the_text_remains() -> None:
    assert instruct("answer", "video", "who runs", enabled=False) == "who runs"
    assert instruct("caption", "image", enabled=False) == ""


def test_unknown_cells_and_missing_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="got ground video"):
        instruct("ground", "video", "the dog")
    with pytest.raises(ValueError, match="expected a text for the task answer"):
        instruct("answer", "image")
