"""What the small mPLUG-Owl is shown: drawings and scenes of them, photographs, clips that need time, animated emoji.

shipped drawings | Tux Paint stamps | animated emoji -> Sights -> example(task, split, rng) -> frames, question, answer

Every test example shows what training never does: another style of drawing, other photographs, other animations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from plait.data.build import animated, tuxpaint
from plait.data.build.splits import split_by_hash
from plait.data.drawn_tasks import KINDS, Drawings, Example
from plait.data.manifest import read_manifest, write_manifest
from plait.data.mini import cached_mini
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.types import Sample

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
    photographs = (row for row in tuxpaint.samples(data, SIDE) if row.image is not None)
    rows = [relabelled(row, STAMPS) for row in photographs]
    rows += [relabelled(row, ANIMATED) for row in animated.samples(data, SIDE, 2 * FRAMES)]
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
