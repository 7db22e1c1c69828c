"""Rows of manifests -> batches of mPLUG-2's task classes: media decoded and augmented as published, texts as targets.

Every choice of a batch follows from the generator that the loop hands in. A batch holds pictures or clips, never both.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.sources import open_samples
from plait.media.image import load_image
from plait.media.video import load_video
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import instruct
from plait.processing import images
from plait.processing.videos import pretraining_clip, random_times, stack_frames, training_clip, training_image
from plait.training.stages import Source
from plait.types import Sample

Collate = Callable[[list[Sample], np.random.Generator], dict[str, Tensor]]


def rows_with(data: str, *fields: str, medium: str | None = None, split: str = "train") -> list[Sample]:
    """Rows of a manifest (file or directory) of a split, or without one, that have all `fields`.

    medium: image, video or text: rows of that medium only. Raises ValueError where none is left.
    """
    rows = [sample for sample in open_samples(data) if sample.split in (None, split)]
    kept = [
        sample
        for sample in rows
        if all(getattr(sample, field) for field in fields) and (medium is None or medium_of(sample) == medium)
    ]
    if not kept:
        wanted = ", ".join([*fields, *([medium] if medium else [])])
        raise ValueError(f"expected rows with {wanted} in {data}, got none among {len(rows)} rows of split {split!r}")
    return kept


def medium_of(sample: Sample) -> str:
    """image, video or text."""
    return "image" if sample.image is not None else "video" if sample.video is not None else "text"


class Turns:
    """Sources that take turns by whole-numbered shares: one source makes the batch of a step.

    The released pretraining draws one batch of each kind at every step and repeats the shorter; turns of one batch each
    do the same over two steps.
    """

    def __init__(self, sources: Sequence[Source], shares: Sequence[int]) -> None:
        if len(sources) != len(shares) or not sources or min(shares) < 1:
            raise ValueError(f"expected a share of at least 1 for each of {len(sources)} sources, got {list(shares)}")
        self.sources, self.shares = list(sources), list(shares)
        self.cycle = [number for number, share in enumerate(shares) for _ in range(share)]
        self.starts = np.cumsum([0, *(len(source) for source in sources)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Row numbers of the source whose turn it is, behind those of the sources before it."""
        turn, place = divmod(step, len(self.cycle))
        number = self.cycle[place]
        own = turn * self.shares[number] + self.cycle[:place].count(number)
        return [self.starts[number] + row for row in self.sources[number].rows(seed, own, batch_size)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The batch of the source that these rows belong to."""
        number = self._number(rows[0])
        return self.sources[number].load([row - self.starts[number] for row in rows], rng)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these rows."""
        number = self._number(rows[0])
        return self.sources[number].names([row - self.starts[number] for row in rows])

    def _number(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1


def pixels(
    samples: Sequence[Sample],
    processor: MPlug2Processor,
    rng: np.random.Generator,
    *,
    augment: bool = True,
    pretraining: bool = False,
) -> dict[str, Tensor]:
    """pixel_values or pixel_values_videos of rows of one medium, with the published training transforms."""
    draw = random.Random(int(rng.integers(1 << 62)))
    media = {medium_of(sample) for sample in samples}
    if media == {"image"}:
        scale = (0.2, 1.0) if pretraining else (0.5, 1.0)
        pictures = [load_image(sample.image) for sample in samples]
        size = processor.image_size
        if not augment:
            return {"pixel_values": torch.stack([processor.pixels(picture) for picture in pictures])}
        return {"pixel_values": torch.stack([training_image(p, size, draw, scale=scale) for p in pictures])}
    if media == {"video"}:
        clips = [_clip(sample, processor, draw, augment, pretraining) for sample in samples]
        return {"pixel_values_videos": torch.stack(clips)}
    raise ValueError(f"expected a batch of images or of videos, got {', '.join(sorted(media))}; keep them apart")


def _clip(sample: Sample, processor: MPlug2Processor, draw: random.Random, augment: bool, pretraining: bool) -> Tensor:
    if not augment:
        return processor.clip(sample.video)
    seconds = load_video(sample.video, 1).seconds
    frames = stack_frames(load_video(sample.video, at=random_times(seconds, processor.num_frames, draw)).frames)
    if pretraining:
        return pretraining_clip(frames, processor.image_size, draw)
    return training_clip(frames, processor.image_size, draw)


def captions_of(sample: Sample) -> list[str]:
    """The row's captions, or its text. Raises ValueError, naming the row, without either."""
    texts = sample.captions or ([sample.text] if sample.text else [])
    if not texts:
        raise ValueError(f"expected text or captions in row {sample.id!r}, got neither")
    return list(texts)


def caption_of(sample: Sample, rng: np.random.Generator) -> str:
    """One of the row's captions. Raises as `captions_of`."""
    texts = captions_of(sample)
    return texts[int(rng.integers(len(texts)))]


def pairs(processor: MPlug2Processor, pretraining: bool, samples: list[Sample], rng: np.random.Generator) -> Any:
    """Pictures or clips, each with a text; `ids` tells which rows belong together; in pretraining also what to write
    and the instruction."""
    texts = [caption_of(sample, rng) for sample in samples]
    known = {label: number for number, label in enumerate(dict.fromkeys(_key(s) for s in samples))}
    batch: dict[str, Tensor] = {
        **pixels(samples, processor, rng, pretraining=pretraining),
        **processor.tokenize(texts, truncation=True),
        "ids": torch.tensor([known[_key(sample)] for sample in samples]),
    }
    if not pretraining:
        return batch
    medium: Any = medium_of(samples[0])
    told = processor.tokenize([instruct("caption", medium)] * len(samples))
    return batch | {
        **to_be_written(processor, texts),
        "instruction_ids": told["input_ids"],
        "instruction_mask": told["attention_mask"],
    }


def _key(sample: Sample) -> str:
    return str(sample.image if sample.image is not None else sample.video)


def plain_texts(processor: MPlug2Processor, samples: list[Sample], rng: np.random.Generator) -> dict[str, Tensor]:
    """Texts alone, for masked language modelling."""
    return processor.tokenize([caption_of(sample, rng) for sample in samples], truncation=True)


def captions(
    processor: MPlug2Processor, prompt: str, instructions: bool, samples: list[Sample], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Pictures or clips and a caption to be written behind the prompt; instructions: asked for like an answer."""
    made = processor.captions([caption_of(sample, rng) for sample in samples], prompt)
    medium: Any = medium_of(samples[0])
    told = processor.tokenize([instruct("caption", medium)] * len(samples)) if instructions else {}
    return {
        **pixels(samples, processor, rng),
        **told,
        "decoder_input_ids": made["input_ids"],
        "decoder_attention_mask": made["attention_mask"],
        "labels": made["labels"],
    }


def referenced(processor: MPlug2Processor, samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
    """Pictures or clips, and all captions of each as `references`: (batch) lists of texts."""
    return {**pixels(samples, processor, rng), "references": [captions_of(sample) for sample in samples]}


def answers(
    processor: MPlug2Processor, instructions: bool, samples: list[Sample], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Questions with all their answers, each weighted by how many annotators gave it."""
    asked, written, weights, counts = [], [], [], []
    for sample in samples:
        medium: Any = medium_of(sample)
        asked.append(instruct("answer", medium, sample.question or "", enabled=instructions))
        given = Counter(sample.answers or ())
        written += list(given)
        weights += [count / given.total() for count in given.values()]
        counts.append(len(given))
    return {
        **pixels(samples, processor, rng),
        **processor.tokenize(asked, truncation=True),
        **to_be_written(processor, written),
        "answers_per_question": torch.tensor(counts),
        "answer_weights": torch.tensor(weights),
    }


def boxes(processor: MPlug2Processor, samples: list[Sample], rng: np.random.Generator) -> dict[str, Tensor]:
    """Pictures, phrases and the first box of each row, x0 y0 x1 y1 in pixels, as shares (cx, cy, w, h).

    No crop and no flip: both would change what is left of what.
    """
    made, found = [], []
    for sample in samples:
        picture = load_image(sample.image)
        made.append(processor.pixels(picture))
        corners = torch.tensor((sample.boxes or [[]])[0], dtype=torch.float32)
        if corners.shape != (4,):
            raise ValueError(f"expected a box x0, y0, x1, y1 in row {sample.id!r}, got {sample.boxes}")
        x0, y0, x1, y1 = images.grounding(picture, corners[None], processor.image_size).boxes[0].tolist()
        found.append([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    phrases = [sample.question or sample.text or "" for sample in samples]
    told = processor.tokenize(phrases, truncation=True)
    return {"pixel_values": torch.stack(made), **told, "boxes": torch.tensor(found).clamp(0, 1)}


def classes(
    processor: MPlug2Processor, labels: Sequence[str], samples: list[Sample], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Pictures, clips, texts or pairs of texts (`meta["text_pair"]`), or a text about a picture or clip, and labels."""
    batch: dict[str, Tensor] = {"labels": torch.tensor([labels.index(sample.label or "") for sample in samples])}
    if medium_of(samples[0]) != "text":
        batch |= pixels(samples, processor, rng)
    if samples[0].text:
        pair = [str(sample.meta["text_pair"]) for sample in samples] if "text_pair" in samples[0].meta else None
        batch |= processor.tokenize([sample.text or "" for sample in samples], pair, truncation=True)
    return batch


def compared(
    processor: MPlug2Processor, labels: Sequence[str], folder: Path, samples: list[Sample], rng: np.random.Generator
) -> dict[str, Tensor]:
    """What a text says of several pictures (`meta["images"]`, paths under `folder`), and labels.

    pixel_values: (batch, images, 3, side, side), every picture augmented for itself.
    """
    draw = random.Random(int(rng.integers(1 << 62)))
    seen = [
        torch.stack([training_image(load_image(folder / name), processor.image_size, draw) for name in names])
        for names in (sample.meta["images"] for sample in samples)
    ]
    batch = processor.tokenize([sample.text or "" for sample in samples], truncation=True)
    targets = torch.tensor([labels.index(sample.label or "") for sample in samples])
    return {"pixel_values": torch.stack(seen), **batch, "labels": targets}


def to_be_written(processor: MPlug2Processor, texts: Sequence[str]) -> dict[str, Tensor]:
    """decoder_input_ids, decoder_attention_mask and labels (batch, length) of texts."""
    made = processor.answers(texts)
    return {
        "decoder_input_ids": made["input_ids"],
        "decoder_attention_mask": made["attention_mask"],
        "labels": made["labels"],
    }
