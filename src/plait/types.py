"""The words every room shares: modalities and one sample of data. Nothing here imports torch."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Literal, Protocol, TypedDict, TypeVar, get_args
from uuid import UUID

Modality = Literal["text", "image", "video", "audio"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)
"""Every modality, in the one order used everywhere."""


One_co = TypeVar("One_co", covariant=True)


class Several(Protocol[One_co]):
    """A list, a tuple or another sequence, but not a text, whose letters would be its items.

    For checkers of types: the `in` of a str asks for a str, that of a list for anything.
    """

    def __contains__(self, value: object, /) -> bool:
        """Whether it is among them."""
        ...

    def __getitem__(self, index: int, /) -> One_co:
        """One of them."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...

    def __iter__(self) -> Iterator[One_co]:
        """One after the other."""
        ...


class Writing(TypedDict, total=False):
    """How words are written: beams, and fewest and most tokens under either of their names."""

    num_beams: int
    min_length: int
    max_length: int
    min_new_tokens: int
    max_new_tokens: int


@dataclass(slots=True)
class Sample:
    """One row of a manifest: media, what is asked or said about them, and where it comes from.

    Media fields hold paths (relative to the manifest, or absolute once a reader resolved them) or
    objects already decoded: `image` a PIL image, `audio` a float32 array `(samples,)` at
    `meta["sampling_rate"]`. `boxes` are four numbers each. Row fields that are not named here are kept
    in `meta`.

    Example:
        >>> sample = Sample.from_row({"id": 7, "image": "a.jpg", "camera": "x100"})
        >>> sample.modalities, sample.meta
        (('image',), {'camera': 'x100'})
    """

    id: str
    text: str | None = None
    image: Any = None
    video: Any = None
    audio: Any = None
    messages: list[dict[str, Any]] | None = None
    question: str | None = None
    answers: list[str] | None = None
    label: str | None = None
    boxes: list[list[float]] | None = None
    captions: list[str] | None = None
    split: str | None = None
    source: str | None = None
    license: str | None = None
    author: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Sample:
        """Build a sample from a decoded manifest row; unknown fields go to `meta`.

        Args:
            row: field -> value, at least `id`, which becomes a string.

        Raises:
            ValueError: without an id.
        """
        if row.get("id") in (None, ""):  # 0 is an id like others
            raise ValueError("expected a row with an 'id', got none; give every row a unique id")
        names = {f.name for f in fields(cls)} - {"meta"}
        known = {name: value for name, value in row.items() if name in names}
        rest = {name: value for name, value in row.items() if name not in names and name != "meta"}
        sample = cls(**known, meta={**row.get("meta", {}), **rest})
        # a number and its text are one id: reports and predictions join on text
        sample.id = str(sample.id)
        return sample

    def to_row(self) -> dict[str, Any]:
        """The row that `from_row` reads back: no empty fields, `meta` spread out again.

        Returns:
            Field -> value; media are what the sample holds, paths or decoded objects.
        """
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "meta"}
        return {name: value for name, value in named.items() if value is not None} | self.meta

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities this sample carries, in the shared order: text, image, video, audio.

        Fields hold them whether as a path or decoded.
        """
        return tuple(m for m in MODALITIES if getattr(self, m) is not None)


def plain(value: Any, name: str = "a value") -> Any:
    """A value of another library as JSON has it: what rows are read from may hold more kinds than their files can.

    Dates and times become ISO 8601, decimals numbers, NumPy's scalars and arrays Python's, bytes text where they are
    UTF-8 and base64 where they are not. What JSON has stays as it is.

    Args:
        value: any; of lists and dicts every part. name: what an error calls it.

    Raises:
        ValueError: for a number that is not finite, and for what JSON has no kind of.

    Example:
        >>> plain({"day": date(2024, 5, 1), "price": Decimal("1.50")})
        {'day': '2024-05-01', 'price': 1.5}
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"field {name!r}: expected a finite number, got {value}; leave the field out")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one, name) for one in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return plain(int(value) if value.is_finite() and value == value.to_integral_value() else float(value), name)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return plain(value.tolist(), name)
    if isinstance(value, str | int | float):  # their subclasses, such as enumerations
        return next(kind(value) for kind in (str, int, float) if isinstance(value, kind))
    if isinstance(value, UUID | PurePath):
        return str(value)
    raise ValueError(f"field {name!r}: expected text, numbers, lists or objects, got {type(value).__name__}")


