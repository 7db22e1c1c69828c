"""`plait study owl`: a small language model learns to see in two stages, and is asked with and without its eyes.

language model, fresh tower -> warm-up (pictures past the queries, then pictures and clips through them, towards
embeddings of their words) -> stage 1 (words of pictures and clips, language model frozen) -> stage 2 (questions about
both and about sentences, LoRA, the rest frozen) -> held-out pictures and clips, controls, text before and after

Every test example shows what training never does: another style of drawing, other photographs, other animations.
mPLUG-Owl, section 3.2 (arXiv 2304.14178).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plait.cli import INTERRUPTED
from plait.data.manifest import read_manifest, write_manifest
from plait.data.packages import smollm2
from plait.data.pairs import augment
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.mplug_owl.conversation import IMAGE, VIDEO
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.models.mplug_owl.tasks import STAGE1, lora_targets
from plait.models.mplug_owl.weights import around
from plait.nn.attention import attention_function
from plait.recipes.mplug_owl import TOWERS, Built, answer_loss, loaded
from plait.report.about import about
from plait.training.stages import Recipe, save_pair
from plait.types import Sample
from plait_studies import training
from plait_studies.build import emoji, stamps
from plait_studies.build.sounds import split_by_hash
from plait_studies.drawings import KINDS, MOTIONS, Drawings, Example
from plait_studies.measures import Subject, as_text, combined, gained, guessing, in_points
from plait_studies.summary import write_json
from plait_studies.training import Questions, as_pixels, carry_out, review, stage, towards_words

SIDE, FRAMES = 48, 4  # pixels and frames of everything that is shown

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

SYSTEM = "A chat."
"""Shorter than the published one, which would be most of every sequence here."""

VISUAL = tuple(f"{prefix}*" for prefix in STAGE1["all"])
SHOWN = ("drawing", "photo", "drawing", "motion", "drawing", "photo", "drawing", "animation")
"""What the rows of a warm-up step show, over and over."""

PICTURES = ("drawing", "drawing", "drawing", "photo")
"""The same while the tower learns alone."""

STRENGTH = {"is_there": 0.15, "count": 0.15, "motion": 0.15}
"""Of augmentation, 0.5 for the other tasks: small things must stay in sight."""


def study(
    out: Path,
    seeds: int = 1,
    llm: str = "",
    more: bool = True,
    tower_steps: int = 1200,
    warm_steps: int = 300,
    stage1_steps: int = 60,
    stage2_steps: int = 120,
    batch_size: int = 16,
    count: int = 60,
    device: str | None = None,
    dtype: str = "bfloat16",
) -> int:
    """mPLUG-Owl: two stages on a language model of 135 M; held-out pictures and clips beside controls.

    llm: a directory of a causal language model, the packaged SmolLM2 without it; more: photographs (Tux Paint) and
    animated emoji beside the shipped drawings, packages of 326 MB together; count: held-out questions per task. The
    tower is fresh, warmed up on names in place of CLIP, alone (tower_steps) and with the abstractor (warm_steps); tests
    show what training never does.
    """
    source = Path(llm) if llm else smollm2()
    seen = sights(prepare(out / "data") if more else None)
    examples = {task: seen.examples(task, "test", count) for task in seen.tasks}
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        plan = {
            "warm-up": partial(warm_up, source, seen, (tower_steps, warm_steps), seed=seed),
            "stage1": partial(seeing, home / "warm-up" / "model", seen, stage1_steps, batch_size=batch_size),
            "stage2": partial(tuning, home / "stage1" / "model", seen, stage2_steps, batch_size=batch_size),
        }
        if not carry_out(plan, home, seed, device, dtype):
            return INTERRUPTED
        for place in (home / name for name in ("stage1", "stage2") if not (home / name / "results.json").exists()):
            print(f"[seed {seed}] asking {place.name}", flush=True)
            found = Subject(*loaded(str(place / "model")), batch_of).examined(examples, device, dtype)
            write_json(place / "results.json", {"stage": place.name, **found})
    summary: dict[str, Any] = summarise(out, examples) | {"about": about()}
    write_json(out / "summary.json", summary)
    print(as_text(summary, "stage"))
    for row in summary["rows"]:
        print(f"{row['stage']}: shown minus shuffled {in_points(row['minus_shuffled'])}")
    return 0


def summarise(out: Path, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """Means over seeds of both stages, with intervals over questions; perplexity after stage 1 is that of the source.

    Args:
        out: of the study, with results.json of every seed and stage.
        examples: task -> the questions that were asked.

    Returns:
        {"rows": a row of `combined` for each stage, **`guessing`}; `minus_shuffled` of a row is what the right picture
        adds to another one.
    """
    rows = []
    for name in ("stage1", "stage2"):
        files = sorted(out.glob(f"seed-*/{name}/results.json"))
        results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        rows.append({"stage": name, **combined(results), "minus_shuffled": gained(results, results, "shuffled")})
    return {"rows": rows, **guessing(examples)}


class Sights:
    """Examples of every task, as `plait_studies.training.Seen`.

    Args:
        drawings: with `num_frames` frames in their clips.
        photographs, animations: rows with `image` or `video`, `text` (the name), `label` (the kind) and `split`; a task
            without rows is left out.
    """

    def __init__(self, drawings: Drawings, photographs: Sequence[Sample], animations: Sequence[Sample]) -> None:
        self.drawings, self.numbers = drawings, drawings.numbers
        self.rows = {"photo": list(photographs), "animation": list(animations)}
        size, count = drawings.size, drawings.num_frames
        self.frames = {row.id: _square(row.image, size)[None] for row in photographs}
        self.frames |= {
            row.id: np.stack([_square(frame, size) for frame in load_frames(row.video, count)]) for row in animations
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of `TASKS` for which there are rows."""
        return tuple(task for task in TASKS if self.rows.get(task) != [])

    def of(self, task: str, split: str) -> list[Sample]:
        """Photographs or animations of a split."""
        return [row for row in self.rows[task] if row.split == split]

    def example(self, task: str, split: str, rng: np.random.Generator) -> Example:
        """A fresh example of a task, drawn with `rng`.

        `naming` asks for the name of any single thing: a drawing in two cases of four, else a photograph or animation.
        """
        if task == "naming":
            chosen = self.of(("photo", "animation")[rng.integers(2)], split)
            if rng.integers(2) or not chosen:
                return self.drawings.example("name", split, rng)
            row = chosen[int(rng.integers(len(chosen)))]
            return Example("name", self.frames[row.id], "what is this?", row.text or "")
        if task not in self.rows:
            return self.drawings.example(task, split, rng)
        chosen = self.of(task, split)
        return self._kind(task, chosen[int(rng.integers(len(chosen)))])

    def examples(self, task: str, split: str, count: int) -> list[Example]:
        """At most `count` examples, always the same: of rows every one once, as far as they go, in a drawn order."""
        if task not in self.rows:
            return self.drawings.examples(task, split, count)
        chosen = self.of(task, split)
        order = np.random.default_rng(0).permutation(len(chosen))[:count]
        return [self._kind(task, chosen[int(place)]) for place in order]

    def _kind(self, task: str, row: Sample) -> Example:
        return Example(task, self.frames[row.id], "what kind of thing is this?", row.label or "")


