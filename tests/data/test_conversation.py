"""One row, one conversation, whatever it holds and whichever family reads it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plait.data.conversation import conversation_of, holds_conversation, num_learned, read_talk
from plait.types import Sample, spoken

ASKED = "Describe this {kind}."


def said(sample: Sample, number: int = 0) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"]) for turn in conversation_of(sample, ASKED, number)]


def test_captions_questions_and_messages_become_turns() -> None:
    assert said(Sample("a", image="a.png", text="red")) == [("human", "<image>Describe this image."), ("gpt", "red")]
    asked = Sample("b", video="b.mp4", question="what?", answers=["this", "that"])
    assert said(asked) == [("human", "<video>what?"), ("gpt", "this")]
    assert said(asked, 3)[1] == ("gpt", "that")
    parts = [{"type": "text", "text": "which? "}, {"type": "image"}]
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": parts}]
    talk.append({"role": "assistant", "content": "red"})
    kept = [("system", "be kind"), ("human", "which? <image>"), ("gpt", "red")]
    assert said(Sample("c", image="c.png", messages=talk)) == kept
    words = Sample("d", question="one and one?", answers=["two"])
    assert said(words) == [("human", "one and one?"), ("gpt", "two")]


def test_placeholders_of_every_family_are_known() -> None:
    for mark in ("<image>", "<|image|>"):
        assert said(Sample("a", image="a.png", question=f"so {mark}", answers=["x"]))[0] == ("human", "so <image>")
    for mark in ("<video>", "<|video|>", "<image>"):  # <image> stands for whatever medium there is
        assert said(Sample("a", video="a.mp4", question=f"so {mark}", answers=["x"]))[0] == ("human", "so <video>")
    several = Sample("s", image=["a", "b"], question="<image> or <image>?", answers=["a"])
    assert said(several)[0] == ("human", "<image> or <image>?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Sample("x", messages=[{"role": "tool", "content": "?"}]), "expected messages from human.*got 'tool' in row"),
        (Sample("x", messages=[{"role": "user", "content": "<image>"}]), "row x: expected 1 images .*, got 0;"),
        (Sample("x", image="i", question="<image> <image>", answers=["a"]), "row x: expected 2 images .*, got 1;"),
        (
            Sample("x", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            "expected parts of type text, image or video, got 'image_url' in row 'x'",
        ),
        (
            Sample("x", messages=[{"role": "user", "content": "?"}, {"role": "system", "content": "!"}]),
            "from system as the first, got 'system' in row 'x'",
        ),
        (Sample("x", text="nothing to see"), "expected messages, a question with answers or a caption in row 'x'"),
        (Sample("x", messages=[{"role": "system", "content": "?"}]), "expected messages, a question with answers"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_named(row: Sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation_of(row, ASKED)


def test_what_an_answer_or_a_part_writes_is_no_place() -> None:
    parts = [{"type": "text", "text": "what is <image>?"}, {"type": "text", "text": " And <|video|>?"}]
    row = Sample("a", messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": "<image>!"}])
    (_, asked), (_, answered) = said(row)
    assert (spoken(asked), spoken(answered)) == ("what is <image>? And <|video|>?", "<image>!")
    assert "<image>" not in asked + answered
    (_, asked), (_, told) = said(Sample("b", image="b.png", captions=["an <image> tag"]))
    assert asked.count("<image>") == 1 and spoken(told) == "an <image> tag" != told


def test_rows_that_hold_a_conversation_are_told() -> None:
    captioned = Sample("a", image="a.png", text="red")
    assert holds_conversation(captioned, captions=True) and not holds_conversation(captioned, captions=False)
    assert not holds_conversation(Sample("b", text="words alone"), captions=True)
    assert not holds_conversation(Sample("c", question="what?"), captions=True)


def test_answers_are_drawn_where_that_is_asked_for() -> None:
    row = Sample("a", image=Image.new("RGB", (4, 4)), question="?", answers=["x", "y"])
    rng, how = np.random.default_rng(0), {"describe": ASKED, "num_frames": 2}
    assert {read_talk(row, rng, **how).turns[1]["value"] for _ in range(20)} == {"x"}
    assert {read_talk(row, rng, **how, is_drawn=True).turns[1]["value"] for _ in range(20)} == {"x", "y"}


def test_labels_of_the_first_position_are_never_learned() -> None:
    assert num_learned({"labels": np.array([[5, -100, 7], [-100, 8, 9]])}) == 3
