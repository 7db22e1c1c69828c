"""What the small mPLUG-Owl is shown: drawings and scenes of them, photographs, clips that need time, animated emoji.

shipped drawings | Tux Paint stamps | animated emoji -> Sights -> example(task, split, rng) -> frames, question, answer

Every test example shows what training never does: another style of drawing, other photographs, other animations.

The small mPLUG-Owl of `plait study owl`: what it trains on, each stage a `Recipe`.

language model, fresh tower -> warm-up (pictures past the queries, then pictures and clips through them, towards
embeddings of their words) -> stage 1 (words of pictures and clips, language model frozen) -> stage 2 (questions about
both and about sentences, LoRA, the rest frozen)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.manifest import read_manifest, write_manifest
from plait.data.mini import cached_mini
from plait.data.pairs import augment
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.mplug_owl.conversation import IMAGE, VIDEO, Turn
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.models.mplug_owl.tasks import STAGE1, lora_targets
from plait.models.mplug_owl.weights import around
from plait.nn.attention import attention_function
from plait.recipes.mplug_owl import TOWERS, Built, answer_loss, loaded, save
from plait.training.stages import Recipe, Stage
from plait.types import Sample
from plait_studies.build import emoji, stamps
from plait_studies.build.sounds import split_by_hash
from plait_studies.build.stamps import movie_snippets
from plait_studies.drawings import KINDS, MOTIONS, Drawings, Example

SIDE, FRAMES = 48, 4

STILLS = ("name", "kind", "is_kind", "is_there", "count")
SCENES = ("is_there", "count")
CLIPS = ("motion", "animation")
TASKS = (*STILLS, "photo", *CLIPS)
"""What is asked: about a drawing, about a scene of several, about a photograph, about a clip."""

STAMPS = {
    "animals": "animal or plant", "plants": "animal or plant", "food": "food", "vehicles": "vehicle or place",
    "town": "vehicle or place", "hobbies": "game or event", "sports": "game or event", "household": "object",
    "clothes": "object",
}  # fmt: skip
"""Folder of Tux Paint -> the kind that questions name; stamps of other folders are left out."""

ANIMATED = KINDS | {"Smileys & Emotion": "face", "People & Body": "person"}
TEST_SHARE = 4
"""Photographs and animations of one name in so many are for testing; there are but some hundreds."""


class Sights:
    """Examples of every task.

    drawings: with `num_frames` frames in their clips; photographs, animations: rows with `image` or `video`, `text`
    (the name), `label` (the kind) and `split`; without any of them their task is left out.
    """

    def __init__(self, drawings: Drawings, photographs: Sequence[Sample], animations: Sequence[Sample]) -> None:
        self.drawings = drawings
        self.rows = {"photo": list(photographs), "animation": list(animations)}
        size, count = drawings.size, drawings.num_frames
        self.frames = {row.id: np.asarray(_square(row.image, size))[None] for row in photographs}
        self.frames |= {
            row.id: np.stack([_square(frame, size) for frame in load_frames(row.video, count)]) for row in animations
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of `TASKS` for which there are rows."""
        return tuple(task for task in TASKS if self.rows.get(task) != [])

    def example(self, task: str, split: str, rng: np.random.Generator) -> Example:
        """A fresh example of a task, drawn with `rng`; `naming` asks for the name of any single thing."""
        if task == "naming":
            return self._named(split, rng)
        if task not in self.rows:
            return self.drawings.example(task, split, rng)
        chosen = [row for row in self.rows[task] if row.split == split]
        return self._kind(task, chosen[int(rng.integers(len(chosen)))])

    def examples(self, task: str, split: str, count: int) -> list[Example]:
        """At most `count` examples, always the same: of rows every one once, as far as they go, in a drawn order."""
        if task not in self.rows:
            return self.drawings.examples(task, split, count)
        chosen = [row for row in self.rows[task] if row.split == split]
        order = np.random.default_rng(0).permutation(len(chosen))[:count]
        return [self._kind(task, chosen[int(place)]) for place in order]

    def _kind(self, task: str, row: Sample) -> Example:
        return Example(task, self.frames[row.id], "what kind of thing is this?", row.label or "")

    def _named(self, split: str, rng: np.random.Generator) -> Example:
        """A drawing in two cases of four, else a photograph or an animation."""
        chosen = [row for row in self.rows[("photo", "animation")[rng.integers(2)]] if row.split == split]
        if rng.integers(2) or not chosen:
            return self.drawings.example("name", split, rng)
        row = chosen[int(rng.integers(len(chosen)))]
        return Example("name", self.frames[row.id], "what is this?", row.text or "")


