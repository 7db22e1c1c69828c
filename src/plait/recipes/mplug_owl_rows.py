"""Rows of manifests -> conversations of mPLUG-Owl with their media -> batches.

captions | question and answers | messages -> turns with placeholders -> processor.supervised -> ids, labels, pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.sources import open_samples
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.mplug_owl.conversation import IMAGE, VIDEO, Turn
from plait.models.mplug_owl.processor import MPlugOwlProcessor, turns_of
from plait.models.mplug_owl.tasks import DESCRIBE
from plait.types import Sample

ROLES = {"user": "human", "assistant": "gpt"}


def conversations(data: str, *, described: bool = False, split: str = "train") -> list[Sample]:
    """Rows of a split, or without one, that hold a conversation; described: rows with a caption as well.

    Raises ValueError where none is left.
    """
    rows = [sample for sample in open_samples(data) if sample.split in (None, split)]
    kept = [s for s in rows if s.messages or (s.question and s.answers) or (described and caption_of(s))]
    if not kept:
        wanted = "messages, question and answers" + (", or text" if described else "")
        raise ValueError(f"expected rows with {wanted} in {data}, got none among {len(rows)} rows of split {split!r}")
    return kept


def caption_of(sample: Sample) -> str | None:
    """The first caption of a row with a medium."""
    if sample.image is None and sample.video is None:
        return None
    return (sample.captions or [sample.text])[0]


def conversation_of(sample: Sample) -> list[Turn]:
    """Turns of a row, its medium in the first question where no placeholder is.

    Raises ValueError without turns, and where media and placeholders differ in number.
    """
    mark = IMAGE if sample.image is not None else VIDEO if sample.video is not None else ""
    caption = caption_of(sample)
    turns: list[Turn]
    if sample.messages:
        turns = _turns(sample)
    elif sample.question and sample.answers:
        turns = [(sample.question, sample.answers[0])]
    elif caption:
        turns = [(DESCRIBE.format(kind="image" if sample.image is not None else "video"), caption)]
    else:
        raise ValueError(f"expected messages, a question with answers or a caption in row {sample.id}, got none")
    if mark and not any(mark in question for question, _ in turns):
        turns[0] = (mark + turns[0][0], turns[0][1])
    for kind, name, held in (("image", IMAGE, sample.image), ("video", VIDEO, sample.video)):
        wanted, got = sum(question.count(name) for question, _ in turns), len(_many(held))
        if wanted != got:  # in a batch they would pass to the rows after it
            what = f"{wanted} {kind}s for {wanted} {name} placeholders"
            raise ValueError(f"row {sample.id}: expected {what}, got {got}; give one per placeholder")
    return turns


def _turns(sample: Sample) -> list[Turn]:
    messages = [
        {"from": ROLES.get(m.get("role", ""), m.get("from", "")), "value": _content(m)} for m in sample.messages or ()
    ]
    try:
        return turns_of(messages)
    except ValueError as error:
        raise ValueError(f"row {sample.id}: {error}") from error


def _content(message: dict[str, Any]) -> str:
    content = message.get("content", message.get("value", ""))
    if isinstance(content, str):
        return content
    marks = {"image": IMAGE, "video": VIDEO}
    return "".join(marks.get(part["type"]) or part.get("text", "") for part in content)


def collate(
    processor: MPlugOwlProcessor,
    max_length: int,
    samples: Sequence[Sample],
    rng: np.random.Generator,
    *,
    training: bool = True,
) -> dict[str, Tensor]:
    """A batch with images cropped at random when training, drawn from `rng`; frames of videos lie evenly in time."""
    turns = [conversation_of(sample) for sample in samples]
    pictures = [image for sample in samples for image in _many(sample.image)]
    clips = [load_frames(video, processor.num_frames) for sample in samples for video in _many(sample.video)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images = [load_image(image).convert("RGB") for image in pictures]
    return dict(
        processor.supervised(turns, images, clips, max_length=max_length, generator=generator, training=training)
    )


def _many(media: Any) -> list[Any]:
    return [] if media is None else list(media) if isinstance(media, list) else [media]
