"""Conversations: turns -> prompt -> ids with runs for media -> what is learned (specification mPLUG-Owl, section 8).

turns -> training_pieces -> training_row -> ids, labels                  turns -> prompt -> tokenize -> ids

Text is tokenized piece by piece, cut at media and roles: SentencePiece puts a space in front of every piece, and the
published weights learned those spaces. The released rule finds answers by the text "AI: " and so opens one in
"OpenAI: "; here turns are kept apart (`training_pieces`), which gives the same ids for the same text otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

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
            if len(ids) + len(new) > max_length:
                # half a medium would take features of the next one
                break
        else:
            new = encode(piece) + ([eos] if learned else []) if piece or learned else []
        cut = new[: max_length - len(ids)]
        ids, labels = ids + cut, labels + (cut if learned else [IGNORED] * len(cut))
        if len(cut) < len(new):  # full; an answer that was cut has no end to learn
            break
    return Row(ids, labels)
