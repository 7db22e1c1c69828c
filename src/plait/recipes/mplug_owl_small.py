"""The small mPLUG-Owl of `plait study owl`: what it trains on drawings and sentences, each stage a `Recipe`.

language model, fresh tower -> warm-up (pictures towards embeddings of their names) -> stage 1 (names, language model
frozen) -> stage 2 (questions about pictures and sentences, LoRA on the language model, the rest frozen)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.build.snippets import movie_snippets
from plait.data.drawn_tasks import Drawings, Example
from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.data.pairs import augment
from plait.models.mplug_owl.conversation import IMAGE, Turn
from plait.models.mplug_owl.initial import around
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.models.mplug_owl.trainable import lora_targets
from plait.recipes.mplug_owl import TOWERS, Built, answer_loss, loaded, save
from plait.recipes.mplug_owl2_batches import NamedPictures
from plait.training.stages import Recipe, Stage
from plait.types import Sample

SIDE = 64
SHARPNESS = 20.0
SYSTEM = "A conversation between a human and AI."
"""Shorter than the published one, which would be most of every sequence here."""

TASKS = ("name", "kind", "is_kind", "is_there", "count")
SCENES = ("is_there", "count")


def drawings() -> Drawings:
    """The shipped drawings."""
    return Drawings([s for s in read_manifest(cached_mini()) if s.image is not None], SIDE, 1)


def snippets(split: str) -> list[Sample]:
    """Movie snippets of a split."""
    return [sample for sample in movie_snippets() if sample.split == split]


def fresh(llm: Path, seed: int) -> Built:
    """The language model with a fresh tower of 192 x 4 layers over 8 x 8 patches."""
    vision, reader = TOWERS["small"]
    model, processor = around(llm, vision=vision, abstractor=reader, seed=seed)
    with torch.no_grad():  # an end vector as long as the words it stands among
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        model.abstractor.end.mul_(table.square().mean().sqrt() / model.abstractor.end.square().mean().sqrt())
    return model, processor


def warm_up(llm: Path, steps: int, *, batch_size: int = 64, lr: float = 1e-3, seed: int = 0) -> Recipe:
    """Tower and abstractor alone: the mean of an image's positions moves to the embedding of its name.

    Stands for the CLIP tower that the published model begins with.
    """
    model, processor = fresh(llm, seed)
    source = NamedPictures(drawings(), processor)  # ty: ignore[invalid-argument-type]
    ids = [processor.tokenizer(" " + name)["input_ids"] for name in source.names_of_things]
    stage = _stage("warm-up", partial(towards_names, ids), source, steps, batch_size, lr, ("vision.*", "abstractor.*"))
    return Recipe(lambda: model, [stage], partial(save, processor))


def seeing(warm: Path, steps: int, *, batch_size: int = 16, lr: float = 3e-4) -> Recipe:
    """Stage 1: names of drawings through the frozen language model; tower and abstractor train."""
    model, processor = loaded(str(warm))
    source = Questions(drawings(), (), processor, ("name",))
    stage = _stage("stage1", answer_loss, source, steps, batch_size, lr, ("vision.*", "abstractor.*"))
    return Recipe(lambda: model, [stage], partial(save, processor))


def tuning(first: Path, steps: int, *, batch_size: int = 16, lr: float = 1e-3, rank: int = 8) -> Recipe:
    """Stage 2: questions about drawings, scenes and sentences; a LoRA on queries and values trains, nothing else."""
    from plait.training.adapters import TRAINABLE, add_lora, folded

    model, processor = loaded(str(first))
    add_lora(model, rank, 4.0 * rank, targets=lora_targets(model), dropout=0.05)
    source = Questions(drawings(), snippets("train"), processor, TASKS)
    stage = _stage("stage2", answer_loss, source, steps, batch_size, lr, TRAINABLE)
    return Recipe(lambda: model, [stage], partial(save, processor), after=lambda trained, _: folded(trained))


def _stage(
    name: str, objective: Any, source: Any, steps: int, batch_size: int, lr: float, trainable: Sequence[str]
) -> Stage:
    return Stage(
        name=name, objective=objective, batches=lambda: source, batch_size=batch_size, steps=steps, peak_lr=lr,
        floor=lr / 100, weight_decay=0.0, clip=1.0, trainable=tuple(trainable),
    )  # fmt: skip


class Questions:
    """Every step asks about drawings; with sentences given, one row in four is a question about a sentence."""

    def __init__(
        self, drawings: Drawings, sentences: Sequence[Sample], processor: MPlugOwlProcessor, tasks: Sequence[str]
    ) -> None:
        self.drawings, self.sentences, self.processor, self.tasks = drawings, sentences, processor, tuple(tasks)

    def __len__(self) -> int:
        return len(self.drawings.numbers("train")) + len(self.sentences)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """1 for a sentence, 0 for a drawing; which one comes from the step's generator."""
        return [int(bool(self.sentences) and i % 4 == 3) for i in range(batch_size)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> input_ids, attention_mask, labels (batch, seq), pixel_values (drawings, 3, side, side)."""
        texts = [self.sentences[int(rng.integers(len(self.sentences)))] for row in rows if row]
        asked = [
            self.drawings.example(self.tasks[rng.integers(len(self.tasks))], "train", rng) for row in rows if not row
        ]
        return batch_of(self.processor, asked, texts, rng)

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked about, for messages."""
        return [("drawing", "sentence")[row] for row in rows]


def about_picture(example: Example, *, with_image: bool = True) -> list[Turn]:
    """One question about a drawing or a scene."""
    return [(IMAGE * with_image + example.question, example.answer)]


def about_text(sample: Sample) -> list[Turn]:
    """What a snippet feels."""
    return [(f'"{sample.text}" Is this review positive or negative?', sample.label or "")]


def batch_of(
    processor: MPlugOwlProcessor,
    examples: Sequence[Example],
    texts: Sequence[Sample] = (),
    rng: np.random.Generator | None = None,
    *,
    with_image: bool = True,
) -> dict[str, Tensor]:
    """Questions about drawings, then about sentences; augmented where a generator is given."""
    from PIL import Image

    turns = [about_picture(e, with_image=with_image) for e in examples] + [about_text(sample) for sample in texts]
    pictures = [Image.fromarray(e.frames[0]) for e in examples] if with_image else None
    batch = dict(processor.supervised(turns, pictures, system=SYSTEM))
    if rng is not None and with_image and examples:
        pixels = torch.from_numpy(np.stack([e.frames[0] for e in examples])).permute(0, 3, 1, 2).float().div(255)
        scenes = torch.tensor([e.task in SCENES for e in examples])
        for chosen, amount in ((~scenes, 0.5), (scenes, 0.15)):
            if chosen.any():
                pixels[chosen] = augment(pixels[chosen], amount, rng)
        image = processor.image_processor
        mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
        batch["pixel_values"] = (pixels - mean) / std
    return batch


def towards_names(
    names: list[list[int]], model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of all names is it: cosine between the image's mean position and mean embeddings, and their distance."""
    assert isinstance(model, MPlugOwlForConditionalGeneration)
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    with torch.no_grad():
        words, middle = torch.stack([table[ids].mean(0) for ids in names]), table.mean(0)
    positions = model.encode(batch["pixel_values"])[:, :-1].float()
    logits = SHARPNESS * F.normalize(positions.mean(1) - middle, dim=-1) @ F.normalize(words - middle, dim=-1).T
    goal = words[batch["labels"]]
    distance = (positions - goal[:, None]).square().mean() / goal.square().mean()
    loss = F.cross_entropy(logits, batch["labels"]) + 0.1 * distance
    return loss, {"right": (logits.argmax(-1) == batch["labels"]).float().mean(), "distance": distance.detach()}