_PLACEHOLDERS = re.compile(r"<(\|?(?:image|video)\|?>)")
_WORDS = "\ufdd0"
"""A character that Unicode gives to nobody: it stands in a placeholder that is meant as words, and no text has it."""


def as_words(text: str) -> str:
    """A person's text in which `<image>` and its like are words, not places of media: no family will take them so."""
    return _PLACEHOLDERS.sub(rf"<{_WORDS}\1", text)


def spoken(text: str) -> str:
    """What is read aloud, or tokenized: undoes `as_words`. Raises ValueError as `whole_text`."""
    return whole_text(text).replace(_WORDS, "")


def whole_text(text: str) -> str:
    """The text itself. Raises ValueError where it holds half of a character, as scraped text and argv may.

    Tokenizers, Arrow and JSON files take Unicode; a surrogate by itself (U+D800 to U+DFFF) is no character of it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"{text[: error.start][-20:]!r} and then U+{ord(text[error.start]):04X} alone"
        raise ValueError(f"expected a text of whole characters, got {got}; leave the half out") from error
    return text


QuestionKind = Literal[
    "caption", "short", "open", "letters", "letters_with_hint", "letters_or_words", "yes_no", "statement", "entailment",
    "locate", "few_shot", "exam", "plain",
]  # fmt: skip
"""How a question wants to be answered: with a sentence, a word or two, at length, by the letter of a choice, yes or no,
true or false of a statement, what follows from a picture, a box; and, in text alone, by a letter after examples, by a
letter or words in an exam, by words that continue the text."""


class Question(Protocol):
    """What a question is made of, whatever its kind; None where it has no such part.

    question: the words; text: a statement or phrase; context: a hint or passage; choices: options in
    order; answer_index: the right one; category: a subject; meta: whatever else its reader found.
    """

    question: str | None
    text: str | None
    context: str | None
    choices: list[str] | None
    answer_index: int | None
    category: str | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How text is generated: greedy unless `num_beams` > 1.

    max_new_tokens, min_new_tokens: of the answer, the prompt not counted. length_penalty: exponent of
    the length that divides a beam's log probability; only beams know it.
    """

    max_new_tokens: int = 10
    min_new_tokens: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Ask:
    """One question to a model, or one thing to be judged; media are decoded, or stand for what will be.

    words: as the family words them; empty for a caption or a medium alone. images: PIL images in their order. video:
    frames of one clip. audio: float32 (samples,) at the model's rate. second: the other text of a pair.
    """

    words: str = ""
    images: tuple[Any, ...] = ()
    video: tuple[Any, ...] = ()
    audio: Any = None
    second: str | None = None


Capability = Literal["embed", "generate", "text", "classify", "decide", "ground", "detect", "segment"]
"""What a model can be asked for: vectors, text about media, text about text, class scores (`classify` of one medium or
text, `decide` of words about media), boxes, masks."""


