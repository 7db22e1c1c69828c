"""VQA accuracy under its three published rules: answers -> normalised strings -> agreement with the other annotators.

Normalisation: punctuation step, then digits and articles (VQA evaluation tools, Antol et al. 2015); `evalai` is the
processor of the challenge server. The three differ by up to 14 points on the same answers.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

MARKS = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {  # noqa: SIM905
    "none": "0"
}
ARTICLES = {"a", "an", "the"}
_COMMA_NUMBER = re.compile(r"(\d)(,)(\d)")
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_PERIODS_DELETED = 32
RULES = ("official", "release", "evalai")


@cache
def contractions() -> dict[str, str]:
    """Spellings without apostrophe -> with it, as the tools list them."""
    text = (files("plait.metrics") / "contractions.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def without_punctuation(text: str, *, commas_in_numbers: bool = True) -> str:
    """Delete marks that stand beside a space (or all, where a number has a comma), replace the others by a space."""
    found = text
    is_number = commas_in_numbers and _COMMA_NUMBER.search(text) is not None
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or is_number else " ")
    return _PERIOD.sub("", found, count=_PERIODS_DELETED)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophe."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def evalai(text: str) -> str:
    """The challenge server's processor."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(without_punctuation(_one_line(text.strip()), commas_in_numbers=False))


def vqa_accuracy(prediction: str, answers: list[str], rule: str) -> float:
    """Mean over annotators of min(1, agreeing others / 3), between 0 and 1. answers: of the annotators, usually ten.

    Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"expected a rule of {', '.join(RULES)}, got {rule!r}")
    if rule == "evalai":
        prediction, answers = evalai(prediction), [evalai(answer) for answer in answers]
    elif rule == "official":
        prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
        if len(set(answers)) > 1:
            answers = [plain_words(without_punctuation(answer)) for answer in answers]
            prediction = plain_words(without_punctuation(prediction))
    else:
        prediction = plain_words(without_punctuation(_one_line(prediction)))
        if len(set(answers)) > 1:
            answers = [without_punctuation(answer) for answer in answers]
    if len(answers) == 1:
        return float(prediction == answers[0])
    matches = sum(answer == prediction for answer in answers)
    others = [matches - (answer == prediction) for answer in answers]
    return sum(min(1.0, count / 3) for count in others) / len(answers)
