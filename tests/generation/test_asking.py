"""The words of every kind of question, character for character (specification evaluation, section 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from plait.generation.asking import Asking
from plait.types import Decoding, QuestionKind

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option’s letter from the given choices directly."


@dataclass
class Item:
    question: str | None = "What is it?"
    text: str | None = "a red kite"
    context: str | None = "Kites fly."
    choices: list[str] | None = field(default_factory=lambda: ["a bird", "a toy"])
    answer_index: int | None = 1
    category: str | None = "high_school_zoology"
    meta: dict[str, Any] = field(default_factory=dict)


SOLVED = Item("Who?", None, None, ["me", "you"], 1)
WORDS: dict[str, tuple[Item, str]] = {
    "caption": (Item(), "Provide a one-sentence caption for the provided image."),
    "open": (Item(), "What is it?"),
    "short": (Item(), f"What is it? {SHORT}"),
    "letters_with_hint": (Item(), f"Kites fly.\nWhat is it?\nA. a bird\nB. a toy\n{LETTER}"),
    "letters": (Item(), f"What is it?\nA. a bird\nB. a toy\n{LETTER}"),
    "letters_or_words": (Item(), f"What is it?\nA. a bird\nB. a toy\n{LETTER}"),
    "yes_no": (Item("Is it a bird? Please answer yes or no."), f"Is it a bird?\n{SHORT}"),
    "statement": (Item(), "a red kite Is this statement true? Answer yes or no."),
    "entailment": (
        Item(),
        "a red kite Does the picture entail, contradict or neither? Answer entailment, contradiction or neutral.",
    ),
    "locate": (Item(), "Give the box of: a red kite. Answer with x1, y1, x2, y2 as fractions of width and height."),
    "few_shot": (
        Item(meta={"examples": [SOLVED]}),
        "The following are multiple choice questions (with answers) about high school zoology.\n\n"
        "Who?\nA. me\nB. you\nAnswer: B\n\nWhat is it?\nA. a bird\nB. a toy\nAnswer:",
    ),
    "exam": (Item(), "Kites fly.\nWhat is it?\nA. a bird\nB. a toy\nAnswer:"),
    "plain": (Item(), "What is it?\nAnswer:"),
}


def test_every_kind_is_held() -> None:
    assert set(WORDS) == set(get_args(QuestionKind))


@pytest.mark.parametrize("kind", WORDS)
def test_a_question_has_the_words_of_its_kind(kind: Any) -> None:
    item, words = WORDS[kind]
    assert Asking().prompt(kind, item) == words


def test_parts_that_an_item_lacks_leave_no_trace() -> None:
    asking = Asking()
    assert asking.prompt("letters_with_hint", Item(context=None)).startswith("N/A\n")
    assert asking.prompt("letters_or_words", Item(choices=None)) == f"What is it?\n{SHORT}"
    assert asking.prompt("exam", Item(context=None)) == "What is it?\nA. a bird\nB. a toy\nAnswer:"
    assert asking.prompt("exam", Item(choices=None)) == "What is it?\nAnswer:"  # a passage belongs to choices
    with pytest.raises(ValueError, match="a known kind of question, got 'riddle'"):
        asking.prompt("riddle", Item())  # type: ignore[arg-type]


def test_earlier_turns_stand_in_front() -> None:
    assert Asking().dialogue([("Who?", "A man."), ("Where?", "At sea.")], "Why?") == (
        "Who?\nA man.\nWhere?\nAt sea.\nWhy?"
    )
    assert Asking().choice("Who?", "a man") == "Who? answer: a man"


def test_lengths_of_answers_are_those_of_the_released_scripts() -> None:
    decoding = Asking().decoding
    assert decoding("caption", "image") == Decoding(max_new_tokens=60, min_new_tokens=8, length_penalty=0.0)
    lengths = {kind: decoding(kind, "image").max_new_tokens for kind in get_args(QuestionKind) if kind != "caption"}
    longer = {"open": 256, "plain": 128, "locate": 40, "letters_or_words": 20, "exam": 20}
    assert lengths == {kind: longer.get(kind, 10) for kind in lengths}
