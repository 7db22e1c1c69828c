"""VQA accuracy under its three published rules: answers -> normal form -> agreement of annotators.

prediction, ten answers -> punctuation step -> digits and articles -> mean over annotators

Normalisation: VQA evaluation tools, Antol et al. 2015; `evalai` is the processor of the challenge
server, `release` mPLUG-Owl2's script. On one set of data `official` gave 71.9, `release` 70.6 and
`evalai` 84.4 (specification evaluation, 4.2): never compare across rules.
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
    """Spellings without apostrophe -> with it, as the tools list them: dont -> don't.

    Read once from the file beside this module.
    """
    text = (files("plait.metrics") / "contractions.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def without_punctuation(text: str, *, commas_in_numbers: bool = True) -> str:
    """The punctuation step: some marks are deleted, the others become a space.

    Args:
        text: an answer, in any case.
        commas_in_numbers: whether a number with a comma makes all marks deletable.

    Returns:
        The text; a mark beside a space anywhere, or any mark where a number has a comma, is
        deleted, and so are periods that no digit follows.
    """
    found = text
    # the tools ask this once for the whole answer, not per mark
    is_number = commas_in_numbers and _COMMA_NUMBER.search(text) is not None
    for mark in MARKS:
        # in the text as it was given: marks replaced before do not make spaces for this test
        beside_space = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_space or is_number else " ")
    # the tools pass a flag (re.UNICODE, 32) where the count belongs: a 33rd period stays
    return _PERIOD.sub("", found, count=_PERIODS_DELETED)


def plain_words(text: str) -> str:
    """The digit and article step: lower case, number words as digits, no a, an or the.

    Contractions get their apostrophe, as the tools list them. text: after the punctuation step.
    """
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def _one_line(text: str) -> str:
    """Line ends and tabs as spaces, ends stripped: the first step of every rule."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def evalai(text: str) -> str:
    """An answer as the challenge server's processor writes it before it compares.

    All commas and question marks go first, so its numbers never have a comma.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(without_punctuation(_one_line(text.strip()), commas_in_numbers=False))


def vqa_accuracy(prediction: str, answers: list[str], rule: str) -> float:
    """Mean over annotators of min(1, agreeing others / 3): a fraction.

    Args:
        prediction: the answer given.
        answers: of the annotators, usually ten; a single one must be equal.
        rule: `official`, `release` or `evalai`.

    Raises:
        ValueError: for an unknown rule.

    Source:
        Antol et al. 2015; specification mPLUG-Owl2, 11, and evaluation, 4.2.

    Example:
        >>> vqa_accuracy("2", ["two"] * 10, "evalai")
        1.0
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
            # the release leaves articles, case and number words of right answers as they are
            answers = [without_punctuation(answer) for answer in answers]
    # one right answer has no others to agree with: exact match
    if len(answers) == 1:
        return float(prediction == answers[0])
    matches = sum(answer == prediction for answer in answers)
    # each annotator judges by the other nine: his own vote does not count
    others = [matches - (answer == prediction) for answer in answers]
    return sum(min(1.0, count / 3) for count in others) / len(answers)
