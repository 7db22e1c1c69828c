"""What a family offers an `Assistant`: one small interface over its model and processor.

A family's module in `plait.models.auto.FAMILIES` names a class `SKILLS` that is built as `SKILLS(model, processor)`; a
new family plugs in by writing one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Task = Literal["caption", "answer", "rank", "ground", "classify"]
Kind = Literal["text", "image", "video"]


class Scored(NamedTuple):
    """One candidate and its probability."""

    text: str
    probability: float


class Skills(Protocol):
    """Everything happens in batches of one kind, in order; `prepared` holds what `prepare` made of each item.

    tasks: what this model does; kinds: what it looks at; num_frames: of a clip; labels: what a classification head
    knows, empty without one.
    """

    tasks: frozenset[Task]
    kinds: frozenset[Kind]
    num_frames: int
    labels: tuple[str, ...]

    def prepare(self, kind: Kind, value: Any) -> Any:
        """One decoded item on the host: a PIL image, a list of PIL frames or a text. Called from several threads."""
        ...

    def check_text(self, text: str) -> None:
        """Raise ValueError where a question, phrase or answer is over the model's limit."""
        ...

    def caption(self, kind: Kind, prepared: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
        """A description of each item. options: `num_beams, min_length, max_length` where given."""
        ...

    def answer(
        self, kind: Kind, prepared: Sequence[Any], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """A free answer to each question about its item."""
        ...

    def rank(
        self, kind: Kind, prepared: Sequence[Any], questions: Sequence[str], answers: Sequence[str]
    ) -> Sequence[Sequence[tuple[str, float]]]:
        """All `answers` for each question, best first, with probabilities that sum to 1."""
        ...

    def ground(self, prepared: Sequence[Any], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """A box for each phrase in its image: x0, y0, x1, y1 as shares of width and height."""
        ...

    def classify(
        self, kind: Kind, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> Sequence[Sequence[tuple[str, float]]]:
        """Labels for each item, best first: those of its head, or (where it can) the given ones."""
        ...
