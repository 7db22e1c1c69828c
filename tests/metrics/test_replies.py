"""Letters that published rules read out of replies; what the toolkit of MMBench does was seen by running it."""

from __future__ import annotations

import pytest

from plait.metrics.replies import letter

OPTIONS = ["red car", "green one", "blue", "yellow bus"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("So it must be C", "C"),
        ("C it is, in the end I guess", None),
        ("C it is, in the end the answer is C", "C"),
        ("The answer is A. The answer is A.", "A"),
        ("A or B? The correct answer is **b**", "B"),
        ("the answer is  (C) or D", None),
        ("the answer is E", None),
        ("Cannot determine the answer, but B", None),
        ("Z, not the blue one", None),
        ("the blue one", "C"),
        ("the blue one, which I say at great length because it is so blue, and nothing else", None),
    ],
)
def test_the_toolkit_of_mmbench_wants_the_letter_late_or_told(reply: str, expected: str | None) -> None:
    assert letter(reply, OPTIONS, "mmbench_toolkit") == expected


def test_a_letter_beyond_the_options_is_no_answer() -> None:
    assert letter("the answer is C", OPTIONS[:2], "mmbench_toolkit") is None
    assert letter("(C)", OPTIONS[:2], "mmmu_official") is None


def test_an_option_without_text_is_in_no_reply() -> None:
    reply = "one two three four five six red car"
    assert letter(reply, ["red car", "", ""], "mmmu_official") == "A"
    assert letter(reply, ["", "x y z", ""], "mmmu_official") is None
