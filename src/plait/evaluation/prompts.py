"""What a model is asked: item -> words, as the release of its family words them.

A template is chosen by the task and by the model's family; how words and pictures are laid out for a model (roles,
placeholders) is the matter of `plait.evaluation.runners`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from plait.evaluation.readers import Item
from plait.evaluation.readers.choices import LETTERS

Template = Callable[[Item], str]

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option’s letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
MAX_QUESTION_WORDS = 50
PLACEHOLDER = re.compile(r"<image (\d)>")


def _caption(item: Item) -> str:
    return CAPTION


def _question(item: Item) -> str:
    return item.question or ""


def _short(item: Item) -> str:
    return f"{item.question} {SHORT_ANSWER}"


def _letters(item: Item) -> str:
    return f"{item.context or 'N/A'}\n{_letters_without_hint(item)}"


def _letters_without_hint(item: Item) -> str:
    return f"{_options(item)}\n{LETTER_ANSWER}"


def _options(item: Item) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices or [])]
    return "\n".join([item.question or "", *lines])


def _mme(item: Item) -> str:
    question = (item.question or "").replace("Please answer yes or no.", "").strip()
    return f"{question}\n{SHORT_ANSWER}"


def _mmmu(item: Item) -> str:
    return _letters_without_hint(item) if item.choices else f"{item.question}\n{SHORT_ANSWER}"


def _statement(item: Item) -> str:
    return f"{item.text} Is this statement true? Answer yes or no."


def _entailment(item: Item) -> str:
    return f"{item.text} Does the picture entail, contradict or neither? Answer entailment, contradiction or neutral."


def _locate(item: Item) -> str:
    return f"Give the box of: {item.text}. Answer with x1, y1, x2, y2 as fractions of width and height."


def _few_shot(item: Item) -> str:
    subject = (item.category or "").replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    shown = [f"{_options(one)}\nAnswer: {LETTERS[one.answer_index or 0]}\n\n" for one in item.meta.get("examples", [])]
    return head + "".join(shown) + f"{_options(item)}\nAnswer:"


def _text_letters(item: Item) -> str:
    if not item.choices:
        return _plain(item)
    passage = f"{item.context}\n" if item.context else ""
    return f"{passage}{_options(item)}\nAnswer:"


def _plain(item: Item) -> str:
    return f"{item.question}\nAnswer:"


def _pair(item: Item) -> str:
    return item.text or ""


def _cleaned(item: Item) -> str:
    """mPLUG-2: lower case, no punctuation, 50 words."""
    words = re.sub(r"([,.'!?\"()*#:;~])", "", (item.question or "").lower()).replace("-", " ").replace("/", " ")
    return " ".join(words.split()[:MAX_QUESTION_WORDS])


def _nothing(item: Item) -> str:
    return ""


TEMPLATES: dict[str, Template] = {
    "caption": _caption,
    "question": _question,
    "short": _short,
    "letters": _letters,
    "letters_without_hint": _letters_without_hint,
    "mme": _mme,
    "mmmu": _mmmu,
    "statement": _statement,
    "entailment": _entailment,
    "locate": _locate,
    "few_shot_letters": _few_shot,
    "text_letters": _text_letters,
    "plain": _plain,
    "pair": _pair,
}
"""Templates by the name that a task gives."""

BY_FAMILY: dict[str, dict[str, Template]] = {"mplug2": {"short": _cleaned, "question": _cleaned, "caption": _nothing}}
"""Family -> template name -> what its release asks instead."""


def words_for(template: str, family: str, item: Item) -> str:
    """The words of a template for an item. Raises ValueError for an unknown template."""
    if template not in TEMPLATES:
        raise ValueError(f"expected a prompt of {', '.join(TEMPLATES)}, got {template!r}")
    return BY_FAMILY.get(family, {}).get(template, TEMPLATES[template])(item)


FURTHER_TURN: dict[str, str] = {
    "mplug_owl": "{question}\nAI: {answer}\nHuman: ",
    "mplug_owl2": "{question} ASSISTANT: {answer}</s>USER: ",
}
"""Family -> what a turn of a dialogue that is over looks like in front of the words of the next one."""


def in_dialogue(family: str, earlier: Sequence[tuple[str, str]], words: str) -> str:
    """Words behind the turns (question, answer) of a dialogue; turns of other families are lines."""
    form = FURTHER_TURN.get(family, "{question}\n{answer}\n")
    return "".join(form.format(question=question, answer=answer) for question, answer in earlier) + words
