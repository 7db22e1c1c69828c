"""What all benchmarks share: items and where they are read from, tasks, and what a rule makes of predictions.

DIR -> Layout.find -> Source (role -> file) -> Layout.function -> [Item]
Task = layouts + split (which items) + methods (how each capability predicts) + kind of question + rule
items + prediction rows -> Scoring -> Task.score -> Scored(scores, units, groups, categories, unreadable, notes)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plait.evaluation.files import Media, MediaFiles, unique
from plait.metrics.bootstrap import bootstrap_clustered_mean
from plait.metrics.choices import percent
from plait.metrics.replies import LETTERS, letter
from plait.places import atomic_write
from plait.types import Capability, Modality, QuestionKind


@dataclass(slots=True)
class Item:
    """An annotated item. None = absent. What only one benchmark has is in `meta`.

    Attributes:
        id: unique in its split.
        image, images, video, audio: as the annotation names them, see `plait.evaluation.files.MediaFiles`.
        text, text_pair, question, context: words that a task asks with or about.
        choices: to choose from; answer_index: 0-based place of the right one.
        answers, captions: all that count as right.
        label: 0-based class, a number to predict, or a word; label_name: the class in words.
        labels, label_names: classes of an item that has several.
        boxes: x1, y1, x2, y2 in pixels; box_labels: their classes.
        image_size: (width, height) in pixels.
        mask: file of the right class of every pixel.
        group: what items that count together share (a question and its rotations).
        category, category_group, question_type, answer_type: by which parts of a score are told.
        media_start, media_end: seconds.
    """

    id: str
    image: Media | None = None
    images: list[Media] | None = None
    video: str | None = None
    audio: str | None = None
    text: str | None = None
    text_pair: str | None = None
    question: str | None = None
    context: str | None = None
    choices: list[str] | None = None
    answer_index: int | None = None
    answers: list[str] | None = None
    captions: list[str] | None = None
    label: int | float | str | None = None
    label_name: str | None = None
    labels: list[int] | None = None
    label_names: list[str] | None = None
    boxes: list[list[float]] | None = None
    box_labels: list[str] | None = None
    image_size: tuple[int, int] | None = None
    mask: str | None = None
    group: str | None = None
    category: str | None = None
    category_group: str | None = None
    question_type: Any = None
    answer_type: str | None = None
    media_start: float | None = None
    media_end: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """All fields with `meta` spread out, in plain lists."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "meta"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()} | self.meta

    @property
    def pictures(self) -> list[Media]:
        """The images of the item, one or several or none.

        `images` goes before `image`, which an item has instead.
        """
        return self.images if self.images is not None else [] if self.image is None else [self.image]

    @property
    def answer(self) -> str:
        """The first right answer, or the empty text."""
        return (self.answers or [""])[0]

    @property
    def letters(self) -> str:
        """The letters of the choices."""
        return LETTERS[: len(self.choices or [])]

    @property
    def right_letter(self) -> str:
        """The letter of the right choice."""
        return LETTERS[self.answer_index or 0]

    def media(self, modalities: Iterable[Modality]) -> list[tuple[Modality, Media]]:
        """The media that the item names, of the given modalities, in the order of these."""
        named: list[tuple[Modality, Media]] = []
        for modality in modalities:
            if modality == "image":
                named += [("image", picture) for picture in self.pictures]
            elif modality != "text" and (value := getattr(self, modality, self.meta.get(modality))) is not None:
                named.append((modality, value))  # a user's own has no field and lies in `meta`
        return named


@dataclass(frozen=True)
class Source:
    """Where a layout was found.

    Attributes:
        root: the directory of the data set.
        files: role -> file.
        split: as it was asked for.
    """

    root: Path
    files: Mapping[str, Path]
    split: str

    def __getitem__(self, role: str) -> Path:
        """The file of a role. Raises ValueError where there is none."""
        if role not in self.files:
            raise ValueError(f"expected a file for {role!r} in {self.root}, got {', '.join(self.files) or 'none'}")
        return self.files[role]

    def get(self, role: str) -> Path | None:
        """The file of an optional role."""
        return self.files.get(role)


