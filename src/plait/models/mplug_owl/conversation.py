"""Conversations: turns -> prompt -> ids with runs for media -> what is learned (specification mPLUG-Owl, section 8).

turns -> training_pieces -> training_row -> ids, labels                  turns -> prompt -> tokenize -> ids

Text is tokenized piece by piece, cut at media and roles: SentencePiece puts a space in front of every piece, and the
published weights learned those spaces. The released rule, which finds answers by the text "AI: " and so opens one in
"OpenAI: ", stands beside one that keeps turns apart (`official_sample`, `training_pieces`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait.models.mplug_owl.model import IMAGE_RUN, VIDEO_RUN
from plait.processing.talking import IGNORED, Encode, Row, Turn

IMAGE, VIDEO = "<image>", "<|video|>"
RUNS = {IMAGE: IMAGE_RUN, VIDEO: VIDEO_RUN}
Piece = tuple[str, bool]
"""A piece of text or a placeholder, and whether it is learned."""

SYSTEM = (
    "The following is a conversation between a curious human and AI assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
DEMO_SYSTEM = (
    "The following is a conversation between a curious human and AI. "
    "The AI gives helpful, detailed, and polite answers to the human's questions."
)
HUMAN, AI = "\nHuman: ", "AI: "  # as the released splitting has them: the line break belongs to the human alone
_MEDIA = re.compile(f"({re.escape(IMAGE)}|{re.escape(VIDEO)})")
_BLANKS = re.compile(
    r"</?s>|<unk>|<pad>|\[(?:PAD|UNK|CLS|MASK|gMASK|sMASK)\]|<\|(?:endoftext|startofpiece|endofpiece)\|>"
)

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}" + SYSTEM + "{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '\nAI: ' + (m['content'] if m['content'] is string else m['content'][0]['text']) }}"
    "{% elif m['content'] is string %}{{ '\nHuman: ' + m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}{{ '\nHuman: <image>' }}"
    "{% elif p['type'] == 'video' %}{{ '\nHuman: <|video|>' }}{% endif %}{% endfor %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ '\nHuman: ' + p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\nAI: ' }}{% endif %}"
)
"""The published template in transformers' language."""


def prompt(turns: Sequence[Turn], system: str = SYSTEM) -> str:
    """Turns to text; an open last turn ends in "AI: ". Media stand in lines of their own, ahead of the words.

    The space behind the colon is part of the published prompt: the piece that ends in it is one the model learned.

    Args:
        turns: (question with placeholders, answer or None).
        system: the first line.

    Source:
        Specification mPLUG-Owl, section 8.

    Example:
        >>> prompt([("<image>What is this?", None)], system="Be brief.").splitlines()
        ['Be brief.', 'Human: <image>', 'Human: What is this?', 'AI: ']
    """
    text = system
    for question, answer in turns:
        media, words = split_media(question)
        text += "".join(HUMAN + medium for medium in media)
        text += HUMAN + words if words or not media else ""
        text += f"\n{AI}" + (answer or "")
    return text


def split_media(message: str) -> tuple[list[str], str]:
    """The placeholders of a message, in order, and its text without them."""
    pieces = _MEDIA.split(message)
    lines = "".join(pieces[::2]).strip("\n")
    return pieces[1::2], lines


def demo_prompt(messages: Sequence[tuple[str, str | None]], *, official: bool = False) -> tuple[str, str]:
    """The demo's messages as its template writes them and as the model gets them.

    Args:
        messages: (role, text or None), None where the answer is asked for.
        official: keep one image of several in a line, as the released demo does, which so loses frames of videos.

    Returns:
        The template's text, and the prompt with every placeholder in a line ahead of its message.

    Source:
        Specification mPLUG-Owl, section 8.
    """
    raw = f"{DEMO_SYSTEM}\n"
    for role, text in messages:
        raw += f"{role}: {text}\n" if text else f"{role}:"
    lines = []
    for line in raw.replace(f"\n{IMAGE}", IMAGE).split("\n"):
        count = line.count(IMAGE)
        lines += [f"Human: {IMAGE}"] * (min(count, 1) if official else count)
        lines.append(line.replace(IMAGE, ""))
    text = "\n".join(lines) + " "
    return raw, text.replace("\n Human", "\nHuman").replace("\n AI", "\nAI")


def clean_answer(text: str) -> str:
    """Decoded text without the names of special tokens and blanks around it."""
    return _BLANKS.sub("", text).strip()


def tokenize(
    text: str,
    encode: Encode,
    bos: int | None,
    tokens_per_media: int = 65,
    *,
    runs: Mapping[str, tuple[int, int]] | None = None,
) -> list[int]:
    """Text to ids: bos, every piece between media by itself, a run of -1 or -2 for each medium.

    Args:
        text: with placeholders.
        encode: text without placeholders -> ids, no special ids added.
        bos: id in front, None for none.
        tokens_per_media: length of a run.
        runs: the id and the length of the run that stands for each placeholder, where they are not the published ones.

    Source:
        Specification mPLUG-Owl, section 8.
    """
    ids = [] if bos is None else [bos]
    runs = {kind: (run, tokens_per_media) for kind, run in RUNS.items()} if runs is None else runs
    for piece in re.split(f"({'|'.join(map(re.escape, runs))})", text):
        if piece in runs:
            run, length = runs[piece]
            ids += [run] * length
        elif piece:
            ids += encode(piece)
    return ids


