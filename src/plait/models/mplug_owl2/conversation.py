"""Conversations: turns -> prompt -> ids with one -200 per image -> labels on the answers.

turns -> Template.prompt -> tokenize -> answer_labels        (specification mPLUG-Owl2, sections 9.2 to 9.4, 11)

Published prompts and templates are data; the official label rule, which counts on Llama's tokenizer, and one that holds
for every tokenizer stand side by side (`official_labels`, `answer_labels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plait.models.mplug_owl2.model import IMAGE_PLACEHOLDER
from plait.processing.talking import IGNORED, Encode, Turn
from plait.types import as_words

IMAGE = "<|image|>"
VIDEO = "<|video|>"
_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Template:
    """How turns become text.

    Args:
        system: text in front of the conversation.
        roles: of the user and of the model.
        style: TWO (system text, then two alternating separators), TWO_NO_SYS (without it), SINGLE (one separator).
        sep, sep2: behind a question and behind an answer; sep2 None: sep behind both.
        version: the official name of the family of templates.

    Source:
        Specification mPLUG-Owl2, section 9.3.

    Example:
        >>> TEMPLATES["mplug_owl2"].prompt([("<|image|>What is this?", None)])
        'USER: <|image|>What is this? ASSISTANT:'
    """

    system: str
    roles: tuple[str, str] = ("USER", "ASSISTANT")
    style: str = "TWO"
    sep: str = " "
    sep2: str | None = "</s>"
    version: str = "v1"

    @property
    def stop(self) -> str:
        """The text that ends an answer."""
        return self.sep2 or self.sep

    def led_by(self, system: str) -> Template:
        """This template with a system text of a row's own, as the chat template places one."""
        style = "TWO" if self.style == "TWO_NO_SYS" else self.style
        return replace(self, system=as_words(system), style=style)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Turns to text; an open last turn ends in the assistant's role and a colon, without a space."""
        seps = (self.sep, self.stop)
        text = "" if self.style == "TWO_NO_SYS" else self.system + self.sep
        for question, answer in turns:
            text += f"{self.roles[0]}: {question}{seps[0]}{self.roles[1]}:"
            if answer is not None:
                text += f" {answer}{seps[1]}"
        return text


# The released scripts train with v1, which has a system text, and ask without it (section 9.3).
TEMPLATES = {
    "mplug_owl2": Template(_HUMAN, style="TWO_NO_SYS"),
    "v1": Template(_HUMAN.replace("human", "user")),
    "vicuna_v1": Template(_HUMAN.replace("human", "user")),
    "v0": Template(_HUMAN, ("Human", "Assistant"), "SINGLE", "###", None, "v0"),
}

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] if m['content'] is string else m['content'][0]['text'] }} "
    "{% else %}{{ 'USER: ' if m['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|image|>{% elif p['type'] == 'video' %}<|video|>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '</s>' if m['role'] == 'assistant' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The default template in transformers' language."""

_WORD = "Answer the question using a single word or phrase."
# The apostrophe of the release is typographic; a straight one would be other ids.
_LETTER = "Answer with the option’s letter from the given choices directly."
EVALUATION_PROMPTS = {
    "caption": f"USER: {IMAGE}Provide a one-sentence caption for the provided image. ASSISTANT: ",
    "vqa": f"USER: {IMAGE}{{question}} {_WORD} ASSISTANT: ",
    "mmbench": f"USER: {IMAGE}{{hint}}\n{{question}}\n{{options}}\n{_LETTER} ASSISTANT: ",
    "mme": f"USER: {IMAGE}{{question}}\n{_WORD} ASSISTANT: ",
    "mmmu": f"USER: {{question}}\n{{options}}\n{_LETTER} ASSISTANT: ",
    "mmmu_open": f"USER: {{question}}\n{_WORD} ASSISTANT: ",
}
"""Published evaluation prompts (section 11), with the trailing space the official scripts have."""

EVALUATION_GENERATION: dict[str, dict[str, float]] = {
    "caption": {"max_new_tokens": 60, "min_new_tokens": 8, "length_penalty": 0},
    **{task: {"max_new_tokens": 10, "min_new_tokens": 1, "length_penalty": 1} for task in ("vqa", "mmbench", "mme")},
    **{task: {"max_new_tokens": 20, "min_new_tokens": 1, "length_penalty": 1} for task in ("mmmu", "mmmu_open")},
}
"""Published settings of `generate` per prompt, all greedy."""


def evaluation_prompt(task: str, *, question: str = "", options: Sequence[str] = (), hint: str | None = None) -> str:
    """The published prompt of a task.

    Args:
        task: a key of `EVALUATION_PROMPTS`.
        question: as in the data set.
        options: texts of the choices, lettered from A.
        hint: of MMBench; "N/A" where there is none, as published.

    Raises:
        ValueError: for a task without a published prompt.

    Source:
        Specification mPLUG-Owl2, section 11.
    """
    if task not in EVALUATION_PROMPTS:
        raise ValueError(f"expected a task among {', '.join(EVALUATION_PROMPTS)}, got {task!r}")
    if task == "mme":  # its questions ask for yes or no themselves, which the release takes out
        question = question.replace("Please answer yes or no.", "").strip()
    lettered = "\n".join(f"{chr(ord('A') + i)}. {text}" for i, text in enumerate(options))
    return EVALUATION_PROMPTS[task].format(question=question, options=lettered, hint=hint or "N/A")