ReadFunction = Callable[[Source], list[Item]]


@dataclass(frozen=True)
class Layout:
    """How the files of a data set are called, and what reads them.

    Attributes:
        name: of the layout.
        function: `Source` -> items.
        roles: role -> patterns of file names, the first that matches counts; `{split}` is filled in, in
            capitals as `{SPLIT}`.
        optional: roles that may be absent.
        many: roles that take every match (role = the file's stem, or its path where two have one stem).
        aliases: a split's name -> how this data set's files call it.
    """

    name: str
    function: ReadFunction
    roles: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    aliases: Mapping[str, str] | None = None

    def find(self, root: Path, split: str) -> Source | str:
        """The files of this layout under `root`, or what is missing in words.

        Args:
            root: of the data set; files may lie one directory further down.
            split: filled into the patterns.
        """
        files: dict[str, Path] = {}
        word = (self.aliases or {}).get(split, split)
        for role, patterns in self.roles.items():
            named = [pattern.replace("{split}", word).replace("{SPLIT}", word.upper()) for pattern in patterns]
            found = next((matches for pattern in named if (matches := sorted(_matches(root, pattern)))), [])
            if role in self.many:
                for path in found:
                    files[path.relative_to(root).as_posix() if path.stem in files else path.stem] = path
            elif len(found) > 1:
                names = ", ".join(path.relative_to(root).as_posix() for path in found[:4])
                return f"one file {named[0]}, got {len(found)}: {names}"
            elif found:
                files[role] = found[0]
            if not found and role not in self.optional:
                return f"a file {' or '.join(named)}"
        return Source(root, files, split)

    def read(self, source: Source) -> list[Item]:
        """The items, in the order of the files.

        Raises:
            ValueError: one line naming file and row, for anything malformed and for an id that comes twice.
        """
        items = self.function(source)
        unique(f"{self.name}, split {source.split}", (item.id for item in items))
        return items


def _matches(root: Path, pattern: str) -> Iterator[Path]:
    """Files at `pattern` in `root`, or else one directory further down."""
    here = [path for path in root.glob(pattern) if path.is_file()]
    # archives unpack into a folder of their own, which users keep or leave out
    yield from here or (path for path in root.glob(f"*/{pattern}") if path.is_file())


LAYOUTS: dict[str, Layout] = {}
"""Every layout by name; `plait.evaluation.tasks` fills it."""


def layout(
    name: str,
    roles: Mapping[str, str | tuple[str, ...]],
    *,
    optional: tuple[str, ...] = (),
    many: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
) -> Callable[[ReadFunction], ReadFunction]:
    """Register the decorated function as the reader of a layout.

    Args:
        name, roles, optional, many, aliases: the fields of `Layout`; one pattern may stand without a tuple.

    Example:
        >>> @layout("pets", {"rows": "{split}.json"})
        ... def read_pets(source: Source) -> list[Item]:
        ...     return [Item(row.text("id"), image=row.text("image")) for row in read_rows(source["rows"])]
    """

    def register(function: ReadFunction) -> ReadFunction:
        patterns = {role: (names,) if isinstance(names, str) else names for role, names in roles.items()}
        LAYOUTS[name] = Layout(name, function, patterns, optional, many, aliases)
        return function

    return register


Method = Literal[
    "retrieve", "zero_shot", "choose_text", "prompt", "rank_choices", "rank_answers", "class_scores", "decide",
    "locate", "detect", "segment", "similarity",
]  # fmt: skip
"""How predictions are made; see `plait.evaluation.predict`."""


@dataclass(frozen=True)
class Published:
    """A number somebody published for a task.

    Attributes:
        model: whose it is.
        value: as it was written.
        status: where it was read: the model's read-me, the paper, a third-party table (web), or from memory,
            unverified (recalled).
    """

    model: str
    value: str
    status: str


