"""What a task is: data x way of predicting x metric, with the number its authors published.

Task = layouts + split (which items) + ways (how each capability predicts) + prompt + decoding + scorer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plait.types import Modality

Capability = Literal["embed", "generate", "text", "classify", "decide", "ground", "detect", "segment"]
"""What a model can do for a task: vectors, text about media, text about text, class scores (`classify` of one medium or
text, `decide` of words about media), boxes, masks."""
Way = Literal[
    "retrieve", "zero_shot", "choose_text", "prompt", "rank_choices", "class_scores", "decide", "locate", "detect",
    "segment", "similarity",
]  # fmt: skip
"""How predictions are made; see `plait.evaluation.predict`."""
Status = Literal["readme", "paper", "web", "recalled"]
"""Where a published number was read: the model's read-me, the paper, a third-party table, from memory (unverified)."""


@dataclass(frozen=True)
class Published:
    """A number somebody published for a task."""

    model: str
    value: str
    status: Status


@dataclass(frozen=True)
class Decoding:
    """How text is generated: greedy unless `num_beams` > 1; token counts are of new tokens."""

    max_new_tokens: int = 10
    min_new_tokens: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Task:
    """One benchmark. `scorer` names a function of `plait.evaluation.scoring`, `rules` its variants, default first.

    layouts: readers tried in order. media: what the items hold. labels: for zero-shot classes, the sentence around a
    class name. class_words: what the classes of a family's released head mean. size: items of the split. needs: what
    scoring takes beyond predictions (a judge, a server, people). submission: writer of the file that a test server
    takes.
    """

    name: str
    about: str
    layouts: tuple[str, ...]
    split: str
    media: tuple[Modality, ...]
    ways: Mapping[Capability, Way]
    scorer: str
    primary: str
    prompt: str = ""
    decoding: Decoding = field(default_factory=Decoding)
    family_decoding: Mapping[str, Decoding] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    labels: str = "{label}"
    class_words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_frames: int = 8
    size: int | None = None
    needs: str = ""
    submission: str = ""
    published: tuple[Published, ...] = ()

    def decoding_of(self, family: str) -> Decoding:
        """The decoding that the release of a model family uses for this task, else the task's own."""
        return self.family_decoding.get(family, self.decoding)


def numbers(status: Status, **values: str) -> tuple[Published, ...]:
    """Published numbers of several models with one status: `numbers("readme", owl2="137.3")`."""
    return tuple(Published(NAMES.get(model, model), value, status) for model, value in values.items())


NAMES = {
    "owl": "mPLUG-Owl",
    "owl2": "mPLUG-Owl2",
    "owl21": "mPLUG-Owl2.1",
    "mplug": "mPLUG large",
    "mplug2": "mPLUG-2",
    "one_peace": "ONE-PEACE",
}
