"""One thing to be judged on: what annotation files say of it, in one set of words for all benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

Media = str | bytes
"""A file name as the annotation implies it (relative, no root), or the bytes of a file that the annotation holds."""


@dataclass(slots=True)
class Item:
    """An annotated item. None = absent. What only one benchmark has is in `meta`.

    answer_index: 0-based place of the right one of `choices`. label: 0-based class, a number to predict, or a word.
    labels: classes of an item that has several. boxes: x1, y1, x2, y2 in pixels. image_size: (width, height).
    group: what items that count together share (a question and its rotations). media_start, media_end: seconds.
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
        """All fields, `meta` spread out, in plain lists."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "meta"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()} | self.meta

    @property
    def pictures(self) -> list[Media]:
        """The images of the item, one or several or none."""
        return self.images if self.images is not None else [] if self.image is None else [self.image]