def is_clip(example: Example) -> bool:
    """Whether an example shows more than one frame."""
    return len(example.frames) > 1


def drawings() -> Drawings:
    """The shipped drawings, clips of four frames."""
    return Drawings([s for s in read_manifest(cached_mini()) if s.image is not None], SIDE, FRAMES)


def sights(data: Path | None) -> Sights:
    """The shipped drawings, and the rows that `prepare` wrote into `data`; None for the drawings alone."""
    if data is None:
        return Sights(drawings(), [], [])
    rows = read_manifest(data)
    return Sights(drawings(), [r for r in rows if r.image is not None], [r for r in rows if r.video is not None])


def prepare(data: Path) -> Path:
    """Photographs and animations as files and a manifest in `data`, made once; fetches packages of 161 and 165 MB."""
    if (data / "manifest.jsonl").is_file():
        return data
    photographs = (row for row in stamps.samples(data, SIDE) if row.image is not None)
    rows = [relabelled(row, STAMPS) for row in photographs]
    rows += [relabelled(row, ANIMATED) for row in emoji.samples(data, SIDE, 2 * FRAMES)]
    write_manifest(data / "manifest.jsonl", [row for row in rows if row.label])
    return data


def relabelled(row: Sample, kinds: Mapping[str, str]) -> Sample:
    """A row named without article and full stop, split by that name, its kind as label, None outside `kinds`."""
    name = (row.text or "").split(".")[0]
    for article in ("A ", "An ", "The ", "Some "):
        name = name.removeprefix(article)
    name = name[:1].lower() + name[1:]
    split = split_by_hash(name.encode(), TEST_SHARE)
    return replace(row, text=name, label=kinds.get(row.meta["group"]), split=split)


def _square(picture: object, size: int) -> np.ndarray:
    return np.asarray(load_image(picture).convert("RGB").resize((size, size)))  # ty: ignore[invalid-argument-type]


SHARPNESS = 20.0
SYSTEM = "A chat."
"""Shorter than the published one, which would be most of every sequence here."""

VISUAL = tuple(f"{prefix}*" for prefix in STAGE1["all"])
SHOWN = ("drawing", "photo", "drawing", "motion", "drawing", "photo", "drawing", "animation")
"""What the rows of a warm-up step show, over and over."""

PICTURES = ("drawing", "drawing", "drawing", "photo")
"""The same while the tower learns alone."""

STRENGTH = {"is_there": 0.15, "count": 0.15, "motion": 0.15}
"""Of augmentation, 0.5 for the other tasks: small things must stay in sight."""


def snippets(split: str) -> list[Sample]:
    """Movie snippets of a split."""
    return [sample for sample in movie_snippets() if sample.split == split]


def fresh(llm: Path, seed: int) -> Built:
    """The language model with a fresh tower that reads clips: 192 x 4 layers, patches of 12 x 12 pixels."""
    vision, reader = TOWERS["small"]
    model, processor = around(
        llm, vision=replace(vision, image_size=SIDE, patch_size=12), abstractor=reader, temporal=True, seed=seed
    )
    with torch.no_grad():  # an end vector as long as the words it stands among
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        model.abstractor.end.mul_(table.square().mean().sqrt() / model.abstractor.end.square().mean().sqrt())
    return model, processor


def warm_up(
    llm: Path, seen: Sights, steps: tuple[int, int], *, batch_size: int = 64, lr: float = 1e-3, seed: int = 0
) -> Recipe:
    """What is made of an image moves to the embedding of its name: by the tower, then by tower and abstractor.

    steps: of both. Stands for the CLIP tower that the published model begins with: fresh queries hand little of a
    gradient down to a fresh tower, so the mean of its positions goes through the projection first, past the queries.
    """
    model, processor = fresh(llm, seed)
    pictures, everything = Named(seen, processor, PICTURES), Named(seen, processor, SHOWN)
    ids = [processor.tokenizer(" " + word)["input_ids"] for word in everything.words]
    alone = _stage(
        "tower", partial(towards_words, ids, mean_of_tower), pictures, steps[0], batch_size, lr,
        ("vision.*", "abstractor.proj.*"),
    )  # fmt: skip
    whole = _stage("warm-up", partial(towards_words, ids, of_queries), everything, steps[1], batch_size, lr / 2, VISUAL)
    stages = [replace(stage, weight_decay=0.05) for stage in (alone, whole)]
    return Recipe(lambda: model, stages, partial(save, processor))