def _square(picture: object, size: int) -> np.ndarray:
    """A picture as (size, size, 3) uint8; the aspect is lost, as in the model's own processor."""
    return np.asarray(load_image(picture).convert("RGB").resize((size, size)))


def sights(data: Path | None) -> Sights:
    """The shipped drawings, and the rows that `prepare` wrote into `data`; None for the drawings alone."""
    rows = [] if data is None else read_manifest(data)
    photographs, animations = ([r for r in rows if getattr(r, kind) is not None] for kind in ("image", "video"))
    return Sights(training.drawings(SIDE, FRAMES), photographs, animations)


def prepare(data: Path) -> Path:
    """Photographs and animations as files and a manifest in `data`, made once; fetches packages of 161 and 165 MB."""
    if not (data / "manifest.jsonl").is_file():
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
    split = split_by_hash(name.encode(), TEST_SHARE)  # by name, so that no thing is on both sides
    return replace(row, text=name, label=kinds.get(row.meta["group"]), split=split)


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

    Fresh queries hand little of a gradient down to a fresh tower, so the mean of its positions goes through the
    projection first, past the queries.

    Args:
        llm: directory of the language model.
        seen: what is shown.
        steps: of both.
        batch_size, lr: of both; the second has half the rate.
        seed: of what is fresh.
    """
    model, processor = fresh(llm, seed)
    pictures, everything = Named(seen, processor, PICTURES), Named(seen, processor, SHOWN)
    ids = [processor.tokenizer(" " + word)["input_ids"] for word in everything.words]

    def of_tower(model: MPlugOwlForConditionalGeneration, pixels: Tensor) -> Tensor:
        features = model.vision(pixels, attention_function("sdpa"))
        return model.abstractor.proj(features.mean(1))[:, None].expand(-1, 2, -1)  # (batch, 2, dim)

    def of_queries(model: MPlugOwlForConditionalGeneration, pixels: Tensor) -> Tensor:
        return model.encode(pixels)[:, :-1]  # without the end vector: (batch, queries, dim)

    alone = stage(
        "tower", partial(towards_words, ids, of_tower), lambda: pictures, steps[0], batch_size, lr,
        trainable=("vision.*", "abstractor.proj.*"), weight_decay=0.05,
    )  # fmt: skip
    whole = stage(
        "warm-up", partial(towards_words, ids, of_queries), lambda: everything, steps[1], batch_size, lr / 2,
        trainable=VISUAL, weight_decay=0.05,
    )  # fmt: skip
    return Recipe(lambda: model, [alone, whole], partial(save_pair, processor))


def seeing(warm: Path, seen: Sights, steps: int, *, batch_size: int = 16, lr: float = 3e-4) -> Recipe:
    """Stage 1: names and motions through the frozen language model; tower and abstractor train."""
    model, processor = loaded(str(warm))
    source = Questions(seen, ("naming", "naming", "naming", "motion"), partial(batch_of, processor))
    first = stage("stage1", answer_loss, lambda: source, steps, batch_size, lr, trainable=VISUAL)
    return Recipe(lambda: model, [first], partial(save_pair, processor))


def tuning(first: Path, seen: Sights, steps: int, *, batch_size: int = 16, lr: float = 1e-3, rank: int = 8) -> Recipe:
    """Stage 2: questions about everything and, every fourth step, about sentences; a LoRA on queries and values trains,
    nothing else."""
    from plait.training.lora import TRAINABLE, add_lora, folded

    model, processor = loaded(str(first))
    add_lora(model, rank, 4.0 * rank, targets=lora_targets(model), dropout=0.05)
    sentences = training.snippets("train")
    source = Questions(seen, seen.tasks, partial(batch_of, processor), sentences, lambda seed, step: step % 4 == 3)
    second = stage("stage2", answer_loss, lambda: source, steps, batch_size, lr, trainable=tuple(TRAINABLE))
    return Recipe(lambda: model, [second], partial(save_pair, processor), after=lambda trained, _: folded(trained))


def batch_of(
    processor: MPlugOwlProcessor,
    examples: Sequence[Example],
    sentences: Sequence[Sample] = (),
    rng: np.random.Generator | None = None,
    *,
    shown: bool = True,
) -> dict[str, Tensor]:
    """A supervised batch of questions about pictures and clips, then about sentences.

    Args:
        processor: of the model.
        examples: questions about something to see.
        sentences: questions about what they feel.
        rng: of augmentation, none without it.
        shown: False leaves pictures, clips and their placeholders out.

    Returns:
        input_ids, attention_mask, labels (batch, seq); pixel_values (pictures, 3, side, side) and pixel_values_videos
        (clips, 3, frames, side, side) where there are some.
    """
    marks = [(VIDEO if len(e.frames) > 1 else IMAGE) * shown for e in examples]
    turns = [[(mark + e.question, e.answer)] for mark, e in zip(marks, examples, strict=True)]
    turns += [[review(sample)] for sample in sentences]
    frames = [e.frames if rng is None else augmented(e, rng) for e in examples] if shown else []
    pages = [[Image.fromarray(page) for page in one] for one in frames]
    stills, clips = [one[0] for one in pages if len(one) == 1], [one for one in pages if len(one) > 1]
    return dict(processor.supervised(turns, stills or None, clips or None, system=SYSTEM))


def augmented(example: Example, rng: np.random.Generator) -> np.ndarray:
    """Frames (frames, side, side, 3) of an example, all changed alike; what moves left never moves right after."""
    pixels = as_pixels(example.frames)
    strength, mirrors = STRENGTH.get(example.task, 0.5), example.task not in (*SCENES, "motion")
    changed = augment(pixels, strength, rng, frames=len(pixels), mirrors=mirrors)
    return changed.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


class Named:
    """Drawings, photographs and clips with the words for them: what the fresh tower begins with.

    `words` holds all names, then the directions in which things move.

    Args:
        seen: what there is to see.
        processor: of the model.
        shown: what the rows of a step show, over and over.
    """

    def __init__(self, seen: Sights, processor: MPlugOwlProcessor, shown: Sequence[str]) -> None:
        self.seen, self.processor, self.shown = seen, processor, shown
        self.numbers = seen.numbers("train")
        self.held = {kind: seen.of(kind, "train") for kind in seen.rows}
        names = {seen.drawings.rows[number].text or "" for number in self.numbers}
        names |= {row.text or "" for rows in self.held.values() for row in rows}
        self.words = [*sorted(names), *MOTIONS]

    def __len__(self) -> int:
        return len(self.numbers) + sum(map(len, self.held.values()))

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Places in `shown`, pictures first; which one comes from the step's generator."""
        places = [i % len(self.shown) for i in range(batch_size)]
        return sorted(places, key=lambda place: self.shown[place] in CLIPS)

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> pixel_values (pictures, 3, side, side), pixel_values_videos (clips, 3, frames, side, side), labels
        (batch, 2): numbers of the words that both halves of the positions should mean, pictures before clips."""
        found = [self._shown(self.shown[row], rng) for row in rows]
        found.sort(key=lambda one: len(one[0].frames) > 1)
        batch = batch_of(self.processor, [example for example, _ in found], rng=rng)
        pixels = {name: batch[name] for name in ("pixel_values", "pixel_values_videos") if name in batch}
        return pixels | {"labels": torch.tensor([[self.words.index(word) for word in words] for _, words in found])}

    def _shown(self, kind: str, rng: np.random.Generator) -> tuple[Example, tuple[str, str]]:
        """Something of a kind, and its two words: its name, and for a moving drawing how it moves."""
        number = self.numbers[int(rng.integers(len(self.numbers)))]
        name = self.seen.drawings.rows[number].text or ""
        if kind == "motion":
            example = self.seen.drawings.moving(number, rng)
            return example, (name, example.answer)
        if rows := self.held.get(kind):
            row = rows[int(rng.integers(len(rows)))]
            return Example("name", self.seen.frames[row.id], "", row.text or ""), (row.text or "", row.text or "")
        return Example("name", np.asarray(self.seen.drawings.pictures[number])[None], "", name), (name, name)

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was shown, for messages."""
        return [self.shown[row] for row in rows]
