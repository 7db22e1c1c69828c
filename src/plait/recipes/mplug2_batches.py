"""Batches for mPLUG-2: drawn questions, texts with labels, and rows of manifests -> what the task classes take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data.drawn_tasks import Drawings, Example
from plait.data.pairs import augment
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import instruct
from plait.processing import wordpiece
from plait.training.stages import Source

SCENES = ("is_there", "count", "beside", "order", "motion")
"""Tasks whose pictures bear only small changes: nothing may leave the page or change sides."""

SCENE_STRENGTH = 0.3
SPECIAL = (wordpiece.PAD, wordpiece.UNK, wordpiece.CLS, wordpiece.SEP, wordpiece.MASK)


def vocabulary(texts: Iterable[str], min_count: int = 1) -> list[str]:
    """Pieces of uncased BERT's vocabulary that the texts use at least `min_count` times, and all single characters."""
    backend = wordpiece.build_backend()
    counts: dict[str, int] = {}
    for text in texts:
        for piece in backend.encode(wordpiece.clean_question(text, max_words=10**6), add_special_tokens=False).tokens:
            counts[piece] = counts.get(piece, 0) + 1
    used = {piece for piece, count in counts.items() if count >= min_count}
    kept = [p for p in wordpiece.pieces() if p in used or len(p.removeprefix("##")) == 1]
    return [*SPECIAL, *(piece for piece in kept if piece not in SPECIAL)]


class FreshExamples:
    """Examples drawn anew at every step, each alone; each step has pictures or clips.

    groups: tasks that share a batch, with the share of steps they get. collate: examples, generator -> batch.
    """

    def __init__(
        self,
        drawings: Drawings,
        groups: Sequence[tuple[int, Sequence[str]]],
        collate: Callable[[list[Example], np.random.Generator], Any],
        split: str = "train",
    ) -> None:
        self.drawings, self.collate, self.split = drawings, collate, split
        self.groups = [tuple(tasks) for _, tasks in groups]
        self.cycle = [number for number, (share, _) in enumerate(groups) for _ in range(share)]

    def __len__(self) -> int:
        return len(self.drawings.numbers(self.split))

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Numbers that name group and place; the examples themselves come from the generator of the step."""
        turn, place = divmod(step, len(self.cycle))
        order = np.random.default_rng((seed, turn)).permutation(len(self.cycle))
        return [self.cycle[order[place]]] * batch_size

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """One batch of the group."""
        tasks = self.groups[rows[0]]
        return self.collate(
            [self.drawings.example(tasks[rng.integers(len(tasks))], self.split, rng) for _ in rows], rng
        )

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked, for messages."""
        return [",".join(self.groups[row]) for row in rows]


class FreshQuestions:
    """Pictures, scenes and clips drawn anew at every step, several questions about each.

    shares: group of `Drawings.together` -> its share of the pictures and clips of a step, at least one each: a step
    without a group would unlearn how its questions are answered. collate: examples of a group, generator -> batch.
    """

    def __init__(
        self,
        drawings: Drawings,
        shares: Mapping[str, int],
        collate: Callable[[list[Example], np.random.Generator], Any],
        split: str = "train",
    ) -> None:
        self.drawings, self.collate, self.split = drawings, collate, split
        self.cycle = [group for group, share in shares.items() for _ in range(share)]

    def __len__(self) -> int:
        return len(self.drawings.numbers(self.split))

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Numbers that name the group; the examples themselves come from the generator of the step."""
        return [number * len(self.cycle) // batch_size for number in range(batch_size)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> list[Any]:
        """A batch of every group."""
        groups = [self.cycle[row] for row in rows]
        return [
            self.collate(
                [e for _ in range(groups.count(group)) for e in self.drawings.together(group, self.split, rng)], rng
            )
            for group in dict.fromkeys(groups)
        ]

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked, for messages."""
        return [self.cycle[row] for row in rows]


def pixels_of(
    examples: Sequence[Example],
    processor: MPlug2Processor,
    rng: np.random.Generator | None = None,
    strength: float = 0.0,
    *,
    single_frame: bool = False,
) -> dict[str, Tensor]:
    """Frames of examples of one length -> pixel_values or pixel_values_videos.

    rng, strength: of augmentation, the same for all frames of a clip; single_frame: a frame of an unknown time instead
    of the clip.
    """
    frames = torch.from_numpy(np.stack([example.frames for example in examples]))  # (batch, time, side, side, 3)
    if single_frame and frames.shape[1] > 1:
        chosen = np.random.default_rng(len(examples)) if rng is None else rng
        frames = frames[torch.arange(len(frames)), torch.from_numpy(chosen.integers(frames.shape[1], size=len(frames)))]
        frames = frames[:, None]
    time = frames.shape[1]
    pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
    if rng is not None and strength:
        is_scene = any(example.task in SCENES for example in examples)
        strength *= SCENE_STRENGTH if is_scene else 1
        pixels = augment(pixels, strength, rng, frames=time, mirrors=not is_scene)
    image = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
    pixels = (pixels - mean) / std
    if time == 1:
        return {"pixel_values": pixels}
    return {"pixel_values_videos": pixels.unflatten(0, (-1, time)).transpose(1, 2).contiguous()}


