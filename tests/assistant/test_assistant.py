"""An assistant keeps order, batches by kind, and never replaces what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest

import plait
from plait.assistant import Assistant, Box
from plait.types import Sample

from .conftest import Parrot, grey


def test_one_item_gives_one_result_and_a_list_a_list(assistant: Assistant) -> None:
    assert plait.Assistant is Assistant
    assert assistant.caption(grey(3)) == "image 3"
    assert assistant.caption([grey(3), grey(4)]) == ["image 3", "image 4"]
    assert assistant.caption((grey(3), grey(5))) == "video 4"


def test_order_stays_while_kinds_are_batched(assistant: Assistant, parrot: Parrot, folder: Path) -> None:
    items = [grey(1), grey(2), grey(3), folder / "c.mp4", grey(4)]
    captions = assistant.caption(items)
    assert [line.split()[0] for line in captions] == ["image", "image", "image", "video", "image"]
    assert parrot.batches == [("image", 2), ("image", 1), ("video", 1), ("image", 1)]


def test_options_reach_the_model(assistant: Assistant) -> None:
    assert assistant.caption(grey(3), num_beams=2) == "image 3 num_beams=2"


def test_every_item_has_its_question(assistant: Assistant) -> None:
    assert assistant.answer([grey(1), grey(2)], "who") == ["who 1", "who 2"]
    assert assistant.answer([grey(1), grey(2)], ["who", "what"]) == ["who 1", "what 2"]
    sample = Sample("s", image=grey(9), question="where")
    assert assistant.answer(sample, "who") == "where 9"
    with pytest.raises(ValueError, match="one question per item"):
        assistant.answer([grey(1)], ["a", "b"])
    with pytest.raises(ValueError, match="expected a question"):
        assistant.answer(grey(1), " ")


def test_answers_from_a_list(assistant: Assistant) -> None:
    assert assistant.answer(grey(1), "who", ["cat", "dog"]) == "dog"
    assert assistant.answer([grey(1)], "who", ["cat", "dog"]) == ["dog"]
    assert assistant.rank(grey(1), "who", ["cat", "dog"])[0].probability == 0.75
    with pytest.raises(ValueError, match="empty list"):
        assistant.answer(grey(1), "who", [])


def test_boxes_are_pixels_inside_the_image(assistant: Assistant) -> None:
    assert assistant.ground(grey(1, (40, 20)), "the dog") == Box(0, 5, 20, 20)
    with pytest.raises(ValueError, match="expected image to ground, got video"):
        assistant.ground((grey(1), grey(2)), "the dog")


def test_texts_and_pictures_are_classified(assistant: Assistant) -> None:
    assert [label for label, _ in assistant.classify(Sample("s", text="a fine film"))] == ["bright", "dark"]
    assert [label for label, _ in assistant.classify(grey(1), ["cat"])] == ["cat"]


def test_what_cannot_be_read_is_named_or_skipped_and_never_replaced(assistant: Assistant, folder: Path) -> None:
    items = [folder / "a.png", folder / "d.png", folder / "missing.png", folder / "deep" / "b.png"]
    with pytest.raises(ValueError, match=r"d\.png"):
        assistant.caption(items[:2])
    assert assistant.caption(items, on_bad="skip") == ["image 10", None, None, "image 200"]
    assert [Path(result.name).name for result in assistant.skipped] == ["d.png", "missing.png"]
    assert assistant.answer(items, "who", ["cat"], on_bad="skip")[1] is None


def test_what_does_not_fit_the_task_is_skipped_or_stops_before_anything_runs(
    assistant: Assistant, parrot: Parrot
) -> None:
    items = [grey(1, (40, 20)), (grey(2), grey(3))]
    with pytest.raises(ValueError, match="expected image to ground, got video"):
        assistant.ground(items, "the dog")
    assert not parrot.batches
    assert assistant.ground(items, "the dog", on_bad="skip") == [Box(0, 5, 20, 20), None]
    assert assistant.answer([grey(1), grey(2)], ["who", " "], on_bad="skip") == ["who 1", None]
    assert "expected a question" in assistant.skipped[0].error


def test_texts_over_the_limit_stop_before_anything_is_decoded(assistant: Assistant, parrot: Parrot) -> None:
    with pytest.raises(ValueError, match="at most 40 letters, got 41"):
        assistant.answer(grey(1), "x" * 41)
    assert not parrot.batches


def test_a_task_the_model_cannot_do_is_one_line(assistant: Assistant, parrot: Parrot) -> None:
    parrot.tasks = frozenset({"caption"})
    with pytest.raises(ValueError, match="expected a model that can ground, got Linear, which can caption"):
        assistant.ground(grey(1), "the dog")


def test_a_model_of_a_family_without_skills_is_refused() -> None:
    import torch

    with pytest.raises(ValueError, match="can caption, answer, ground, classify or detect, got Linear"):
        Assistant((torch.nn.Linear(1, 1), None))
