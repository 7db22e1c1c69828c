"""Rows of manifests -> mPLUG-Owl2's conversations, in batches of one modality and of similar length.

row -> turns with <|image|> -> decoded (crops in pretraining) -> processor.supervised -> ids, mask, labels, pixels
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from plait.data.order import modality_grouped
from plait.data.reader import Collate, Decode, Reader
from plait.data.sources import open_samples
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.mplug_owl2.conversation import IMAGE
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.processing.videos import training_image
from plait.types import Sample

IMAGE_WORDS = 128
"""What an image counts when rows are grouped by length, as in the released sampler."""

PLACEHOLDERS = ("<image>", IMAGE)
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}

Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Talk:
    """One decoded row: its turns, pictures in reading order, and pixels where they are made already."""

    turns: Turns
    pictures: tuple[Image, ...] = ()
    pixels: Tensor | None = None


def described(data: str) -> list[Sample]:
    """Rows of the split train, or of none, with an image and a caption. Raises ValueError where there are none."""
    return _kept(data, "an image and text or captions", lambda s: s.image is not None and bool(s.captions or s.text))


def conversations(data: str) -> list[Sample]:
    """Rows that hold a conversation, a question and its answers, or a captioned medium; media or none."""
    wanted = "messages, a question with answers, or a medium with text or captions"
    return _kept(data, wanted, lambda s: bool(s.messages or (s.question and s.answers) or (_has_media(s) and _said(s))))


def _kept(data: str, wanted: str, keep: Any) -> list[Sample]:
    rows = [sample for sample in open_samples(data) if sample.split in (None, "train")]
    kept = [sample for sample in rows if keep(sample)]
    if not kept:
        raise ValueError(f"expected rows with {wanted} in {data}, got none among {len(rows)} rows of split 'train'")
    return kept


def _has_media(sample: Sample) -> bool:
    return sample.image is not None or sample.video is not None


def _said(sample: Sample) -> list[str]:
    return sample.captions or ([sample.text] if sample.text else [])


def turns_of(sample: Sample, number: int = 0, images: int = 1) -> Turns:
    """The conversation of a row, media first where no placeholder says otherwise.

    number: which of several answers or captions, counted around; images: positions of its media (frames of a clip).
    Raises ValueError, naming the row, for roles that are not known and for placeholders without media.
    """
    if sample.messages:
        turns = [_message(sample, message) for message in sample.messages]
        turns = [turn for turn in turns if turn is not None]
    elif sample.question:
        answers = sample.answers or [""]
        turns = [_turn("human", sample.question), _turn("gpt", answers[number % len(answers)])]
    else:
        said = _said(sample)
        turns = [_turn("human", "Describe what you see."), _turn("gpt", said[number % len(said)])]
    places = sum(turn["value"].count(IMAGE) for turn in turns)
    if not _has_media(sample) and places:
        raise ValueError(f"expected a row without <image>, got {places} in row {sample.id!r}, which has no media")
    if places > 1:
        raise ValueError(f"expected one <image> for the medium of row {sample.id!r}, got {places}")
    if _has_media(sample) and turns:
        place = next((turn for turn in turns if IMAGE in turn["value"]), turns[0])
        text = place["value"] if places else IMAGE + place["value"]
        place["value"] = text.replace(IMAGE, IMAGE * images)
    return turns


def _message(sample: Sample, message: Mapping[str, Any]) -> dict[str, str] | None:
    role = message.get("from", message.get("role"))
    value = message.get("value", message.get("content"))
    if role == "system":
        return None  # the template has its own words, and the published one has none
    if role not in ROLES or not isinstance(value, str):
        raise ValueError(
            f"expected messages from {', '.join(ROLES)} with a text, got {role!r} in row {sample.id!r}; correct the row"
        )
    return _turn(ROLES[role], value)


def _turn(role: str, value: str) -> dict[str, str]:
    for name in PLACEHOLDERS[:-1]:
        value = value.replace(name, IMAGE)
    return {"from": role, "value": value}


@cache
def _words(text: str) -> int:
    return len(text.split())


def length_of(sample: Sample) -> int:
    """Words of a conversation, negative without media, as the released sampler counts, images with `IMAGE_WORDS`."""
    words = sum(_words(turn["value"]) for turn in turns_of(sample)) or 1
    return words + IMAGE_WORDS if _has_media(sample) else -words


class Grouped(Reader[Any]):
    """A source whose steps hold rows of one modality and of similar length (specification, section 10.3).

    Every epoch is a new order; rows that do not fill a step are left out of it. micro: rows that go through the model
    together: steps are dealt into chunks of so many, of nearly equal length each, whatever the number of processes.
    Other arguments as `plait.data.reader.Reader`.
    """

    def __init__(
        self, samples: Sequence[Sample], collate: Collate, decode: Decode, micro: int = 1, **reading: Any
    ) -> None:
        super().__init__(samples, collate, decode, **reading)
        self.lengths, self.micro = [length_of(sample) for sample in samples], micro
        self._epoch: tuple[tuple[int, int, int], list[int]] | None = None

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """Sample numbers of global batch `step`. Raises ValueError for fewer rows than one batch holds."""
        if len(self) < batch_size:
            raise ValueError(f"expected at least {batch_size} samples for one batch, got {len(self)}; lower batch_size")
        epoch, place = divmod(step, len(self) // batch_size)
        order = self._order(seed, epoch, batch_size)
        return order[place * batch_size : (place + 1) * batch_size]

    def _order(self, seed: int, epoch: int, batch_size: int) -> list[int]:
        key = (seed, epoch, batch_size)
        if self._epoch is None or self._epoch[0] != key:
            micro = self.micro if batch_size % self.micro == 0 else 1
            drawn = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
            generator = torch.Generator().manual_seed(drawn)
            self._epoch = key, modality_grouped(self.lengths, micro, batch_size // micro, generator)
        return self._epoch[1]


def read_caption(processor: MPlugOwl2Processor, sample: Sample, rng: np.random.Generator) -> Talk:
    """Pretraining: a random crop, mirrored half the time, and one of the row's captions, without a question."""
    said = _said(sample)
    pixels = training_image(
        load_image(sample.image), processor.image_processor.size["height"], random.Random(int(rng.integers(1 << 62))),
        augment=False,
    )  # fmt: skip
    return Talk([_turn("gpt", said[int(rng.integers(len(said)))])], pixels=pixels)


def read_talk(frames: int, sample: Sample, rng: np.random.Generator) -> Talk:
    """A conversation with its picture, or its clip as `frames` pictures in a row."""
    pictures: tuple[Image, ...] = ()
    if sample.video is not None:
        pictures = tuple(load_frames(sample.video, frames))
    elif sample.image is not None:
        pictures = (load_image(sample.image),)
    return Talk(turns_of(sample, int(rng.integers(1 << 30)), len(pictures)), pictures)


def captioned(
    processor: MPlugOwl2Processor, max_length: int, talks: list[Talk], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Image, caption, end; every piece of the caption and its end is learned."""
    batch = dict(processor.captioned([talk.turns[0]["value"] for talk in talks], max_length=max_length))
    pixels = [talk.pixels for talk in talks if talk.pixels is not None]
    return batch | {"pixel_values": torch.stack(pixels)}


def talked(
    processor: MPlugOwl2Processor, max_length: int, talks: list[Talk], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Conversations with labels on answers and their ends; pixels only where a row has media."""
    pictures = [picture for talk in talks for picture in talk.pictures]
    return dict(processor.supervised([talk.turns for talk in talks], pictures, max_length=max_length))
