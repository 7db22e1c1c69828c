"""`one_peace.distil`: a student learns what a larger model relates. `one_peace.fuse`: a fused vector teaches its parts.

distil: rows -> the teacher's vectors, once -> batches of stage 1 or 2 -> contrast + how the teacher relates the batch
fuse: a sound, a name, a picture of both -> contrast of sound + name with the picture + each part after the fused one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plait.data.manifest import digest
from plait.data.pairs import KEEP_BYTES, compose, concept_of
from plait.data.reader import Reader, Reading, Source, select
from plait.embedder import Embedder
from plait.embedder.towers import PairTower
from plait.errors import UsageError
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.models import locate
from plait.models.auto import load
from plait.objectives.contrastive import contrastive_loss
from plait.objectives.distillation import soft_label_loss
from plait.recipes.adding import save
from plait.recipes.one_peace import stage1, stage2, unseen_pairs
from plait.training.parallel import gather_rows
from plait.training.stages import Recipe, Stage
from plait.types import Sample


class Taught:
    """A source of stage 1 or 2 whose batches also hold the teacher's vectors of their rows.

    Args:
        source: of images or audio with words, one row of the data set each.
        teacher: any model that embeds the medium and texts: ONE-PEACE, or a CLIP- or CLAP-like directory.
        medium: image or audio.
    """

    def __init__(self, source: Reader, teacher: Embedder, medium: str) -> None:
        self.source = source
        rows = [source.samples[i] for i in range(len(source.samples))]
        # the clean media, once: what the student sees of them changes a little each time
        self.media = torch.from_numpy(teacher.embed([{medium: getattr(row, medium)} for row in rows]))
        self.texts = torch.from_numpy(teacher.embed([{"text": row.text} for row in rows]))

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """As of the source."""
        return self.source.rows(seed, step, batch_size)

    def names(self, rows: Sequence[int]) -> list[str]:
        """As of the source."""
        return self.source.names(rows)

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The batch of the source, with teacher_media and teacher_texts (batch, width of the teacher)."""
        chosen = torch.as_tensor(list(rows))
        return self.source.load(rows, rng) | {"teacher_media": self.media[chosen], "teacher_texts": self.texts[chosen]}