def tokenize(text: str, encode: Encode, bos_token_id: int | None) -> list[int]:
    """Text with `<|image|>` to ids with -200, every piece between images tokenized on its own, as published.

    A leading bos is kept once where the text begins with words. A text that begins with an image has it behind the
    image, and once more behind every other: released models were trained and evaluated on such prompts.

    Args:
        text: with placeholders.
        encode: text -> ids, the bos id added where the tokenizer adds one.
        bos_token_id: which that is; None for a Qwen, which has none.

    Source:
        Specification mPLUG-Owl2, section 9.2.
    """
    pieces = [encode(piece) if piece else [] for piece in text.split(IMAGE)]
    first = pieces[0]
    starts_with_bos = bos_token_id is not None and first[:1] == [bos_token_id]
    ids = first[:1] if starts_with_bos else []
    for i, piece in enumerate(pieces):
        ids += ([IMAGE_PLACEHOLDER] if i else []) + piece[int(starts_with_bos) :]
    return ids


def image_first(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages as the official training code rewrites them: one placeholder, at the front, on a line of its own.

    Several images of a message collapse into one there (specification mPLUG-Owl2, section 9.4); use for parity only.
    """
    rewritten = []
    for message in messages:
        value = message["value"]
        if IMAGE in value:
            value = (IMAGE + "\n" + value.replace(IMAGE, "").strip()).strip()
        rewritten.append({**message, "value": value})
    return rewritten


def turns_of(messages: Sequence[Mapping[str, str]]) -> list[Turn]:
    """Turns of a `conversations` list (`from`: human or gpt). A leading answer is dropped.

    Raises ValueError where roles do not alternate.
    """
    messages = list(messages)
    if messages and messages[0]["from"] == "gpt":
        # nothing asked for it; the released script drops it too
        messages = messages[1:]
    for i, message in enumerate(messages):
        expected = ("human", "gpt")[i % 2]
        if message["from"] != expected:
            raise ValueError(f"expected message {i} from {expected}, got {message['from']!r}; alternate the roles")
    values: list[str | None] = [message["value"] for message in messages]
    values += [None] * (len(values) % 2)
    return [(question or "", answer) for question, answer in zip(values[::2], values[1::2])]


def told(turns: Sequence[Turn]) -> list[Turn]:
    """Turns whose answers hold no placeholders: what an answer writes is text."""
    return [(question, None if answer is None else as_words(answer)) for question, answer in turns]


def official_labels(
    ids: Sequence[int], text: str, template: Template, encode: Encode, bos_token_id: int | None, *,
    pad_token_id: int = 0, max_length: int = 2048,
) -> list[int]:  # fmt: skip
    """Labels by the official rule, made for Llama's tokenizer: answers and their ends, nothing where lengths differ.

    Args:
        ids: of the whole text, -200 for every image.
        text: the conversation as the template wrote it.
        template: of two separators.
        encode, bos_token_id: as in `tokenize`.
        pad_token_id: not counted in the length of ids.
        max_length: from which on a difference in length is taken for truncation.

    Returns:
        As many as ids, -100 where nothing is learned.

    Source:
        Specification mPLUG-Owl2, section 9.4.
    """
    labels, end = list(ids), 1
    labels[:1] = [IGNORED] * len(labels[:1])
    opening = f"{template.sep}{template.roles[1]}: "
    for part in text.split(template.stop):
        halves = part.split(opening)
        if not part or len(halves) != 2:
            break
        # A round by itself has a bos of its own, which stands for the "</s>" that ends it in the whole.
        length = len(tokenize(part, encode, bos_token_id))
        # 2 less: the bos, and the lone space that Llama makes of the end of "ASSISTANT: " but not of what follows it.
        asked = len(tokenize(halves[0] + opening, encode, bos_token_id)) - 2
        labels[end : end + asked] = [IGNORED] * len(labels[end : end + asked])
        end += length
    labels[end:] = [IGNORED] * len(labels[end:])
    if end < max_length and end != sum(i != pad_token_id for i in ids):
        # lengths differ: the sample teaches nothing
        return [IGNORED] * len(ids)
    return labels


def answer_labels(
    ids: Sequence[int], turns: Sequence[Turn], template: Template, encode: Encode, bos_token_id: int | None
) -> list[int]:
    """Labels on every answer and its end, for any tokenizer: an answer begins where the prompt asking for it ends.

    Args:
        ids: of the whole conversation, -200 for every image.
        turns: that the template wrote.
        template: of the conversation.
        encode, bos_token_id: as in `tokenize`.

    Returns:
        As many as ids, -100 where nothing is learned.
    """
    labels = [IGNORED] * len(ids)

    def common(text: str) -> int:
        """How many leading ids the whole and a text share: tokens at its end may have merged with what follows."""
        prefix = tokenize(text, encode, bos_token_id)
        return next((i for i, (a, b) in enumerate(zip(ids, prefix)) if a != b), min(len(ids), len(prefix)))

    for i, (question, answer) in enumerate(turns):
        if answer is not None:
            start = common(template.prompt([*turns[:i], (question, None)]))
            stop = common(template.prompt(turns[: i + 1]))
            labels[start:stop] = ids[start:stop]
    return labels
