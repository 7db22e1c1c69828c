"""An assistant keeps order, batches by kind, and never replaces what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest

import plait
from plait.assistant import Assistant, Box
from plait.types import Sample

from .conftest import grey

DARK, MIDDLE, BRIGHT = 10, 100, 200


def test_one_item_gives_one_result_and_a_list_a_list(assistant: Assistant) -> None:
    assert plait.Assistant is Assistant
    dark, bright = assistant.caption(grey(DARK)), assistant.caption(grey(BRIGHT))
    assert isinstance(dark, str) and dark and dark != bright
    assert assistant.caption([grey(DARK), grey(BRIGHT)]) == [dark, bright]
    skills = assistant.skills
    frames = skills.prepare("video", [grey(MIDDLE), grey(BRIGHT)])
    assert [assistant.caption((grey(MIDDLE), grey(BRIGHT)))] == skills.caption("video", [frames], {})


def test_order_stays_while_kinds_are_batched(
    assistant: Assistant, batches: list[tuple[str, int]], folder: Path
) -> None:
    items = [grey(DARK), grey(MIDDLE), grey(BRIGHT), folder / "c.mp4", grey(DARK)]
    captions = assistant.caption(items)
    assert batches == [("image", 2), ("image", 1), ("video", 1), ("image", 1)]
    assert captions == [assistant.caption(item) for item in items]
    assert len(set(captions[:4])) == 4 and captions[4] == captions[0]


def test_options_reach_the_model(assistant: Assistant) -> None:
    ids = assistant.processor.tokenizer(assistant.caption(grey(BRIGHT), max_length=3), add_special_tokens=False)
    assert len(ids["input_ids"]) <= 3
    assert assistant.caption(grey(DARK), num_beams=2) != assistant.caption(grey(DARK), num_beams=1)


def test_every_item_has_its_question(assistant: Assistant) -> None:
    who, what = assistant.answer(grey(BRIGHT), "who"), assistant.answer(grey(BRIGHT), "what")
    dark = assistant.answer(grey(DARK), "who")
    assert len({who, what, dark}) == 3
    assert assistant.answer([grey(DARK), grey(BRIGHT)], "who") == [dark, who]
    assert assistant.answer([grey(DARK), grey(BRIGHT)], ["who", "what"]) == [dark, what]
    assert assistant.answer(Sample("s", image=grey(BRIGHT), question="what"), "who") == what
    with pytest.raises(ValueError, match="one question per item"):
        assistant.answer([grey(1)], ["a", "b"])
    with pytest.raises(ValueError, match="expected a question"):
        assistant.answer(grey(1), " ")


def test_answers_from_a_list(assistant: Assistant) -> None:
    best, other = assistant.rank(grey(1), "who", ["dog", "cat"])
    assert {best.text, other.text} == {"cat", "dog"}
    assert best.probability > other.probability and best.probability + other.probability == pytest.approx(1)
    assert assistant.answer(grey(1), "who", ["cat", "dog"]) == best.text
    assert assistant.answer([grey(1)], "who", ["dog", "cat"]) == [best.text]
    with pytest.raises(ValueError, match="empty list"):
        assistant.answer(grey(1), "who", [])


def test_boxes_are_pixels_inside_the_image(grounding: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    x0, y0, x1, y1 = grounding.ground(grey(1, (40, 20)), "the dog")
    (shares,) = grounding.skills.ground([grounding.skills.prepare("image", grey(1, (40, 20)))], ["the dog"])
    edges = [min(1.0, max(0.0, share)) * size for share, size in zip(shares, (40, 20, 40, 20), strict=True)]
    assert [x0, y0, x1, y1] == pytest.approx(edges) and 0 <= x0 < x1 <= 40 and 0 <= y0 < y1 <= 20
    # a regression may leave the picture
    monkeypatch.setattr(type(grounding.skills), "ground", lambda *given: [(-0.5, 0.25, 0.5, 2.0)])
    assert grounding.ground(grey(1, (40, 20)), "the dog") == Box(0, 5, 20, 20)
    with pytest.raises(ValueError, match="expected image to ground, got video"):
        grounding.ground((grey(1), grey(2)), "the dog")


def test_classes_are_the_given_ones(assistant: Assistant) -> None:
    shares = dict(assistant.classify(grey(DARK), ["cat", "dog"]))
    assert set(shares) == {"cat", "dog"} and sum(shares.values()) == pytest.approx(1)
    assert shares == pytest.approx(dict(assistant.classify([grey(BRIGHT), grey(DARK)], ["dog", "cat"])[1]))


def test_what_cannot_be_read_is_named_or_skipped_and_never_replaced(assistant: Assistant, folder: Path) -> None:
    items = [folder / "a.png", folder / "d.png", folder / "missing.png", folder / "deep" / "b.png"]
    with pytest.raises(ValueError, match=r"d\.png"):
        assistant.caption(items[:2])
    whole = [assistant.caption(items[0]), None, None, assistant.caption(items[3])]
    assert assistant.caption(items, on_bad="skip") == whole
    assert [Path(result.name).name for result in assistant.skipped] == ["d.png", "missing.png"]
    assert assistant.answer(items, "who", ["cat"], on_bad="skip")[1] is None


def test_what_does_not_fit_the_task_is_skipped_or_stops_before_anything_runs(
    assistant: Assistant, grounding: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [grey(1, (40, 20)), (grey(2), grey(3))]
    box = grounding.ground(items[0], "the dog")
    assert grounding.ground(items, "the dog", on_bad="skip") == [box, None]
    answer = assistant.answer(grey(1), "who")
    assert assistant.answer([grey(1), grey(2)], ["who", " "], on_bad="skip") == [answer, None]
    assert "expected a question" in assistant.skipped[0].error
    monkeypatch.setattr(type(grounding.skills), "prepare", lambda *given: pytest.fail("decoded for nothing"))
    with pytest.raises(ValueError, match="expected image to ground, got video"):
        grounding.ground(items, "the dog")


def test_texts_over_the_limit_stop_before_anything_is_decoded(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(assistant.skills), "prepare", lambda *given: pytest.fail("decoded for nothing"))
    with pytest.raises(ValueError, match="at most 20 tokens, got 43"):
        assistant.answer(grey(1), "x " * 41)


def test_a_task_the_model_cannot_do_is_one_line(assistant: Assistant) -> None:
    can = "can ground, got MPlug2ForConditionalGeneration, which can answer, caption, classify, rank"
    with pytest.raises(ValueError, match=can):
        assistant.ground(grey(1), "the dog")


def test_a_model_of_a_family_without_skills_is_refused() -> None:
    import torch

    with pytest.raises(ValueError, match="can caption, answer, ground, classify or detect, got Linear"):
        Assistant((torch.nn.Linear(1, 1), None))