class Asks(Protocol):
    """How a family wants to be asked: its words, its layout, its frames, its decoding.

    Part of a family's skills, which inherit `plait.generation.asking.Asking` for what they do not
    say. num_frames: images that a video becomes; frames: the published rule by which they are chosen, a name of
    `plait.processing.videos.FRAME_RULES`. sampling_rate: of audio, in Hz. capabilities: what may be asked for.
    rerank, ranked: as in `plait.generation.asking.Asking`.
    """

    num_frames: int
    frames: str
    sampling_rate: int
    capabilities: tuple[Capability, ...]
    rerank: int
    ranked: int

    def prompt(self, kind: QuestionKind, item: Question) -> str:
        """The words of a question.

        Args:
            kind: how it wants to be answered.
            item: what it is made of.
        """
        ...

    def choice(self, question: str, choice: str) -> str:
        """A question and one of its choices as a sentence that a medium is held against."""
        ...

    def dialogue(self, earlier: Sequence[tuple[str, str]], words: str) -> str:
        """Words behind the turns of a dialogue.

        Args:
            earlier: (words, answer), oldest first.
            words: of the question now.
        """
        ...

    def layout(self, ask: Ask) -> str:
        """The text that is fed, placeholders and roles included.

        Args:
            ask: words behind earlier turns; of its media only the numbers count.
        """
        ...

    def decoding(self, kind: QuestionKind, medium: Modality) -> Decoding:
        """How the answer to a question is generated.

        Args:
            kind: of the question.
            medium: what it is about.
        """
        ...


Task = Literal["caption", "answer", "rank", "match", "ground", "classify", "detect", "segment"]


class Skills(Asks, Protocol):
    """What a family writes to take part: its model and processor behind one small interface.

    Everything happens in batches of one kind, in order; `prepared` holds what `prepare` made of each item. Only
    the methods of the family's own `tasks` are called.

    Attributes:
        tasks: what this model does.
        kinds: what it looks at.
        num_frames: of a clip.
        labels: what a classification head knows, empty without one.
    """

    tasks: frozenset[Task]
    kinds: frozenset[Modality]
    labels: tuple[str, ...]

    def prepare(self, kind: Modality, value: Any) -> Any:
        """One decoded item on the host. Called from several threads.

        Args:
            kind: text, image, video or audio.
            value: a text, a PIL image, a list of PIL frames (or of the images of one item), or samples (samples,) at
                `sampling_rate`.

        Returns:
            Whatever the other methods take of one item.
        """
        ...

    def check_text(self, text: str) -> None:
        """Check a question, phrase, answer or label before any item is decoded.

        Raises:
            ValueError: where it is over the model's limit.
        """
        ...

    def caption(self, kind: Modality, prepared: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
        """A description of each item.

        options: `num_beams, min_length, max_length` where given.
        """
        ...

    def answer(
        self, kind: Modality, prepared: Sequence[Any], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """A free answer to each question about its item."""
        ...

    def attention(self, kind: Modality, prepared: Any, question: str, text: str) -> tuple[list[str], Any]:
        """Where a text about one item looked: its pieces, and a tensor (pieces, frames, rows, columns) of shares.

        question: empty for a caption. Raises ValueError for a text without pieces.
        """
        ...

    def rank(
        self, kind: Modality, prepared: Sequence[Any], questions: Sequence[str], answers: Several[str]
    ) -> Sequence[Sequence[tuple[str, float]]]:
        """All `answers` for each question, best first, with probabilities that sum to 1."""
        ...

    def fits(self, kind: Modality, prepared: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """How probable it is that each text says what its item shows, 0 to 1."""
        ...

    def ground(self, prepared: Sequence[Any], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """A box for each phrase in its image: x0, y0, x1, y1 as shares of width and height."""
        ...

    def classify(
        self, kind: Modality, prepared: Sequence[Any], labels: Several[str] | None
    ) -> Sequence[Sequence[tuple[str, float]]]:
        """Labels for each item, best first: those of its head, or (where it can) the given ones."""
        ...

    def detect(self, prepared: Sequence[Any], threshold: float) -> list[dict[str, Any]]:
        """The objects of each image above a threshold, as tensors of the host, best first.

        scores and labels (n,), boxes (n, 4) in pixels; masks (n, height, width) and mask_scores (n,) where there are.
        """
        ...

    def segment(self, prepared: Sequence[Any], multi_scale: bool = False) -> list[Any]:
        """The class of every pixel of each image, (height, width) on the host; of the published scales, or of one."""
        ...
