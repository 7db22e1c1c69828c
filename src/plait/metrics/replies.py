"""What a reply says, by the rules that benchmarks published: option letters, open answers, yes or no.

A rule that finds nothing gives None, where some originals draw at random or ask a judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

LETTERS = "ABCDEFGHIJ"
_TOOLKIT_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_TOOLKIT_ANSWER = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_TOOLKIT_REFUSALS = (
    "Failed to obtain answer via API",
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
_NUMBER_FORMS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_EDGE = ",.!?;:'"
_TRIVIAL = tuple(_EDGE)
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")


def _first_character(reply: str, choices: Sequence[str]) -> str | None:
    """SEED-Bench: the first character, whatever it is."""
    return reply.strip()[:1] or None


def _scienceqa(reply: str, choices: Sequence[str]) -> str | None:
    """ScienceQA: a letter, "A. text", or one "The answer is A." in the reply."""
    found = re.findall(r"The answer is ([A-Z]).", reply)
    # a tuple, since the empty reply's "" is in every text
    if reply[:1] in tuple(LETTERS[:5]) and reply[1:3] in ("", ". "):
        found = [reply[0]]
    return found[0] if len(found) == 1 and found[0] in LETTERS[: min(len(choices), 5)] else None


def _mmbench_2023(reply: str, choices: Sequence[str]) -> str | None:
    """MMBench's rule of 2023: a letter, alone or with marks, as a word, else an option's text."""
    words = reply.split()
    for form in ("{}", *_FORMS):
        if form == "{}" and "A" in words and len(words) > 3:
            continue  # a sentence with the article A
        found = [c for c in LETTERS[:5] if form.format(c) in words]
        if len(found) == 1:
            return found[0]
    return _by_text(reply, choices)


def _by_text(reply: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option whose text stands in the reply, in any case."""
    found = [c for c, text in zip(LETTERS, choices) if text and text.lower() in reply.lower()]
    return found[0] if len(found) == 1 else None


def _mmbench_toolkit(reply: str, choices: Sequence[str]) -> str | None:
    """MMBench's letter as the later evaluation toolkit reads it: marks as spaces, then words."""
    if any(refusal in reply for refusal in _TOOLKIT_REFUSALS):
        return None
    letters = LETTERS[: len(choices)]
    words = reply.translate(_TOOLKIT_MARKS).split()
    found = [c for c in letters if c in words]
    # near the end only: an early A may be an article
    if len(found) == 1 and words.index(found[0]) > len(words) - 5:
        return found[0]
    if not found and "Z" in words:  # the letter by which the toolkit says that there is none
        return None
    told = _TOOLKIT_ANSWER.search(reply)
    if told and told[1].upper() in letters:
        return told[1].upper()
    # a long reply names options that it rejects: by text only while it is about as long as they are
    return _by_text(reply, choices) if len(reply) <= 2 * sum(map(len, choices)) else None


def _mmmu_official(reply: str, choices: Sequence[str]) -> str | None:
    """MMMU's parser: the last letter in brackets, else alone, else the last option's text.

    The original draws at random where it finds nothing; here that is None.
    """
    for mark in _EDGE:  # one after another: "D.'" keeps its period
        reply = reply.strip(mark)
    text = f" {reply} "
    letters = LETTERS[: len(choices)]
    for form in ("({})", " {} "):
        if found := [c for c in letters if form.format(c) in text]:
            return max(found, key=lambda c: text.rfind(form.format(c)))
    # a shorter reply without a letter is no sentence about an option
    if len(text.split()) > 5:
        low = text.lower()
        if found := [c for c, choice in zip(letters, choices) if choice and choice.lower() in low]:
            return max(found, key=lambda c: low.rfind(choices[letters.index(c)].lower()))
    return None


def _agieval(reply: str, choices: Sequence[str]) -> str | None:
    """AGIEval: the first capital from A to F, wherever it stands."""
    # "A cat" says A too: the rule is that simple, as published
    return next((c for c in reply if c in LETTERS[:6]), None)


LETTER_RULES: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "first_character": _first_character,
    "scienceqa": _scienceqa,
    "mmbench_2023": _mmbench_2023,
    "mmbench_toolkit": _mmbench_toolkit,
    "mmmu_official": _mmmu_official,
    "agieval_first_capital": _agieval,
}
"""Rules by name; see the golden case letter_extraction."""


def letter(reply: str, choices: Sequence[str], rule: str) -> str | None:
    """The letter that a rule reads out of a reply.

    Args:
        reply: of a model, as it was written.
        choices: texts of the options in order; some rules read letters alone.
        rule: a name of `LETTER_RULES`.

    Returns:
        A capital letter, or None where the rule finds none.

    Raises:
        ValueError: for an unknown rule.

    Example:
        >>> letter("The answer is B.", ["cat", "dog"], "scienceqa")
        'B'
    """
    if rule not in LETTER_RULES:
        raise ValueError(f"expected a rule of {', '.join(LETTER_RULES)}, got {rule!r}")
    return LETTER_RULES[rule](reply, choices)


def mmmu_release_letter(reply: str, choices: Sequence[str]) -> str | None:
    """MMMU's letter as the parser in the release of mPLUG-Owl2 reads it.

    Like the official parser, and also `B. text`, an option repeated whole; the last one wins.
    """
    found = _mmmu_official(reply, choices)
    lettered = [c for c in LETTERS[: len(choices)] if f" {c}. " in f" {reply}"]
    return found or (lettered[-1] if lettered else None)


def open_answer_hit(reply: str, answers: Sequence[str]) -> bool:
    """MMMU: whether an open answer is right.

    A candidate of the reply must contain a right text or equal a right number.

    Args:
        reply: free text.
        answers: right ones, any of which will do.
    """
    right = [one for answer in answers for one in normal_form(answer)]
    for candidate in open_candidates(reply):
        if isinstance(candidate, str):
            if any(isinstance(one, str) and one in candidate for one in right):
                return True
        elif candidate in right:
            return True
    return False


def open_candidates(reply: str) -> list[str | float]:
    """MMMU: what a free reply may mean.

    Tails after key words, and the numbers in them, in normal form, each once.

    Args:
        reply: free text.
    """
    parts = _key_parts(reply)
    texts = parts + [number for part in parts for form in _NUMBER_FORMS for number in form.findall(part)]
    return list(dict.fromkeys(one for text in texts for one in normal_form(text)))


def _key_parts(reply: str) -> list[str]:
    """Tails after key words such as "is " in every sentence, the shortest of each; else all of it."""
    text = reply.strip().strip(".").lower()
    # the split at ". " + capital never fires on lower-cased text: kept, since the release has it
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)
    found = []
    for i, sentence in enumerate(sentences):
        keys = (*_KEYS, "=") if i == len(sentences) - 1 else _KEYS
        shortest = ""
        for tail in (sentence.split(key)[-1].strip() for key in keys if key in sentence):
            # an empty tail starts anew
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in _TRIVIAL:
            found.append(shortest)
    return found or [text]


def normal_form(text: str) -> list[str | float]:
    """MMMU: a number rounded to two decimals, else lower case; both as a list.

    A single character stands beside a space, so that it is no part of a word.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def mme_label(reply: str) -> str:
    """MME: yes or no, the whole reply or within its first four characters, else other.

    An `other` is wrong. Case does not count.
    """
    low = reply.lower()
    return low if low in ("yes", "no") else next((word for word in ("yes", "no") if word in low[:4]), "other")


def pope_label(reply: str) -> str:
    """POPE: no where the first sentence has one of the words No, not, no; else yes.

    NO in capitals is a yes: the public script compares these three spellings.
    """
    words = reply.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"
