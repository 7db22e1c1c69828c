"""The held-out examples of the mPLUG-2 study, and every arm and baseline on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from plait.data.build import animated
from plait.data.drawn_tasks import KINDS, MOTIONS, Example
from plait.media.video import load_frames
from plait.models.auto import load_processor
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.weights import from_directory
from plait.recipes import mplug2_measures as measures
from plait.recipes import mplug2_small as small
from plait.recipes.mplug2_batches import collate_classes
from plait.recipes.mplug2_features import features
from plait.recipes.mplug2_measures import Row

OURS, FREE, SHUFFLED, ONE_FRAME = "mPLUG-2", "free generation", "shuffled labels", "one frame"
MAJORITY, LANGUAGE, FEATURES = "majority", "language only", "ImageNet features"
COUNT = 400
NUM_SHOWN = 2


@cache
def held_out(task: str) -> tuple[Example, ...]:
    """Examples of a task on drawings of the held-out style, no two alike: for some tasks there is one per drawing.

    Where all questions have the same choices, every answer is right equally often.
    """
    drawn = small.drawings().examples(task, "test", COUNT, seed=7)
    found = tuple({(example.question, example.frames.tobytes()): example for example in drawn}.values())
    if len({example.choices for example in found}) > 1 or found[0].choices is None:
        return found
    of_answer: dict[str, list[Example]] = {answer: [] for answer in found[0].choices}
    for example in found:
        of_answer[example.answer].append(example)
    return tuple(one for same in zip(*of_answer.values(), strict=False) for one in same)


def opened(home: Path, task: str | None) -> tuple[nn.Module, MPlug2Processor]:
    """Model and processor of a run."""
    path = home / "model"
    model = small.load(path, "answer") if task == "answer" else from_directory(path)
    return model.eval(), load_processor(path)


def choices(example: Example) -> tuple[str, ...]:
    """What the answer may be: the choices of the question, or all names; nothing for a caption, which is written."""
    if example.task == "caption":
        return ()
    return example.choices or names()


@cache
def names() -> tuple[str, ...]:
    """Names of all things of the study."""
    return tuple(sorted({row.text or "" for row in small.drawings().rows}))


def answers(home: Path) -> list[Row]:
    """Captions and questions: the trained model, the controls and what language alone gives.

    Where an answer is one of a list the model chooses, and what it writes freely is a row of its own.
    """
    model, processor = opened(home / "answering", "answer")
    shuffled, _ = opened(home / "answering-shuffled", "answer")
    one_frame, _ = opened(home / "answering-one-frame", "answer")
    rows = []
    for task in ("caption", *small.STILL_TASKS, *small.CLIP_TASKS):
        examples = held_out(task)
        allowed = [choices(example) for example in examples]
        chance = 1 / len(allowed[0]) if allowed[0] else None
        training = small.drawings().examples(task, "train", measures.PRIOR_EXAMPLES, seed=1)

        def hits(
            network: nn.Module,
            free: bool = False,
            examples: tuple[Example, ...] = examples,
            allowed: Sequence[tuple[str, ...]] = allowed,
            **options: bool,
        ) -> tuple[float, ...]:
            if free or not allowed[0]:
                texts = measures.written(network, processor, examples, **options)
                return tuple(measures.same(t, e, processor) for t, e in zip(texts, examples, strict=True))
            best = measures.chosen(network, processor, examples, allowed, **options)
            return tuple(float(text == e.answer) for text, e in zip(best, examples, strict=True))

        found = {OURS: hits(model)}
        if allowed[0]:
            found[FREE] = hits(model, free=True)
        found[MAJORITY] = measures.guessed(training, examples, allowed, by_question=False)
        found[LANGUAGE] = measures.guessed(training, examples, allowed, by_question=True)
        found["picture removed"] = hits(model, blank=True)
        if task in small.CLIP_TASKS:
            found[ONE_FRAME] = hits(one_frame, single_frame=True)
        if task in ("name", "kind"):
            found[FEATURES] = imagenet(examples, allowed[0])
        found[SHUFFLED] = hits(shuffled)
        rows += [Row(task, arm, values, chance) for arm, values in found.items()]
    return rows


def imagenet(examples: Sequence[Example], labels: Sequence[str]) -> tuple[float, ...]:
    """Hits of a line on frozen ImageNet features of the training drawings; their answers are names or kinds."""
    drawings = small.drawings()
    numbers = drawings.numbers("train")
    rows = [drawings.rows[number] for number in numbers]
    known = [row.text if row.text in labels else KINDS[row.meta["group"]] for row in rows]
    seen = features([np.asarray(drawings.pictures[number]) for number in numbers])
    asked = features([example.frames[0] for example in examples])
    wanted = [labels.index(example.answer) for example in examples]
    return measures.line(seen, [labels.index(str(label)) for label in known], asked, wanted)


def reading(home: Path) -> list[Row]:
    """Feelings of movie snippets: the text layers against tf-idf."""
    test, training = small.snippets("test"), small.snippets("train")
    labels = [small.FEELINGS.index(s.label or "") for s in test]
    rows = []
    for arm, name in ((OURS, "text"), (SHUFFLED, "text-shuffled")):
        model, processor = opened(home / name, None)
        starts = range(0, len(test), measures.BATCH)
        inputs = [
            processor.tokenize([s.text or "" for s in test[i : i + measures.BATCH]], truncation=True) for i in starts
        ]
        numbers = [labels[i : i + measures.BATCH] for i in starts]
        rows.append(Row("text: feeling", arm, measures.classified(model, inputs, numbers), 0.5))
    known, asked = ([(s.text or "", small.FEELINGS.index(s.label or "")) for s in part] for part in (training, test))
    rows.insert(1, Row("text: feeling", "tf-idf", measures.tf_idf(known, asked), 0.5))
    most = measures.majority([s.label or "" for s in test], [s.label or "" for s in training])
    rows.insert(1, Row("text: feeling", MAJORITY, most, 0.5))
    return rows


def seeing(home: Path, name: str, task: str) -> list[Row]:
    """Classification with a head: pictures by kind, clips by motion."""
    labels = tuple(KINDS.values()) if task == "kind" else tuple(MOTIONS)
    examples = held_out(task)
    arms = {OURS: name, ONE_FRAME: f"{name}-one-frame", SHUFFLED: f"{name}-shuffled"}
    title, chance, rows = f"{name}: {task}", 1 / len(labels), []
    for arm, folder in arms.items():
        if not (home / folder).exists():
            continue
        model, processor = opened(home / folder, None)
        inputs, numbers = [], []
        for start in range(0, len(examples), measures.BATCH):
            some = list(examples[start : start + measures.BATCH])
            batch = collate_classes(processor, labels, 0.0, arm == ONE_FRAME, False, some, np.random.default_rng(start))
            numbers.append(batch.pop("labels").tolist())
            inputs.append(batch)
        rows.append(Row(title, arm, measures.classified(model, inputs, numbers), chance))
    training = [e.answer for e in small.drawings().examples(task, "train", measures.PRIOR_EXAMPLES, seed=1)]
    rows.insert(1, Row(title, MAJORITY, measures.majority([e.answer for e in examples], training), chance))
    if task == "kind":
        rows.insert(2, Row(title, FEATURES, imagenet(examples, labels), chance))
    return rows


def zero_shot(model_dir: Path, with_animated: bool = False) -> list[Row]:
    """Clips and pictures against names, by the network that only ever saw pictures with names; beside guessing, of
    kinds the most frequent.

    with_animated: also animated emoji, most of them of things that the network never saw or read of.
    """
    model = from_directory(model_dir, model_class=MPlug2ForPreTraining).eval()
    processor = load_processor(model_dir)
    stills, clips = gallery()
    rows = []
    for title, examples in (
        ("pictures", stills),
        ("clips", clips),
        *([("animated", animations())] if with_animated else ()),
    ):
        names = [name for name, _ in examples]
        found = measures.zero_shot(model, processor, [e for _, e in examples], names)
        most = max(Counter(example.answer for _, example in examples).values())
        chances = {"name_r1": 1 / len(names), "clip_r1": 1 / len(names), "kind": most / len(names)}
        about = {"name_r1": f"{title} -> names", "clip_r1": f"names -> {title}", "kind": f"{title}: kind"}
        rows += [Row(about[key], "zero-shot", hits, chances[key]) for key, hits in found.items()]
    return rows


@cache
def animations() -> list[tuple[str, Example]]:
    """Animated emoji of the study's kinds, with their names. Fetches a package of 165 MB."""
    with TemporaryDirectory() as directory:
        found = []
        for row in animated.samples(Path(directory), small.SIDE, small.FRAMES):
            if row.meta["group"] in KINDS:
                frames = np.stack([np.asarray(f) for f in load_frames(Path(directory) / str(row.video), small.FRAMES)])
                found.append((row.text or "", Example("kind", frames, "", KINDS[row.meta["group"]])))
    return found