def published(*told: str) -> tuple[Published, ...]:
    """Published numbers, each written as "STATUS MODEL: VALUE".

    Example:
        >>> published("readme mPLUG-Owl2: 137.3")
        (Published(model='mPLUG-Owl2', value='137.3', status='readme'),)
    """
    parts = (re.fullmatch(r"(\w+) ([^:]+): (.+)", one) for one in told)
    return tuple(Published(part[2], part[3], part[1]) for part in parts if part)


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name, about: its name and one sentence.
        layouts: readers tried in order.
        split: read where none is asked for.
        media: what the items hold.
        methods: how each capability predicts, best first.
        score: the rule, on functions of `plait.metrics` that golden cases prove.
        primary: name of the score that results are compared by.
        kind: of the question, which the model's family words.
        rules: variants of the rule, default first.
        labels: for zero-shot classes, the sentence around a class name.
        size: items of the split.
        needs: what scoring takes beyond predictions (a judge, people's grades).
        submission: writes the file that a test server takes into a directory.
        published: numbers of others.
        answers: name of the file of all answers in the data set, from which families that rank choose.
    """

    name: str
    about: str
    layouts: tuple[str, ...]
    split: str
    media: tuple[Modality, ...]
    methods: Mapping[Capability, Method]
    score: Rule
    primary: str
    kind: QuestionKind = "open"
    rules: tuple[str, ...] = ()
    labels: str = "{label}"
    size: int | None = None
    needs: str = ""
    submission: Submission | None = None
    published: tuple[Published, ...] = ()
    answers: str | None = None

    @property
    def seen(self) -> tuple[Modality, ...]:
        """The modalities that come as files."""
        return tuple(modality for modality in self.media if modality != "text")


@dataclass
class Scored:
    """What a rule makes of predictions.

    Attributes:
        scores: by name.
        units: values by item whose mean is the primary score (empty where it is no such mean).
        groups: item -> what it shares with others (an image, a concept), so that intervals draw groups whole.
        categories: the primary score of parts.
        unreadable: ids of replies without an answer.
        notes: what a reader must know.
        resampled: (low, high) of an interval that was measured otherwise.
    """

    scores: dict[str, float]
    units: dict[str, float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    categories: dict[str, float] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resampled: tuple[float, float] | None = None

    def interval(self) -> list[float] | None:
        """95 % bootstrap interval of the primary score, or None where there is nothing to resample."""
        if self.resampled is not None:
            return list(self.resampled)
        return list(clustered_interval(self.units, self.groups)) if self.units else None


def clustered_interval(
    units: Mapping[str, float], groups: Mapping[str, str], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over units.

    Args:
        units: value by item.
        groups: item -> group; groups are drawn whole, an item without is its own.
        resamples, seed: of the bootstrap.

    Returns:
        (low, high).
    """
    owners = [groups.get(name, name) for name in units]
    found = bootstrap_clustered_mean(list(units.values()), owners, resamples=resamples, seed=seed)
    return found.lower, found.upper


@dataclass
class Scoring:
    """Items and prediction rows of one run: what a rule is given.

    Attributes:
        items: in the order of the files.
        rows: one per item, or per query of a retrieval, with id, prediction, raw and perhaps failed.
        rule: the variant asked for.
        judge: stored replies or a model, where one is needed.
        files, out: media of the data set, and the directory of the run.
    """

    items: Sequence[Item]
    rows: Sequence[Mapping[str, Any]]
    rule: str | None = None
    judge: str | None = None
    files: MediaFiles | None = None
    out: Path | None = None

    @property
    def predictions(self) -> dict[str, Any]:
        """Prediction by id; None where it failed.

        What a prediction is goes by the method: a reply, an index, classes best first, boxes, a mask or a rank.
        """
        return {row["id"]: row["prediction"] for row in self.rows}

    @property
    def raw(self) -> dict[str, Any]:
        """What the model said by id; None where it failed."""
        return {row["id"]: row.get("raw") for row in self.rows}

    @property
    def groups(self) -> dict[str, str]:
        """Item -> group, for the items that have one."""
        return {item.id: item.group for item in self.items if item.group is not None}

    def replies(self) -> list[str]:
        """The replies in the order of the items, as text.

        A failed one is the empty reply, which is wrong everywhere.
        """
        found = self.predictions
        return [str(found[item.id] or "") for item in self.items]

    def pairs(self) -> list[tuple[Item, str]]:
        """Items with their replies."""
        return list(zip(self.items, self.replies(), strict=True))

    def unreadable(self, rule: str) -> list[bool]:
        """Which replies name no choice of their item.

        rule: of `plait.metrics.replies.letter`. Returns a boolean per item.
        """
        return [(letter(reply, item.choices or [], rule) or "?") not in item.letters for item, reply in self.pairs()]

    def keep(self, has: Callable[[Item], bool], what: str) -> None:
        """Make sure that a split holds what the score compares with.

        Args:
            has: whether an item has it.
            what: its name in words.

        Raises:
            NotScored: for the first item without.
        """
        if bare := next((item.id for item in self.items if not has(item)), None):
            raise NotScored(f"submitted, not scored: this split has no {what} of item {bare}")

    def scored(self, hits: Iterable[float], unreadable: Iterable[bool] = (), **more: Any) -> Scored:
        """Accuracy in percent, by category; groups are those of the items.

        Args:
            hits: 0 to 1 in the order of the items.
            unreadable: booleans in the same order.
            more: other fields of `Scored`.
        """
        hits, ids = list(hits), [item.id for item in self.items]
        values = [100.0 * hit for hit in hits]
        kinds = [(item.category, value) for item, value in zip(self.items, values, strict=True) if item.category]
        return Scored(
            {"accuracy": percent(hits)},
            dict(zip(ids, values, strict=True)),
            self.groups,
            means(kinds),
            [name for name, lost in zip(ids, unreadable) if lost],
            **more,
        )


Rule = Callable[[Scoring], Scored]
Pairs = Sequence[tuple[Item, str]]
"""Items with their replies, empty where there is none."""
Submission = Callable[[Pairs, Path, str], Path]
"""Replies, a directory and the model's name -> the file written."""


class NotScored(Exception):  # noqa: N818
    """Why predictions have no score: the split holds no answers, or nobody judged them.

    It ends no run: `score` turns it into a note, and the predictions are there to be handed in.
    """


def score(task: Task, scoring: Scoring) -> Scored:
    """Score the predictions of a task; a split without answers gives no score and says so in its notes.

    Args:
        task: gives the rule.
        scoring: items and rows.

    Raises:
        ValueError: for ids that are missing, double or unknown, and for a score that is NaN or infinite.
    """
    if "retrieve" not in task.methods.values():
        # a retrieval has rows for both directions, which its rule checks
        known, seen = {item.id for item in scoring.items}, set[str]()
        for row in scoring.rows:
            if row["id"] not in known:
                raise ValueError(f"expected predictions of the items of this split, got the id {row['id']!r}")
            if row["id"] in seen:
                raise ValueError(f"expected one prediction per item, got two for {row['id']!r}")
            seen.add(row["id"])
        if missing := [item.id for item in scoring.items if item.id not in seen]:
            shown = ", ".join(missing[:5])
            raise ValueError(f"expected a prediction for every item, got none for {len(missing)}: {shown}")
    try:
        found = task.score(scoring)
    except NotScored as reason:
        return Scored({}, notes=[str(reason)])
    if bad := next((name for name, value in found.scores.items() if not np.isfinite(value)), None):
        raise ValueError(f"expected a finite {bad} of {task.name}, got {found.scores[bad]}; check the predictions")
    return found


def means(pairs: Iterable[tuple[Any, float]]) -> dict[str, float]:
    """Mean of values by name, sorted by name.

    Args:
        pairs: (name, value); names are read as text.
    """
    groups: dict[str, list[float]] = {}
    for name, value in pairs:
        groups.setdefault(str(name), []).append(value)
    return {name: float(np.mean(groups[name])) for name in sorted(groups)}


def write_json(path: Path, content: Any) -> Path:
    """Write a submission as one JSON document; returns its path."""
    return atomic_write(path, json.dumps(content, ensure_ascii=False))


def number_of(text: str) -> int | str:
    """An id as servers want it: a number where it is one.

    Files of COCO and VQA hold ids as numbers, and an id of an `Item` is always text.
    """
    return int(text) if text.isdigit() else text