def seeing(warm: Path, seen: Sights, steps: int, *, batch_size: int = 16, lr: float = 3e-4) -> Recipe:
    """Stage 1: names and motions through the frozen language model; tower and abstractor train."""
    model, processor = loaded(str(warm))
    source = Questions(seen, (), processor, ("naming", "naming", "naming", "motion"))
    stage = _stage("stage1", answer_loss, source, steps, batch_size, lr, VISUAL)
    return Recipe(lambda: model, [stage], partial(save, processor))


def tuning(first: Path, seen: Sights, steps: int, *, batch_size: int = 16, lr: float = 1e-3, rank: int = 8) -> Recipe:
    """Stage 2: questions about everything and about sentences; a LoRA on queries and values trains, nothing else."""
    from plait.training.lora import TRAINABLE, add_lora, folded

    model, processor = loaded(str(first))
    add_lora(model, rank, 4.0 * rank, targets=lora_targets(model), dropout=0.05)
    source = Questions(seen, snippets("train"), processor, seen.tasks)
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
    """A step asks about pictures and clips; with sentences given, every fourth step asks about sentences instead.

    The two are not mixed because a sentence is twice as long, and every row costs what the longest does.
    """

    def __init__(
        self, seen: Sights, sentences: Sequence[Sample], processor: MPlugOwlProcessor, tasks: Sequence[str]
    ) -> None:
        self.seen, self.sentences, self.processor, self.tasks = seen, sentences, processor, tuple(tasks)

    def __len__(self) -> int:
        return len(self.seen.drawings.numbers("train")) + len(self.sentences)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """1 for a sentence, 0 for something to see; which one comes from the step's generator."""
        return [int(bool(self.sentences) and step % 4 == 3)] * batch_size

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> input_ids, attention_mask, labels (batch, seq), pixel_values and pixel_values_videos where some are."""
        if rows[0]:
            texts = [self.sentences[int(rng.integers(len(self.sentences)))] for _ in rows]
            return batch_of(self.processor, (), texts)
        asked = [self.seen.example(self.tasks[rng.integers(len(self.tasks))], "train", rng) for _ in rows]
        return batch_of(self.processor, asked, rng=rng)


def about(example: Example, *, shown: bool = True) -> list[Turn]:
    """The question about a picture or a clip; shown=False leaves it out."""
    mark = (VIDEO if is_clip(example) else IMAGE) * shown
    return [(mark + example.question, example.answer)]


def about_text(sample: Sample) -> list[Turn]:
    """What a snippet feels."""
    return [(f'"{sample.text}" Is this review positive or negative?', sample.label or "")]


def batch_of(
    processor: MPlugOwlProcessor,
    examples: Sequence[Example],
    texts: Sequence[Sample] = (),
    rng: np.random.Generator | None = None,
    *,
    shown: bool = True,
) -> dict[str, Tensor]:
    """Questions about pictures and clips, then about sentences; augmented where a generator is given."""
    turns = [about(e, shown=shown) for e in examples] + [about_text(sample) for sample in texts]
    frames = [e.frames if rng is None else augmented(e, rng) for e in examples] if shown else []
    pages = [[Image.fromarray(page) for page in one] for one in frames]
    stills, clips = [one[0] for one in pages if len(one) == 1], [one for one in pages if len(one) > 1]
    return dict(processor.supervised(turns, stills or None, clips or None, system=SYSTEM))


def augmented(example: Example, rng: np.random.Generator) -> np.ndarray:
    """Frames (frames, side, side, 3) of an example, all changed alike; what moves left never moves right after."""
    frames = torch.tensor(example.frames).permute(0, 3, 1, 2).float().div(255)
    strength, mirrors = STRENGTH.get(example.task, 0.5), example.task not in (*SCENES, "motion")
    changed = augment(frames, strength, rng, frames=len(frames), mirrors=mirrors)
    return changed.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


class Named:
    """Drawings, photographs and clips with the words for them: what the fresh tower begins with.

    shown: what the rows of a step show, over and over; words: all names, then the ways that things move.
    """

    def __init__(self, seen: Sights, processor: MPlugOwlProcessor, shown: Sequence[str]) -> None:
        self.seen, self.processor, self.shown = seen, processor, shown
        self.numbers = seen.drawings.numbers("train")
        self.held = {kind: [row for row in rows if row.split == "train"] for kind, rows in seen.rows.items()}
        names = {seen.drawings.rows[number].text or "" for number in self.numbers}
        names |= {row.text or "" for rows in self.held.values() for row in rows}
        self.words = [*sorted(names), *MOTIONS]
        self.place = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.numbers) + sum(map(len, self.held.values()))

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Places in `shown`, pictures first; which one comes from the step's generator."""
        places = [i % len(self.shown) for i in range(batch_size)]
        return sorted(places, key=lambda place: self.shown[place] in ("motion", "animation"))

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> pixel_values (pictures, 3, side, side), pixel_values_videos (clips, 3, frames, side, side), labels
        (batch, 2): numbers of the words that both halves of the positions should mean, pictures before clips."""
        found = [self._shown(self.shown[row], rng) for row in rows]
        found.sort(key=lambda one: is_clip(one[0]))
        batch = batch_of(self.processor, [example for example, _ in found], rng=rng)
        pixels = {name: batch[name] for name in ("pixel_values", "pixel_values_videos") if name in batch}
        return pixels | {"labels": torch.tensor([[self.place[word] for word in words] for _, words in found])}

    def _shown(self, kind: str, rng: np.random.Generator) -> tuple[Example, tuple[str, str]]:
        number = self.numbers[int(rng.integers(len(self.numbers)))]
        name = self.seen.drawings.rows[number].text or ""
        if kind == "motion":
            example = self.seen.drawings.moving(number, rng)
            return example, (name, example.answer)
        if rows := self.held.get(kind):
            row = rows[int(rng.integers(len(rows)))]
            return Example("name", self.seen.frames[row.id], "", row.text or ""), (row.text or "", row.text or "")
        return Example("name", np.asarray(self.seen.drawings.pictures[number])[None], "", name), (name, name)


def of_queries(model: MPlugOwlForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the queries read, without the end vector: (batch, queries, dim)."""
    return model.encode(pixels)[:, :-1]


