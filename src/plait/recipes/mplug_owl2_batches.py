"""Batches of the small mPLUG-Owl2 study: questions about drawings, questions about sentences, pictures with names.

drawn examples | snippets -> conversations -> processor.supervised -> augmented pixels, ids, labels on the answers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.drawn_tasks import Drawings, Example
from plait.data.pairs import augment
from plait.models.mplug_owl2.conversation import IMAGE
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.recipes.mplug_owl2_arms import PARTS
from plait.types import Sample

TASKS = ("name", "kind", "is_kind", "is_there", "count")
"""Questions about a drawing, and about scenes of several."""

SCENES = ("is_there", "count")
Turn = list[dict[str, str]]


def asked(question: str, answer: str, *, with_image: bool = True) -> Turn:
    """One question and its answer, as `MPlugOwl2Processor.supervised` reads them."""
    return [{"from": "human", "value": IMAGE * with_image + question}, {"from": "gpt", "value": answer}]


def about_text(sample: Sample) -> Turn:
    """What a snippet feels."""
    return asked(f'"{sample.text}" Is this review positive or negative?', sample.label or "", with_image=False)


class Mixture:
    """A step asks about drawings or about sentences, never both: neighbours of one modality, as published.

    drawings, snippets: where examples come from; processor: of the model; data: a key of `PARTS`; strength: of
    augmentation, 0 to 1.
    """

    def __init__(
        self,
        drawings: Drawings,
        snippets: Sequence[Sample],
        processor: MPlugOwl2Processor,
        data: str = "both",
        strength: float = 0.5,
        tasks: Sequence[str] = TASKS,
    ) -> None:
        if data not in PARTS:
            raise ValueError(f"expected data among {', '.join(PARTS)}, got {data!r}")
        self.drawings, self.snippets, self.processor = drawings, snippets, processor
        self.cycle, self.strength, self.tasks = PARTS[data], strength, tuple(tasks)

    def __len__(self) -> int:
        return len(self.drawings.numbers("train")) + len(self.snippets)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """0 for every row of a step about drawings, 1 for sentences; the examples come from the step's generator."""
        turn, place = divmod(step, len(self.cycle))
        order = np.random.default_rng((seed, turn)).permutation(len(self.cycle))
        return [self.cycle[order[place]]] * batch_size

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> input_ids, attention_mask, labels (batch, seq), and pixel_values (batch, 3, side, side) of drawings."""
        if rows[0]:
            chosen = [self.snippets[int(rng.integers(len(self.snippets)))] for _ in rows]
            return dict(self.processor.supervised([about_text(sample) for sample in chosen]))
        examples = [self.drawings.example(self.tasks[rng.integers(len(self.tasks))], "train", rng) for _ in rows]
        return picture_batch(self.processor, examples, rng, self.strength)

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked about, for messages."""
        return [("drawings", "sentences")[row] for row in rows]


def picture_batch(
    processor: MPlugOwl2Processor,
    examples: Sequence[Example],
    rng: np.random.Generator | None = None,
    strength: float = 0.0,
    *,
    with_image: bool = True,
) -> dict[str, Tensor]:
    """Supervised conversations about stills; with_image=False leaves pictures and placeholders out."""
    turns = [asked(e.question, e.answer, with_image=with_image) for e in examples]
    pictures = [_picture(e) for e in examples] if with_image else None
    batch = dict(processor.supervised(turns, pictures))
    if with_image and rng is not None and strength:
        scenes = torch.tensor([e.task in SCENES for e in examples])
        batch["pixel_values"] = _augmented(processor, examples, scenes, rng, strength)
    return batch


def _picture(example: Example) -> Any:
    from PIL import Image

    return Image.fromarray(example.frames[0])


def _augmented(
    processor: MPlugOwl2Processor,
    examples: Sequence[Example],
    scenes: Tensor,
    rng: np.random.Generator,
    strength: float,
) -> Tensor:
    pixels = torch.from_numpy(np.stack([e.frames[0] for e in examples])).permute(0, 3, 1, 2).float().div(255)
    for chosen, amount in ((~scenes, strength), (scenes, 0.3 * strength)):
        if chosen.any():
            pixels[chosen] = augment(pixels[chosen], amount, rng)
    image = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
    return (pixels - mean) / std


class NamedPictures:
    """Single drawings with the number of their name: what the fresh tower begins with.

    Every step shows drawings of different things as far as there are enough.
    """

    def __init__(self, drawings: Drawings, processor: MPlugOwl2Processor, strength: float = 0.7) -> None:
        self.drawings, self.strength = drawings, strength
        image = processor.image_processor
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
        self.numbers = drawings.numbers("train")
        self.names_of_things = names_of(drawings)
        place = {name: i for i, name in enumerate(self.names_of_things)}
        self.labels = {number: place[drawings.rows[number].text or ""] for number in self.numbers}

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Numbers of drawings, none twice in a batch that is smaller than the data."""
        epoch, place = divmod(step * batch_size, len(self.numbers))
        order = [
            int(i) for turn in (epoch, epoch + 1) for i in np.random.default_rng((seed, turn)).permutation(self.numbers)
        ]
        return order[place : place + batch_size]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> pixel_values (batch, 3, side, side), labels (batch,) numbers of names."""
        frames = np.stack([np.asarray(self.drawings.pictures[row]) for row in rows])
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255)
        pixels = augment(pixels, self.strength, rng) if self.strength else pixels
        labels = torch.tensor([self.labels[row] for row in rows])
        return {"pixel_values": (pixels - self.mean) / self.std, "labels": labels}

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of the drawings."""
        return [self.drawings.rows[row].id for row in rows]


def names_of(drawings: Drawings) -> list[str]:
    """Every name once, in order."""
    return sorted({row.text or "" for row in drawings.rows})