class Relating:
    """Contrast, and the teacher's distribution over a batch of which text is whose, both ways.

    loss = contrast + weight (H(T, S) + H(T^T, S^T)) / 2, where T and S are softmaxes of similarities times a factor,
    the teacher's own and the student's. Widths may differ, since only similarities are compared.

    Args:
        medium: image or audio. weight: of the teacher; 0 has the batches of one, and nothing of it.
        scale: by which the teacher multiplies its cosines.
    """

    def __init__(self, medium: str, weight: float, scale: float) -> None:
        self.medium, self.weight, self.scale = medium, weight, scale

    def __call__(
        self, model: Any, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (), and its two parts. step, generator: unused."""
        encoder = model.model
        medium: Any = batch.get("pixel_values")
        if self.medium == "audio":
            mask = batch["audio_mask"]
            frames = None if mask is None else encoder.frame_mask(mask)
            medium = {"input_values": batch["input_values"], "frame_mask": frames}
        vectors = encoder.embed({"text": batch["input_ids"], self.medium: medium})
        found, text = vectors[self.medium], vectors["text"]
        (text_all, offset), (found_all, _), (ids_all, _) = map(gather_rows, (text, found, batch["ids"]))
        scale = encoder.temperature()
        out = contrastive_loss(
            text, found, scale, a_all=text_all, b_all=found_all, offset=offset, ids=batch["ids"], ids_all=ids_all
        )
        told = self.scale * batch["teacher_media"] @ batch["teacher_texts"].T
        said = scale * found @ text.T
        match = (follow(said, told) + follow(said.T, told.T)) / 2
        right = out.num_correct_b_to_a / len(text)
        return out.loss + self.weight * match, {"contrast": out.loss, "match": match, "right": right}


def follow(logits: Tensor, teacher: Tensor) -> Tensor:
    """logits, teacher: (rows, choices) -> the mean cross entropy () against the softmax of the teacher's row."""
    every = torch.zeros(1, len(logits), dtype=torch.long, device=logits.device)
    return soft_label_loss(logits[None], teacher.detach()[None].softmax(-1), every)


def distil(
    teacher: str,
    data: str = "mini",
    medium: str = "image",
    preset: str = "nano",
    init: str | None = None,
    weight: float = 1.0,
    steps: int = 600,
    batch_size: int = 64,
    lr: float = 1e-3,
    augmentation: float = 0.7,
    reading: Reading = Reading(),
) -> Recipe:
    """A smaller ONE-PEACE learns how a larger model relates media and texts, beside the contrast of stage 1 or 2.

    `medium=image` begins a student of a preset (stage 1), `medium=audio` goes on from one (stage 2): then text and
    images stay bit for bit. docs/add-a-modality.md tells what was measured: in
    runs of 80 steps the teacher did not help.

    Args:
        teacher: any model that embeds texts and the medium: a larger ONE-PEACE, CLIP, SigLIP, CLAP or their like.
        data: rows with the medium and `text`. medium: image, or audio.
        preset: of the student (image). init: directory of the student (audio).
        weight: of the teacher beside contrast.
        steps, batch_size, lr: optimiser steps, rows of each over all processes, peak rate.
        augmentation: 0 to 1, of what the student sees. reading: workers, on_bad and most_bad.
    """
    if medium not in ("image", "audio") or (init is None) != (medium == "image"):
        raise UsageError(
            f"expected medium=image without init, or medium=audio with the student in init, got {medium} and {init}"
        )
    options: dict[str, Any] = {"data": data, "steps": steps, "batch_size": batch_size, "lr": lr, "denoise_every": 0}
    options |= {"augmentation": augmentation, "reading": reading}
    recipe = stage1(preset=preset, warmup=0.04, **options) if init is None else stage2(init=init, **options)
    stage, knowing = recipe.stages[0], Embedder(teacher)
    if missing := {"text", medium} - set(knowing.modalities):
        raise UsageError(f"expected a teacher of text and {medium}, got {teacher} without {', '.join(sorted(missing))}")
    objective = Relating(medium, weight, knowing.similarity_scale)
    return replace(
        recipe, stages=[replace(stage, objective=objective, batches=partial(_taught, stage, knowing, medium))]
    )


def _taught(stage: Stage, teacher: Embedder, medium: str) -> Source:
    """The source of a stage with the teacher's vectors."""
    source = stage.batches()
    assert isinstance(source, Reader)
    return Taught(source, teacher, medium)


class Triples(Reader):
    """An audio clip, the name of something else, and an image of the two side by side.

    Args:
        sounds: rows with audio of things that are drawn. pictures: rows with an image and text, to draw the others.
        tower: prepares all three. size: side of the images.
        held_out: pairs (sounding thing, other) that are never drawn.
        reading: workers, and what becomes of bad samples.
    """

    def __init__(
        self,
        sounds: Sequence[Sample],
        pictures: Sequence[Sample],
        tower: PairTower,
        size: int,
        *,
        held_out: Sequence[tuple[str, str]] = (),
        reading: Reading | None = None,
    ) -> None:
        self.tower, self.size = tower, size
        self.held_out = {frozenset(pair) for pair in held_out}
        self.drawn: dict[int, list[Sample]] = {}
        self.pictures = [pictures[i] for i in range(len(pictures))]
        for row in self.pictures:
            self.drawn.setdefault(concept_of(row), []).append(row)
        heard = [row for i in range(len(sounds)) if concept_of(row := sounds[i]) in self.drawn]
        if not heard:
            raise ValueError(
                "expected sounds of things that are drawn too, got none; give rows of one label both media"
            )
        super().__init__(heard, self.collated, self.decoded, reading=reading, keep_bytes=KEEP_BYTES)

    def decoded(self, sample: Sample, rng: np.random.Generator) -> tuple[Sample, np.ndarray]:
        """A row and its waveform (samples,)."""
        return sample, load_audio(sample.audio, self.tower.sampling_rate or 16000)

    def collated(self, parts: list[tuple[Sample, np.ndarray]], rng: np.random.Generator) -> dict[str, Any]:
        """-> audio, text, image: inputs of each by name; ids (batch,): of the pair."""
        names, pages, ids = [], [], []
        for sample, _ in parts:
            while True:
                other = self.pictures[int(rng.integers(len(self.pictures)))]
                pair = frozenset((str(sample.label), str(other.label)))
                if len(pair) == 2 and pair not in self.held_out:
                    break
            same = self.drawn[concept_of(sample)]
            drawing = same[int(rng.integers(len(same)))]
            both = (load_image(drawing.image), load_image(other.image))
            pages.append(compose(both[0], both[1], self.size, seed=int(rng.integers(1 << 31))))
            names.append(other.text or "")
            ids.append(digest(" ".join(sorted(pair))) >> 1)
        audio = self.tower.prepare("audio", [wave for _, wave in parts])
        made = {"text": self.tower.prepare("text", names), "image": self.tower.prepare("image", pages)}
        return {"audio": audio, **made, "ids": torch.tensor(ids)}


class Fusing:
    """The fused vector of an audio clip and a name finds the image of both, and teaches the two alone where it looks.

    loss = contrast(f, g) + teach (H(sg softmax(s f G^T), softmax(s a G^T)) + the same of t) / 2
    with f = (a + t) / |a + t|, g the image, G those of the batch; sg: no gradient into the teacher.

    Args:
        tower: of the model that learns. teach: weight; 0 for contrast alone.

    Source: OmniRetriever (arXiv 2605.26641), whose fused vector teaches those of single modalities.
    """

    def __init__(self, tower: PairTower, teach: float) -> None:
        self.tower, self.teach = tower, teach

    def __call__(
        self, model: Any, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (), and its parts. model, step, generator: unused, the tower holds the model."""
        a, t, g = (F.normalize(self.tower.encode(m, batch[m]), dim=-1) for m in ("audio", "text", "image"))
        fused, scale = F.normalize(a + t, dim=-1), self.tower.model.temperature()
        out = contrastive_loss(fused, g, scale, ids=batch["ids"])
        told = scale * fused.detach() @ g.detach().T
        match = sum((follow(scale * part @ g.T, told) for part in (a, t)), start=fused.new_zeros(())) / 2
        return out.loss + self.teach * match, {"contrast": out.loss, "match": match}


def fuse(
    init: str = "nano",
    data: str = "mini",
    teach: float = 0.0,
    steps: int = 150,
    batch_size: int = 48,
    lr: float = 1e-3,
    reading: Reading = Reading(),
) -> Recipe:
    """Queries of an audio clip and a name together: the projections learn to find the image of both.

    Everything but the projections is frozen. Vectors of all three kinds change: indexes are built anew.

    Args:
        init: model directory with text, images and audio, or "nano".
        data: "mini" or rows of things (`label`) that have images, audio and words.
        teach: how much the fused vector teaches the single ones; 0 for the contrast of the fused one alone, which was
            better where it was measured (docs/add-a-modality.md).
        steps, batch_size, lr: optimiser steps, rows of each, peak rate.
        reading: workers, on_bad and most_bad, see `plait.data.reader.Reading`.
    """
    model, processor = load(locate(init), dtype="float32")
    rows = select(data, "anything", lambda _: True, splits=None, reading=reading)
    train = partial(select, rows, splits=(None, "train"), reading=reading)
    sounds = train("audio and a label", keep=lambda s: s.audio is not None and bool(s.label))
    pictures = train("an image and words", keep=lambda s: s.image is not None and bool(s.text) and bool(s.label))
    tower = PairTower(model, processor)
    held_out = unseen_pairs(rows)
    stage = Stage(
        name="fuse",
        objective=Fusing(tower, teach),
        batches=lambda: Triples(sounds, pictures, tower, processor.image_size, held_out=held_out, reading=reading),
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 100,
        warmup=0.1,
        trainable=(r"re:(^|\.)projections\.",),
        no_decay=lambda key, parameter: parameter.ndim < 2,
    )
    return Recipe(lambda: model, [stage], partial(save, processor, f"one_peace.fuse on {Path(data).name}"))