def mean_of_tower(model: MPlugOwlForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The mean of the tower's positions through the abstractor's projection, twice: (batch, 2, dim)."""
    features = model.vision(pixels, attention_function("sdpa"))
    return model.abstractor.proj(features.mean(1))[:, None].expand(-1, 2, -1)


def towards_words(
    words: list[list[int]],
    read: Callable[[MPlugOwlForConditionalGeneration, Tensor], Tensor],
    model: nn.Module,
    batch: dict[str, Tensor],
    step: int,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of all words is it: cosine between the mean of half the positions and mean embeddings, and their distance.

    words: ids of each; read: pixels to positions; the first half of the positions stands for what is seen, the second
    for the same, or in a clip of a moving thing for the way it moves.
    """
    assert isinstance(model, MPlugOwlForConditionalGeneration)
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    with torch.no_grad():
        goals, middle = torch.stack([table[ids].mean(0) for ids in words]), table.mean(0)
    given = [batch[name] for name in ("pixel_values", "pixel_values_videos") if name in batch]
    positions = torch.cat([read(model, pixels) for pixels in given]).float()
    halves = positions.unflatten(1, (2, -1))  # (batch, 2, queries / 2, dim)
    logits = SHARPNESS * F.normalize(halves.mean(2) - middle, dim=-1) @ F.normalize(goals - middle, dim=-1).T
    goal = goals[batch["labels"]]
    distance = (halves - goal[:, :, None]).square().mean() / goal.square().mean()
    loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()) + 0.1 * distance
    return loss, {"right": (logits.argmax(-1) == batch["labels"]).float().mean(), "distance": distance.detach()}
