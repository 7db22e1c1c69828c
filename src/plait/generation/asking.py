"""How instruction-tuned models are asked: the words of public benchmark suites, and how long an answer may be.

    kind of question + item -> words -> (behind the turns of a dialogue) -> layout of the family -> text that is fed

The words are those of mPLUG-Owl2's released evaluation (specification evaluation, section 2), which other suites share
in part; where nothing was released (statements, entailment, boxes, texts alone) they are Plait's. A family that was
trained with other words overrides them in its skills. Pure Python: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from plait.types import Ask, Capability, Decoding, Modality, Question, QuestionKind

LETTERS = "ABCDEFGHIJ"
SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option’s letter from the given choices directly."
"""With a typographic apostrophe, as released: another character is another token."""


def options(item: Question) -> str:
    """The question and its choices, one a line, lettered A to J.

    item: its `question` may be None, which leaves the first line empty.
    """
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices or [])]
    return "\n".join([item.question or "", *lines])


class Asking:
    """What a family inherits that says nothing else about how it is asked; see `plait.types.Asks`.

    A family overrides what its own release says: `prompt` for words, `layout` for placeholders and
    roles, `decoding` for lengths.
    """

    num_frames = 8
    """No release says how many frames a video question takes; 8 is what public suites use."""
    frames = "time"
    """Frames evenly in time, where no release says how they are chosen."""
    sampling_rate = 16000
    capabilities: tuple[Capability, ...] = ()
    rerank = 0
    """The best of a retrieval that a match head scores anew, as released; 0 for families without one."""
    ranked = 0
    """Answers of a list that are scored in full, as released; 0 for families that write answers alone."""

    def prompt(self, kind: QuestionKind, item: Question) -> str:
        """The words of a question.

        Args:
            kind: how it wants to be answered.
            item: what it is made of; text kinds read `context`, `choices`, `meta["examples"]`.

        Raises:
            ValueError: for an unknown kind.
        """
        question = item.question or ""
        match kind:
            case "caption":
                return "Provide a one-sentence caption for the provided image."
            case "open":
                return question
            case "short":
                return f"{question} {SHORT_ANSWER}"
            case "letters_with_hint":
                return f"{item.context or 'N/A'}\n{options(item)}\n{LETTER_ANSWER}"
            case "letters":
                return f"{options(item)}\n{LETTER_ANSWER}"
            case "letters_or_words":
                return f"{options(item)}\n{LETTER_ANSWER}" if item.choices else f"{question}\n{SHORT_ANSWER}"
            case "yes_no":
                # MME's questions carry an instruction of their own, which the release takes out
                return f"{question.replace('Please answer yes or no.', '').strip()}\n{SHORT_ANSWER}"
            case "statement":
                return f"{item.text} Is this statement true? Answer yes or no."
            case "entailment":
                asked = "Does the picture entail, contradict or neither? Answer entailment, contradiction or neutral."
                return f"{item.text} {asked}"
            case "locate":
                asked = "Answer with x1, y1, x2, y2 as fractions of width and height."
                return f"Give the box of: {item.text}. {asked}"
            case "few_shot":  # the protocol of MMLU: solved questions of the same subject in front
                subject = (item.category or "").replace("_", " ")
                head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
                solved = item.meta.get("examples", [])
                shown = [f"{options(one)}\nAnswer: {LETTERS[one.answer_index or 0]}\n\n" for one in solved]
                return head + "".join(shown) + f"{options(item)}\nAnswer:"
            case "exam":
                passage = f"{item.context}\n" if item.context and item.choices else ""
                return f"{passage}{options(item)}\nAnswer:"
            case "plain":
                return f"{question}\nAnswer:"
        raise ValueError(f"expected a known kind of question, got {kind!r}")

    def dialogue(self, earlier: Sequence[tuple[str, str]], words: str) -> str:
        """Earlier turns as lines in front of the words.

        Args:
            earlier: (asked, answer), oldest first.
            words: of the question now.
        """
        return "".join(f"{asked}\n{answer}\n" for asked, answer in earlier) + words

    def choice(self, question: str, choice: str) -> str:
        """A question and one of its choices as a sentence that a medium is held against."""
        return f"{question} answer: {choice}"

    def layout(self, ask: Ask) -> str:
        """The words themselves; a family puts placeholders and roles around them."""
        return ask.words

    def decoding(self, kind: QuestionKind, medium: Modality) -> Decoding:
        """Greedy, with the lengths of the released scripts; open answers may be long.

        8 to 60 new tokens for captions, 10 for a word or a letter, 20 for MMMU (specification
        mPLUG-Owl2, 11); the lengths of open, plain and located answers are Plait's.
        """
        if kind == "caption":
            return Decoding(max_new_tokens=60, min_new_tokens=8, length_penalty=0.0)
        longest = {"open": 256, "plain": 128, "locate": 40, "letters_or_words": 20, "exam": 20}
        return Decoding(max_new_tokens=longest.get(kind, 10))