@cache
def gallery() -> tuple[list[tuple[str, Example]], list[tuple[str, Example]]]:
    """One held-out drawing of every thing, and a clip in which it moves, each with its name; answers are kinds."""
    drawings = small.drawings()
    stills, clips = [], []
    for number in drawings.numbers("test"):
        row = drawings.rows[number]
        kind = KINDS[row.meta["group"]]
        still = np.asarray(drawings.pictures[number])[None]
        stills.append((row.text or "", Example("kind", still, "", kind)))
        moving = drawings.moving(number, np.random.default_rng(number))
        clips.append((row.text or "", Example("kind", moving.frames, "", kind)))
    return stills, clips


def gap(model_dir: Path) -> dict[str, float]:
    """Gap between held-out drawings and their names."""
    model = from_directory(model_dir, model_class=MPlug2ForPreTraining).eval()
    processor = load_processor(model_dir)
    stills, _ = gallery()
    return measures.gap(model, processor, [example for _, example in stills], [name for name, _ in stills])


def shown(home: Path) -> list[dict[str, Any]]:
    """Some held-out examples of every task with what was written and where the decoder looked, for the report."""
    model, processor = opened(home / "answering", "answer")
    found = []
    for task in ("caption", *small.STILL_TASKS, *small.CLIP_TASKS):
        examples = held_out(task)[:NUM_SHOWN]
        for example, text in zip(examples, measures.written(model, processor, examples), strict=True):
            look = measures.looked_at(model, processor, example, text or example.answer)
            found.append(
                {
                    "task": task, "question": example.question, "answer": example.answer, "written": text,
                    "frames": example.frames.tolist(), "look": look.round(5).tolist(),
                }
            )  # fmt: skip
    return found
