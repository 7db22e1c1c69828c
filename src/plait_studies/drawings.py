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
NUMBERS = ("one", "two", "three", "four")
YES_NO = ("yes", "no")
SIDES = (0.26, 0.5)
"""Least and largest side of a moving drawing, as a share of the page."""
REACH = (0.55, 1.0)
"""Least and largest share of the page that a moving drawing goes, less its own side."""

GROUPS = {
    "drawing": ("caption", "name", "kind", "is_kind", "is_there"),
    "scene": ("is_there", "count", "beside"),
    "clip": ("order", "motion"),
}
"""Group -> tasks that `Drawings.together` asks of one picture."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One question.

    Args:
        task: that it belongs to.
        frames: (frames, side, side, 3) uint8, one frame for a picture.
        question, answer: in words; a caption has no question.
        choices: what the answer may be, None when anything may.
        references: other answers that are right, of captions.
    """

    task: str
    frames: np.ndarray
    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    references: tuple[str, ...] = ()


class Drawings:
    """Drawings of named things, and the tasks made of them.

    Args:
        samples: rows with `image`, `text` (the name), `label` (the thing), `split`, `captions` (keywords) and
            `meta["group"]` of Unicode; rows of other groups are left out. Rows of one label are drawings of one thing.
        size: side of a picture, in pixels.
        num_frames: of a clip.

    Raises:
        ValueError: where no row is left.

    Example:
        >>> drawings = Drawings([row for row in read_manifest(cached_mini()) if row.image is not None])
        >>> drawings.example("count", "train", np.random.default_rng(0)).choices
        ('one', 'two', 'three', 'four')
    """

    def __init__(self, samples: Sequence[Sample], size: int = 64, num_frames: int = 6) -> None:
        rows = [s for s in samples if s.image is not None and s.text and s.meta.get("group") in KINDS]
        if not rows:
            raise ValueError("expected rows with an image, a text and a known group, got none; check the manifest")
        self.size, self.num_frames = size, num_frames
        self.tasks = ("caption", "name", "kind", "is_kind", "is_there", "count", "beside", "order", "motion")
        self.rows = rows
        self.names = tuple(sorted({row.text or "" for row in rows}))
        self.pictures = [load_image(s.image).convert("RGB").resize((size, size)) for s in rows]
        self._stills = [np.asarray(picture)[None] for picture in self.pictures]
        self._of: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, row in enumerate(rows):
            self._of[row.split or "train"][row.label or row.text or ""].append(number)

    def numbers(self, split: str) -> list[int]:
        """Rows of a split; `pictures[number]` is its drawing, `rows[number]` its annotation."""
        return [number for of_thing in self._of[split].values() for number in of_thing]

    def example(self, task: str, split: str, rng: np.random.Generator) -> Example:
        """A fresh example of a task.

        Args:
            task: one of `tasks`.
            split: whose drawings it is made of.
            rng: that everything about it is drawn with.

        Raises:
            ValueError: for no task, and a split with too few drawings.
        """
        if task == "caption":
            return self._describe(self._any(split, rng))
        if task == "name":
            return self._ask_name(self._any(split, rng))
        if task == "kind":
            return self._ask_kind(self._any(split, rng))
        if task == "is_kind":
            kinds = sorted({self._kind_of(number) for number in self.numbers(split)})
            kind, truth = _choice(kinds, rng), bool(rng.integers(2))
            number = self._any(split, rng, lambda n: (self._kind_of(n) == kind) == truth)
            return self._ask_is_kind(number, kind, truth)
        if task == "is_there":
            first, second, absent = self._several(split, 3, rng)
            truth = bool(rng.integers(2))  # yes and no are as likely, so that neither is a good guess
            page = self._scene([first, second], rng)
            return self._ask_is_there(page, self.rows[first if truth else absent].text or "", truth)
        if task == "count":
            count = int(rng.integers(1, MAX_THINGS + 1))
            return self._ask_count(self._scene(self._several(split, count, rng), rng), count)
        if task == "beside":
            page, shown = self._side_by_side(split, rng)
            return self._ask_beside(page, shown, bool(rng.integers(2)))
        if task == "order":
            frames, names = self._two_in_turn(split, rng)
            return self._ask_order(frames, names, bool(rng.integers(2)))
        if task == "motion":
            return self.moving(self._any(split, rng), rng)
        raise ValueError(f"expected a task among {', '.join(self.tasks)}, got {task!r}")

    def examples(self, task: str, split: str, count: int, seed: int = 0) -> list[Example]:
        """`count` examples, the same for the same seed, whatever `count` is."""
        return [self.example(task, split, np.random.default_rng((seed, number))) for number in range(count)]

    def together(self, group: str, split: str, rng: np.random.Generator) -> list[Example]:
        """Questions of a group about one picture or clip, what can be denied once with each answer.

        Their frames are the same array. Tests ask one question of a picture; training learns faster from several, of
        which some have the same words for other pictures and some the same picture for other words.

        Args:
            group: a key of `GROUPS`.
            split: whose drawings they are made of.
            rng: that everything is drawn with.

        Raises:
            ValueError: for no group.
        """
        if group not in GROUPS:
            raise ValueError(f"expected a group among {', '.join(GROUPS)}, got {group!r}")
        if group == "clip":
            if rng.integers(2):
                return [self.example("motion", split, rng)]
            frames, names = self._two_in_turn(split, rng)
            return [self._ask_order(frames, names, swapped) for swapped in (False, True)]
        if group == "drawing":
            number = self._any(split, rng)
            kind, name, page = self._kind_of(number), self.rows[number].text or "", self._stills[number]
            shown = [number]
            other_kind = _choice([other for other in KINDS.values() if other != kind], rng)
            asked = [self._describe(number) if rng.integers(2) else self._ask_name(number), self._ask_kind(number)]
            asked += [self._ask_is_kind(number, some, some == kind) for some in (kind, other_kind)]
        elif rng.integers(2):
            page, shown = self._side_by_side(split, rng)
            asked = [self._ask_beside(page, shown, left) for left in (False, True)]
            name = self.rows[_choice(shown, rng)].text or ""
        else:
            shown = self._several(split, int(rng.integers(1, MAX_THINGS + 1)), rng)
            page = self._scene(shown, rng)
            asked = [self._ask_count(page, len(shown))]
            name = self.rows[_choice(shown, rng)].text or ""
        seen = {self.rows[number].text for number in shown}
        absent = _choice([other for other in self.names if other not in seen], rng)
        return [*asked, *(self._ask_is_there(page, some, some == name) for some in (name, absent))]

    def moving(self, number: int, rng: np.random.Generator) -> Example:
        """A clip in which the drawing of a row moves in some direction.

        Args:
            number: of the row.
            rng: of direction, place, size and how far it goes.
        """
        answer = _choice(tuple(MOTIONS), rng)
        dx, dy, grows = MOTIONS[answer]
        path = rng.uniform(*REACH) * np.linspace(-0.5, 0.5, self.num_frames)  # symmetric: one frame tells nothing
        offset = rng.uniform(-0.5, 0.5, 2) * (1 - np.abs([dx, dy])) + rng.uniform(-0.2, 0.2, 2) * np.abs([dx, dy])
        middle = np.mean(SIDES) if grows else rng.uniform(*SIDES)
        sides = self.size * (middle + grows * path * (SIDES[1] - SIDES[0]))
        # Across its direction the drawing may stand anywhere, along it what it goes lies around the middle.
        frames = []
        for t, side in zip(path, sides):
            place = 0.5 + np.clip(offset + np.array([dx, dy]) * t, -0.5, 0.5)
            x, y = place * (self.size - sides.max()) + (sides.max() - side) / 2
            frames.append(self._page([(number, float(x), float(y), round(float(side)))]))
        return Example("motion", np.concatenate(frames), "which way does it move?", answer, tuple(MOTIONS))

    def _describe(self, number: int) -> Example:
        row = self.rows[number]
        references = (row.text or "", *(row.captions or ()))
        return Example("caption", self._stills[number], "", row.text or "", None, references)

    def _ask_name(self, number: int) -> Example:
        return Example("name", self._stills[number], "what is this?", self.rows[number].text or "")

    def _ask_kind(self, number: int) -> Example:
        question, choices = "what kind of thing is this?", tuple(KINDS.values())
        return Example("kind", self._stills[number], question, self._kind_of(number), choices)

    def _ask_is_kind(self, number: int, kind: str, truth: bool) -> Example:
        return Example("is_kind", self._stills[number], f"is this {_a(kind)}?", "yes" if truth else "no", YES_NO)

    def _ask_is_there(self, page: np.ndarray, name: str, truth: bool) -> Example:
        return Example("is_there", page, f"is there {_a(name)}?", "yes" if truth else "no", YES_NO)

    def _ask_count(self, page: np.ndarray, count: int) -> Example:
        return Example("count", page, "how many things are there?", NUMBERS[count - 1], NUMBERS)

    def _ask_beside(self, page: np.ndarray, shown: Sequence[int], left: bool) -> Example:
        answer, asked = (self.rows[number].text or "" for number in (shown if left else shown[::-1]))
        return Example("beside", page, f"what is {'left' if left else 'right'} of the {asked}?", answer)

    def _ask_order(self, frames: np.ndarray, names: tuple[str, str], swapped: bool) -> Example:
        asked = names[::-1] if swapped else names
        return Example("order", frames, f"what comes first, {asked[0]} or {asked[1]}?", names[0], asked)

    def _kind_of(self, number: int) -> str:
        return KINDS[self.rows[number].meta["group"]]

    def _any(self, split: str, rng: np.random.Generator, accept: Callable[[int], bool] = lambda _: True) -> int:
        """The number of any drawing of a split that `accept` takes."""
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

    def _side_by_side(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
        """A picture of two things, the first on the left."""
        shown, things = self._several(split, 2, rng), []
        for number, low, high in zip(shown, (0.0, 0.5), (0.5, 1.0), strict=True):
            side = round(self.size * rng.uniform(0.4, 0.5))
            x = rng.uniform(low * self.size, high * self.size - side)
            things.append((number, x, rng.uniform(0, self.size - side), side))
        return self._page(things), shown

    def _two_in_turn(self, split: str, rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, str]]:
        """A clip of one thing and then another, and their names."""
        first, second = self._several(split, 2, rng)
        half = (self.num_frames + 1) // 2
        shown = [first] * half + [second] * (self.num_frames - half)
        frames = np.concatenate([self._stills[number] for number in shown])
        return frames, (self.rows[first].text or "", self.rows[second].text or "")

    def _scene(self, shown: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Drawings at random places, one in each quarter of the page at most."""
        half, things = self.size // 2, []
        for quarter, number in zip(rng.permutation(MAX_THINGS), shown):
            side = round(self.size * rng.uniform(0.34, 0.48))
            x, y = rng.uniform(0, half - side, 2) + np.array([quarter % 2, quarter // 2]) * half
            things.append((number, float(x), float(y), side))
        return self._page(things)

    def _page(self, things: Sequence[tuple[int, float, float, int]]) -> np.ndarray:
        """A white page with drawings. things: (number, x, y, side) of each."""
        page = Image.new("RGB", (self.size, self.size), "white")
        for number, x, y, side in things:
            drawing = self.pictures[number].resize((side, side), Image.Resampling.BILINEAR)
            page.paste(drawing, (round(x), round(y)))
        return np.asarray(page)[None]


def _choice(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
