"""Tasks made of drawings and their names: captions, questions about pictures and scenes, clips that need time.

    manifest of drawings -> Drawings -> example(task, split, rng) -> frames, question, answer, choices
                                     -> together(group, split, rng) -> several such about one picture, for training

Every answer follows from annotations or from how the scene was composed. Test examples use drawings of a style that
training never shows. In `order` and `motion` the reversed clip has the opposite answer and is as likely, so that a
frame from an unknown time tells nothing about which of the two it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from plait.media.image import load_image
from plait.types import Sample

KINDS = {
    "Animals & Nature": "animal or plant",
    "Food & Drink": "food",
    "Travel & Places": "vehicle or place",
    "Activities": "game or event",
    "Objects": "object",
}
"""Unicode group -> the kind that questions name."""

MOTIONS = {
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "closer": (0, 0, 1),
    "away": (0, 0, -1),
}
"""Answer -> direction in x (to the right), y (down) and size."""

MAX_THINGS = 4
SIDES = (0.26, 0.5)
REACH = (0.55, 1.0)

GROUPS = {
    "drawing": ("caption", "name", "kind", "is_kind", "is_there"),
    "scene": ("is_there", "count", "beside"),
    "clip": ("order", "motion"),
}
"""Group -> tasks that `Drawings.together` asks of one picture."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One question. frames: (frames, side, side, 3) uint8, one frame for a picture; choices: what the answer may be,
    None when anything may."""

    task: str
    frames: np.ndarray
    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    references: tuple[str, ...] = ()


class Drawings:
    """Drawings of named things, and the tasks made of them.

    samples: rows with `image`, `text` (the name), `label` (the thing), `split`, `captions` (keywords) and
        `meta["group"]` of Unicode; rows of other groups are left out. Rows of one label are drawings of one thing.
    size: side of a picture in pixels; num_frames: frames of a clip.
    """

    def __init__(self, samples: Sequence[Sample], size: int = 64, num_frames: int = 6) -> None:
        rows = [s for s in samples if s.image is not None and s.text and s.meta.get("group") in KINDS]
        if not rows:
            raise ValueError("expected rows with an image, a text and a known group, got none; check the manifest")
        self.size, self.num_frames = size, num_frames
        self.rows = rows
        self.names = tuple(sorted({row.text or "" for row in rows}))
        self.pictures = [load_image(s.image).convert("RGB").resize((size, size)) for s in rows]
        self._stills = [np.asarray(picture)[None] for picture in self.pictures]
        self._of: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, row in enumerate(rows):
            self._of[row.split or "train"][row.label or row.text or ""].append(number)
        self._makers: dict[str, Callable[[str, np.random.Generator], Example]] = {
            "caption": self._caption,
            "name": self._name,
            "kind": self._kind,
            "is_kind": self._is_kind,
            "is_there": self._is_there,
            "count": self._count,
            "beside": self._beside,
            "order": self._order,
            "motion": self._motion,
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self._makers)

    def numbers(self, split: str) -> list[int]:
        """Rows of a split; `pictures[number]` is its drawing, `rows[number]` its annotation."""
        return [number for of_thing in self._of[split].values() for number in of_thing]

    def example(self, task: str, split: str, rng: np.random.Generator) -> Example:
        """A fresh example of a task, drawn with `rng`."""
        if task not in self._makers:
            raise ValueError(f"expected a task among {', '.join(self.tasks)}, got {task!r}")
        return self._makers[task](split, rng)

    def examples(self, task: str, split: str, count: int, seed: int = 0) -> list[Example]:
        """`count` examples, the same for the same seed, whatever `count` is."""
        return [self.example(task, split, np.random.default_rng((seed, number))) for number in range(count)]

    def together(self, group: str, split: str, rng: np.random.Generator) -> list[Example]:
        """Questions of a group about one picture or clip, what can be denied once with each answer.

        Their frames are the same array. Tests ask one question of a picture; training learns faster from several, of
        which some have the same words for other pictures and some the same picture for other words.
        """
        if group not in GROUPS:
            raise ValueError(f"expected a group among {', '.join(GROUPS)}, got {group!r}")
        return getattr(self, f"_together_{group}")(split, rng)

    def _together_drawing(self, split: str, rng: np.random.Generator) -> list[Example]:
        number = self._any(split, rng)
        kind, name = self._kind_of(number), self.rows[number].text or ""
        other_kind = _choice([other for other in KINDS.values() if other != kind], rng)
        asked = [self._describe(number) if rng.integers(2) else self._ask_name(number), self._ask_kind(number)]
        asked += [self._ask_is_kind(number, some, some == kind) for some in (kind, other_kind)]
        page = self._stills[number]
        return [*asked, *(self._ask_is_there(page, some, some == name) for some in (name, self._other([number], rng)))]

    def _together_scene(self, split: str, rng: np.random.Generator) -> list[Example]:
        if rng.integers(2):
            page, shown = self._side_by_side(split, rng)
            asked = [self._ask_beside(page, shown, left) for left in (False, True)]
        else:
            shown = self._several(split, int(rng.integers(1, MAX_THINGS + 1)), rng)
            page = self._still(self._scene([self.pictures[number] for number in shown], rng))
            asked = [self._ask_count(page, len(shown))]
        name = self.rows[_choice(shown, rng)].text or ""
        return [*asked, *(self._ask_is_there(page, some, some == name) for some in (name, self._other(shown, rng)))]

    def _together_clip(self, split: str, rng: np.random.Generator) -> list[Example]:
        if rng.integers(2):
            return [self._motion(split, rng)]
        frames, names = self._two_in_turn(split, rng)
        return [self._ask_order(frames, names, swapped) for swapped in (False, True)]

    def _other(self, shown: Sequence[int], rng: np.random.Generator) -> str:
        """The name of a thing that is not shown."""
        names = {self.rows[number].text for number in shown}
        return _choice([name for name in self.names if name not in names], rng)

    def _caption(self, split: str, rng: np.random.Generator) -> Example:
        return self._describe(self._any(split, rng))

    def _describe(self, number: int) -> Example:
        row = self.rows[number]
        references = (row.text or "", *(row.captions or ()))
        return Example("caption", self._stills[number], "", row.text or "", None, references)

    def _name(self, split: str, rng: np.random.Generator) -> Example:
        return self._ask_name(self._any(split, rng))

    def _ask_name(self, number: int) -> Example:
        return self._about("name", number, "what is this?", self.rows[number].text or "")

    def _kind(self, split: str, rng: np.random.Generator) -> Example:
        return self._ask_kind(self._any(split, rng))

    def _ask_kind(self, number: int) -> Example:
        return self._about("kind", number, "what kind of thing is this?", self._kind_of(number), tuple(KINDS.values()))

    def _is_kind(self, split: str, rng: np.random.Generator) -> Example:
        kinds = sorted({self._kind_of(number) for number in self.numbers(split)})
        kind, truth = _choice(kinds, rng), bool(rng.integers(2))
        number = self._any(split, rng, lambda n: (self._kind_of(n) == kind) == truth)
        return self._ask_is_kind(number, kind, truth)

    def _ask_is_kind(self, number: int, kind: str, truth: bool) -> Example:
        return self._about("is_kind", number, f"is this {_a(kind)}?", _yes(truth), ("yes", "no"))

    def _is_there(self, split: str, rng: np.random.Generator) -> Example:
        scene = self._several(split, 3, rng)
        truth = bool(rng.integers(2))
        asked, shown = (scene[0], scene[:2]) if truth else (scene[2], scene[:2])
        frames = self._still(self._scene([self.pictures[n] for n in shown], rng))
        return self._ask_is_there(frames, self.rows[asked].text or "", truth)

    def _ask_is_there(self, frames: np.ndarray, name: str, truth: bool) -> Example:
        return Example("is_there", frames, f"is there {_a(name)}?", _yes(truth), ("yes", "no"))

    def _count(self, split: str, rng: np.random.Generator) -> Example:
        count = int(rng.integers(1, MAX_THINGS + 1))
        scene = self._scene([self.pictures[n] for n in self._several(split, count, rng)], rng)
        return self._ask_count(self._still(scene), count)

    def _ask_count(self, frames: np.ndarray, count: int) -> Example:
        choices = ("one", "two", "three", "four")
        return Example("count", frames, "how many things are there?", choices[count - 1], choices)

    def _beside(self, split: str, rng: np.random.Generator) -> Example:
        frames, shown = self._side_by_side(split, rng)
        return self._ask_beside(frames, shown, bool(rng.integers(2)))

    def _side_by_side(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
        """A picture of two things, the first on the left."""
        shown = self._several(split, 2, rng)
        page = Image.new("RGB", (self.size, self.size), "white")
        for number, low, high in zip(shown, (0.0, 0.5), (0.5, 1.0), strict=True):
            side = round(self.size * rng.uniform(0.4, 0.5))
            x = rng.uniform(low * self.size, high * self.size - side)
            self._paste(page, self.pictures[number], x, rng.uniform(0, self.size - side), side)
        return self._still(page), shown

    def _ask_beside(self, frames: np.ndarray, shown: Sequence[int], left: bool) -> Example:
        answer, asked = (self.rows[number].text or "" for number in (shown if left else shown[::-1]))
        return Example("beside", frames, f"what is {'left' if left else 'right'} of the {asked}?", answer)

    def _order(self, split: str, rng: np.random.Generator) -> Example:
        frames, names = self._two_in_turn(split, rng)
        return self._ask_order(frames, names, bool(rng.integers(2)))

    def _two_in_turn(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, str]]:
        """A clip of one thing and then another, and their names."""
        first, second = self._several(split, 2, rng)
        half = (self.num_frames + 1) // 2
        shown = [first] * half + [second] * (self.num_frames - half)
        frames = np.stack([np.asarray(self.pictures[number]) for number in shown])
        return frames, (self.rows[first].text or "", self.rows[second].text or "")

    def _ask_order(self, frames: np.ndarray, names: tuple[str, str], swapped: bool) -> Example:
        asked = names[::-1] if swapped else names
        return Example("order", frames, f"what comes first, {asked[0]} or {asked[1]}?", names[0], asked)

    def _motion(self, split: str, rng: np.random.Generator) -> Example:
        return self.moving(self._any(split, rng), rng)

    def moving(self, number: int, rng: np.random.Generator) -> Example:
        """A clip in which the drawing of a row moves some way."""
        answer = _choice(tuple(MOTIONS), rng)
        dx, dy, grows = MOTIONS[answer]
        way = rng.uniform(*REACH) * np.linspace(-0.5, 0.5, self.num_frames)  # symmetric: one frame tells nothing
        offset = rng.uniform(-0.5, 0.5, 2) * (1 - np.abs([dx, dy])) + rng.uniform(-0.2, 0.2, 2) * np.abs([dx, dy])
        middle = np.mean(SIDES) if grows else rng.uniform(*SIDES)
        sides = self.size * (middle + grows * way * (SIDES[1] - SIDES[0]))
        frames = []
        for t, side in zip(way, sides):
            place = 0.5 + np.clip(offset + np.array([dx, dy]) * t, -0.5, 0.5)
            x, y = place * (self.size - sides.max()) + (sides.max() - side) / 2
            page = Image.new("RGB", (self.size, self.size), "white")
            self._paste(page, self.pictures[number], float(x), float(y), round(float(side)))
            frames.append(np.asarray(page))
        return Example("motion", np.stack(frames), "which way does it move?", answer, tuple(MOTIONS))

    def _about(
        self, task: str, number: int, question: str, answer: str, choices: tuple[str, ...] | None = None
    ) -> Example:
        return Example(task, self._stills[number], question, answer, choices)

    def _kind_of(self, number: int) -> str:
        return KINDS[self.rows[number].meta["group"]]

    def _any(self, split: str, rng: np.random.Generator, accept: Callable[[int], bool] = lambda _: True) -> int:
        numbers = [number for number in self.numbers(split) if accept(number)]
        if not numbers:
            raise ValueError(f"expected drawings in split {split!r}, got none that fit; check the manifest's splits")
        return numbers[int(rng.integers(len(numbers)))]

    def _several(self, split: str, count: int, rng: np.random.Generator) -> list[int]:
        """`count` drawings of different things."""
        things = sorted(self._of[split])
        if len(things) < count:
            raise ValueError(f"expected at least {count} things in split {split!r}, got {len(things)}")
        chosen = rng.permutation(len(things))[:count]
        return [_choice(tuple(self._of[split][things[i]]), rng) for i in chosen]

    def _scene(self, pictures: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
        """Drawings at random places, one in each quarter of the page at most."""
        page = Image.new("RGB", (self.size, self.size), "white")
        half = self.size // 2
        for quarter, picture in zip(rng.permutation(MAX_THINGS), pictures):
            side = round(self.size * rng.uniform(0.34, 0.48))
            x, y = rng.uniform(0, half - side, 2) + np.array([quarter % 2, quarter // 2]) * half
            self._paste(page, picture, float(x), float(y), side)
        return page

    def _paste(self, page: Image.Image, picture: Image.Image, x: float, y: float, side: int) -> None:
        page.paste(picture.resize((side, side), Image.Resampling.BILINEAR), (round(x), round(y)))

    def _still(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture)[None]


def _choice(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
