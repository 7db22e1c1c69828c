"""A row -> its conversation: whatever a row says, as turns in which every medium has its place.

messages | question and answers | captions of a medium -> turns with <image> and <video> -> media decoded -> Talk

Families write placeholders of their own; rows may hold any of them. What stands behind the turns (template, ids,
labels) is the business of a family's processor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.media.image import load_image
from plait.media.video import load_frames
from plait.types import Sample, as_words

IMAGE, VIDEO = "<image>", "<video>"
MARKS = re.compile(f"({IMAGE}|{VIDEO})")
OTHER_MARKS = {"<|image|>": IMAGE, "<|video|>": VIDEO}
"""How mPLUG-Owl and mPLUG-Owl2 write them."""

ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
# The label that torch's cross entropy leaves out by default.
IGNORED = -100

Turns = list[dict[str, str]]
"""`{"from": "human" or "gpt", "value": text}`, as LLaVA writes conversations; the first may be from "system"."""


@dataclass(frozen=True, slots=True)
class Talk:
    """One decoded row: its turns, and its images (RGB) and clips (lists of frames) in reading order.

    system: what a family says in front of all turns, where its reader has taken it out of them.
    """

    turns: Sequence[Any]
    pictures: tuple[Any, ...] = ()
    clips: tuple[list[Any], ...] = ()
    system: str | None = None


def is_heard(sample: Sample) -> bool:
    """Whether the one medium of a row is an audio clip: models that do not hear would learn words about nothing.

    Args:
        sample: the row.
    """
    return sample.audio is not None and sample.image is None and sample.video is None


def holds_conversation(sample: Sample, *, captions: bool) -> bool:
    """Whether a row has messages, or a question with answers, or (captions) a medium with words, and no audio alone.

    Args:
        sample: the row. captions: whether an image or video with a caption alone counts.
    """
    has_media = sample.image is not None or sample.video is not None
    said = captions and has_media and bool(sample.captions or sample.text)
    return not is_heard(sample) and bool(sample.messages or (sample.question and sample.answers) or said)


def conversation_of(sample: Sample, describe: str, number: int = 0) -> Turns:
    """The turns of a row, its media first where no placeholder says otherwise.

    Args:
        sample: the row.
        describe: what is asked where there are captions alone, `{kind}` is image or video.
        number: which of several answers or captions is given, counted around.

    Returns:
        `{"from": "human" or "gpt", "value": text}` per turn, with <image> and <video> where media stand.

    Raises:
        ValueError: names the row, without turns, for roles that are not known, and where media and placeholders differ
            in number: in a batch they would pass to the rows after it.

    Example:
        >>> conversation_of(Sample("a", image="a.jpg", question="What?", answers=["A cat."]), "Describe.")[0]["value"]
        '<image>What?'
    """
    captions = sample.captions or ([sample.text] if sample.text else [])
    pictures = _pictures(sample)
    kind = "image" if pictures else "video" if sample.video is not None else None
    if sample.messages:
        turns = [_turn(sample, message, is_first=i == 0) for i, message in enumerate(sample.messages)]
    elif sample.question and sample.answers:
        turns = [_said("human", sample.question), _told(sample.answers[number % len(sample.answers)])]
    elif kind and captions:
        turns = [_said("human", describe.format(kind=kind)), _told(captions[number % len(captions)])]
    else:
        turns = []
    if not any(turn["from"] != "system" for turn in turns):
        raise ValueError(f"expected messages, a question with answers or a caption in row {sample.id!r}, got none")
    if kind == "video" and not any(VIDEO in turn["value"] for turn in turns):
        for turn in turns:  # <image> is what most files write, whatever the medium is
            turn["value"] = turn["value"].replace(IMAGE, VIDEO)
    if kind and not any(mark in turn["value"] for turn in turns for mark in (IMAGE, VIDEO)):
        first = next((turn for turn in turns if turn["from"] == "human"), turns[0])
        first["value"] = (IMAGE if kind == "image" else VIDEO) + first["value"]
    for name, mark, held in (("image", IMAGE, pictures), ("video", VIDEO, sample.video)):
        wanted, got = sum(turn["value"].count(mark) for turn in turns), len(_several(held))
        if wanted != got:
            what = f"{wanted} {name}s for {wanted} {mark} placeholders"
            raise ValueError(f"row {sample.id}: expected {what}, got {got}; give one per placeholder")
    return turns


def read_talk(
    sample: Sample, rng: np.random.Generator, *, describe: str, num_frames: int, is_drawn: bool = False
) -> Talk:
    """Decode a row: its conversation, its images, and `num_frames` frames of its clips, evenly in time.

    Args:
        sample: the row. rng: drawn from only with is_drawn.
        describe: as in `conversation_of`.
        is_drawn: which of several answers or captions is learned is drawn, not the first.

    Raises:
        ValueError: as `conversation_of`, and for media that cannot be decoded.
    """
    turns = conversation_of(sample, describe, int(rng.integers(1 << 30)) if is_drawn else 0)
    pictures = tuple(load_image(picture).convert("RGB") for picture in _pictures(sample))
    return Talk(turns, pictures, tuple(load_frames(clip, num_frames) for clip in _several(sample.video)))


def num_learned(batch: dict[str, Any]) -> int:
    """Positions of a batch that are learned: what it counts among the batches of a step.

    Labels are predicted one position earlier, so those of the first position are never learned.
    """
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def _turn(sample: Sample, message: dict[str, Any], *, is_first: bool) -> dict[str, str]:
    """One message as a turn; is_first: it may be a system message. ValueError, naming the row, for unknown roles."""
    role = message.get("from", message.get("role"))
    content = message.get("value", message.get("content"))
    is_system = role == "system" and is_first
    if isinstance(content, list):
        content = "".join(_part(sample, part) for part in content)
    elif isinstance(content, str) and ROLES.get(str(role)) != "human":
        content = as_words(content)  # media are shown by people: what an answer writes is text
    if (role not in ROLES and not is_system) or not isinstance(content, str):
        raise ValueError(
            f"expected messages from {', '.join(ROLES)} with a text, and from system as the first, got {role!r} in row "
            f"{sample.id!r}; correct the row"
        )
    return {"from": "system", "value": content} if is_system else _said(ROLES[str(role)], content)


def _part(sample: Sample, part: Any) -> str:
    """A part of a message: its words, which stay words whatever they are, or the placeholder of its medium."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return as_words(part["text"])
    if kind not in ("image", "video"):
        raise ValueError(
            f"expected parts of type text, image or video, got {kind!r} in row {sample.id!r}; correct the row"
        )
    return IMAGE if kind == "image" else VIDEO


def _told(text: str) -> dict[str, str]:
    """What is learned: an answer or a caption, in which nothing is a placeholder."""
    return {"from": "gpt", "value": as_words(text)}


def _said(role: str, text: str) -> dict[str, str]:
    """A turn in which every family's placeholders are <image> and <video>."""
    for written, mark in OTHER_MARKS.items():
        text = text.replace(written, mark)
    return {"from": role, "value": text}


def _pictures(sample: Sample) -> list[Any]:
    """The images of a row: its `images`, which a manifest has where there are several, or its image."""
    return _several(sample.meta.get("images") or sample.image)


def _several(media: Any) -> list[Any]:
    """The media of a field as a list: none, one, or several."""
    return [] if media is None else list(media) if isinstance(media, list) else [media]