def training_pieces(turns: Sequence[Turn], system: str = SYSTEM) -> list[Piece]:
    """A conversation cut as it is tokenized for training; answers are learned.

    Args:
        turns: (question with placeholders, answer).
        system: the first piece.

    Returns:
        (text or placeholder, whether it is learned), in order; joined they are the prompt.
    """
    pieces: list[Piece] = [(system, False)]
    for question, answer in turns:
        media, words = split_media(question)
        for medium in media:
            pieces += [(HUMAN, False), (medium, False)]
        # The line break goes to the question, as the released cut at "AI: " leaves it there.
        pieces += [(HUMAN, False), (f"{words}\n", False)] if words or not media else [("\n", False)]
        pieces += [(AI, False), (answer or "", True)]
    return pieces


def training_row(
    pieces: Sequence[Piece], encode: Encode, bos: int | None, eos: int, max_length: int, tokens_per_media: int = 65
) -> Row:
    """Pieces to at most `max_length` ids. Whole answers end in eos; a medium that does not fit ends the row.

    Args:
        pieces: of `training_pieces`.
        encode: text -> ids, no special ids added.
        bos, eos: ids in front of the row and behind an answer.
        max_length: in positions, media expanded.
        tokens_per_media: positions of a medium.

    Returns:
        Ids with runs, and labels of the same length: -100 but on answers and their ends.
    """
    ids: list[int] = [] if bos is None else [bos]
    labels = [IGNORED] * len(ids)
    for piece, learned in pieces:
        if piece in RUNS and not learned:
            new = [RUNS[piece]] * tokens_per_media
            if len(ids) + len(new) > max_length:  # half a medium would take features of the next one
                break
        else:
            new = encode(piece) + ([eos] if learned else []) if piece or learned else []
        cut = new[: max_length - len(ids)]
        ids, labels = ids + cut, labels + (cut if learned else [IGNORED] * len(cut))
        if len(cut) < len(new):  # full; an answer that was cut has no end to learn
            break
    return Row(ids, labels)


@dataclass(frozen=True)
class OfficialSample:
    """One training sample as the released pipeline makes it; masks are aligned with input_ids[1:].

    Args:
        input_ids: max_length + 1 of them, padded on the right.
        non_padding_mask, non_media_mask, prompt_mask: max_length numbers, 1 = a target; one is learned where all agree.
        seq_length: ids before padding.
        has_image: whether the text holds a placeholder.
    """

    input_ids: list[int]
    non_padding_mask: list[int]
    non_media_mask: list[int]
    prompt_mask: list[int]
    seq_length: int
    has_image: bool


def official_sample(
    text: str,
    encode: Encode,
    max_length: int,
    *,
    bos: int = 1,
    eos: int = 2,
    pad: int = 0,
    tokens_per_media: int = 65,
    official: bool = False,
) -> OfficialSample:
    """A conversation in the published text form to max_length + 1 ids and their masks (section 8.1).

    Args:
        text: the whole conversation, with `<image>` placeholders.
        encode: text -> ids, no special ids added.
        max_length: targets of a sample.
        bos, eos, pad: ids; a bos of 0 or less is left out.
        tokens_per_media: positions of an image.
        official: tokenize a placeholder at the very start as text, a bug of the release.

    Raises:
        ValueError: where the first piece does not fit, which is never cut.
    """
    has_image = IMAGE in text
    ids, learned = ([bos], [0]) if bos > 0 else ([], [])
    delimiters = f"({AI}|{HUMAN}|{IMAGE})" if has_image else f"({AI}|{HUMAN})"
    # Empty pieces count for text alone: behind "AI: " they are answers of nothing but the end.
    pieces = [piece for piece in re.split(delimiters, text) if piece or not has_image]
    for i, piece in enumerate(pieces):
        if has_image and len(ids) >= max_length + 1:
            break
        stop = False
        if piece == IMAGE and has_image and (i > 0 or not official):
            if len(ids) + tokens_per_media > max_length + 1:
                break
            new, label = [IMAGE_RUN] * tokens_per_media, 0
        elif i > 0 and pieces[i - 1] == AI:
            new, label = encode(piece), 1
            if len(ids) + len(new) >= max_length:
                new, stop = new[: max_length - len(ids)], True
            new = [*new, eos]  # a cut answer ends too
        else:
            new, label = encode(piece), 0
            if i > 0 and len(ids) + len(new) >= max_length + 1:
                new, stop = new[: max_length + 1 - len(ids)], True
        ids, learned = ids + new, learned + [label] * len(new)
        if stop and not has_image:  # with images the guard above ends the loop instead
            break
    length, width = len(ids), max_length + 1
    if length > width:
        raise ValueError(f"expected a conversation of at most {width} ids up to its first turn, got {length}")
    ids, learned = ids + [pad] * (width - length), learned + [0] * (width - length)
    return OfficialSample(
        input_ids=ids,
        non_padding_mask=[int(i < length - 1) for i in range(max_length)],
        non_media_mask=[int(i >= 0) if has_image else 1 for i in ids[1:]],
        prompt_mask=learned[1:],
        seq_length=length,
        has_image=has_image,
    )