def to_be_written(processor: MPlug2Processor, texts: Sequence[str]) -> dict[str, Tensor]:
    """decoder_input_ids, decoder_attention_mask and labels (batch, length) of texts."""
    made = processor.answers(texts)
    return {
        "decoder_input_ids": made["input_ids"],
        "decoder_attention_mask": made["attention_mask"],
        "labels": made["labels"],
    }


def asked(examples: Sequence[Example], *, instructions: bool = True) -> list[str]:
    """What the text encoder reads for each example: its question, or that a caption is wanted."""
    medium: Any = "video" if len(examples[0].frames) > 1 else "image"
    return [
        instruct("answer", medium, example.question, enabled=instructions)
        if example.question
        else instruct("caption", medium)
        for example in examples
    ]


def collate_answers(
    processor: MPlug2Processor,
    strength: float,
    instructions: bool,
    single_frame: bool,
    shuffle_answers: bool,
    examples: list[Example],
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Examples -> pixels, questions, answers to be written, and the number of each question's picture.

    Neighbours of the same frames share a picture. shuffle_answers: each the answer to a question of its task about
    another picture, the control that learns priors alone.
    """
    starts = [i for i in range(len(examples)) if not i or examples[i].frames is not examples[i - 1].frames]
    picture = np.repeat(np.arange(len(starts)), np.diff([*starts, len(examples)]))
    answers = [example.answer for example in examples]
    if shuffle_answers:
        for own, other in _of_other_pictures([example.task for example in examples], picture, rng):
            answers[own] = examples[other].answer
    return {
        **pixels_of([examples[i] for i in starts], processor, rng, strength, single_frame=single_frame),
        **processor.tokenize(asked(examples, instructions=instructions)),
        **to_be_written(processor, answers),
        "picture": torch.from_numpy(picture),
    }


def _of_other_pictures(tasks: Sequence[str], picture: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Each place, and one of the same task and another picture, as long as there are enough of them."""
    found = []
    turn = rng.permutation(len(tasks))  # of pictures, and of the questions about each
    for task in sorted(set(tasks)):
        places = sorted((i for i, one in enumerate(tasks) if one == task), key=lambda i: (turn[picture[i]], turn[i]))
        most = int(np.bincount(picture[places]).max())
        found += [(own, places[(n + most) % len(places)]) for n, own in enumerate(places)]
    return found


def collate_classes(
    processor: MPlug2Processor,
    labels: Sequence[str],
    strength: float,
    single_frame: bool,
    shuffle_labels: bool,
    examples: list[Example],
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Examples -> pixels and the number of their answer among `labels`."""
    numbers = torch.tensor([labels.index(example.answer) for example in examples])
    if shuffle_labels:
        numbers = numbers[torch.from_numpy(rng.permutation(len(numbers)))]
    return {**pixels_of(examples, processor, rng, strength, single_frame=single_frame), "labels": numbers}


def collate_texts(
    processor: MPlug2Processor,
    labels: Sequence[str],
    shuffle_labels: bool,
    samples: list[Any],
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Rows with `text` and `label` -> ids and numbers of the labels."""
    numbers = torch.tensor([labels.index(sample.label) for sample in samples])
    if shuffle_labels:
        numbers = numbers[torch.from_numpy(rng.permutation(len(numbers)))]
    return {**processor.tokenize([sample.text for sample in samples], truncation=True), "labels": numbers}


def pretraining_texts(processor: MPlug2Processor, texts: Sequence[str]) -> dict[str, Tensor]:
    """Captions -> what alignment reads, and what the decoder writes."""
    return {**processor.tokenize(texts), **to_be_written(processor, texts)}


def source_of(
    drawings: Drawings, processor: MPlug2Processor, shares: Mapping[str, int], **options: Any
) -> Callable[[], Source]:
    """A builder of fresh questions; options as the named parameters of `collate_answers`."""
    given = {"strength": 0.5, "instructions": True, "single_frame": False, "shuffle_answers": False} | options
    return partial(FreshQuestions, drawings, shares, partial(collate_answers, processor, *given.values()))
