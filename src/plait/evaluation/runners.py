"""Models behind small protocols, so that ours and peers stand in the same table.

plait DIR | hf:DIR -> open_model -> Embeds | Generates | Classifies | Detects | Segments
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from plait.errors import no_code_of
from plait.evaluation.tasks import Capability, Decoding
from plait.types import Modality


@dataclass(frozen=True)
class Ask:
    """One question: its words, and pictures (files, bytes or PIL images) in their order, or a sound (a file)."""

    words: str
    images: tuple[Any, ...] = ()
    audio: Any = None


class Model(Protocol):
    """What every model tells: a name for reports, its family, a hash of its weights, what it can do."""

    name: str
    family: str
    capabilities: tuple[Capability, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights."""
        ...


@runtime_checkable
class Embeds(Model, Protocol):
    """Maps media and texts into one space."""

    modalities: tuple[Modality, ...]

    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Items as `plait.Embedder` takes them -> unit vectors (n, dim)."""
        ...


@runtime_checkable
class Generates(Model, Protocol):
    """Answers in words."""

    def prompt(self, ask: Ask) -> str:
        """The exact text that the model reads, placeholders included."""
        ...

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """One reply per question, without special tokens."""
        ...


@runtime_checkable
class Ranks(Model, Protocol):
    """Tells how likely it finds continuations of a text."""

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """(text, continuation) -> summed log-probability of the continuation's tokens."""
        ...


@runtime_checkable
class Classifies(Model, Protocol):
    """Scores the classes of a trained head."""

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Media, texts or pairs of texts -> probabilities (n, classes)."""
        ...


@runtime_checkable
class Decides(Model, Protocol):
    """Scores the classes of a trained head for words about media. class_words: what the classes are called."""

    class_words: tuple[str, ...]

    def decide(self, asks: Sequence[Ask]) -> np.ndarray:
        """Words with pictures or a sound -> scores (n, classes), the highest first choice."""
        ...


@runtime_checkable
class Grounds(Model, Protocol):
    """Boxes for words, from a grounding head."""

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """One picture and its words each -> boxes (n, 4): x1, y1, x2, y2 as fractions of width and height."""
        ...


@runtime_checkable
class Detects(Model, Protocol):
    """Boxes of known classes."""

    def detect(self, images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Per picture a list of {"label", "score", "box": [x1, y1, x2, y2] in pixels}."""
        ...


@runtime_checkable
class Segments(Model, Protocol):
    """A class for every pixel."""

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Per picture its classes (height, width) uint8."""
        ...


PROTOCOLS: dict[Capability, type] = {
    "embed": Embeds, "generate": Generates, "text": Generates, "classify": Classifies, "decide": Decides,
    "ground": Grounds, "detect": Detects, "segment": Segments,
}  # fmt: skip


def open_model(spec: str | Path, wanted: Iterable[Capability], adapter: str | Path | None = None) -> Any:
    """Open a model directory, a hub id (`hf:` in front of either is accepted) or an official checkpoint of ours.

    adapter: directory of a LoRA trained on a model of ours. wanted: capabilities that the task can use, best first.
    Raises ValueError where the model has none of them.
    """
    from plait.embedder.towers import locate
    from plait.evaluation import adapters

    place, wanted = locate(str(spec).removeprefix("hf:")), list(wanted)
    config = _config(place)
    if place.is_file() or config.get("model_type") in OURS:
        opened = adapters.open_ours(place, config, wanted, adapter)
        return _able(opened, opened.capabilities, wanted, place)
    kinds = kinds_of(config, place)
    chosen = next((kind for kind in wanted if kind in kinds), None)
    if chosen is None:
        return _able(None, kinds, wanted, place)
    if adapter is not None:
        raise ValueError(f"expected a model of Plait for the adapter {adapter}, got {place}; merge it with PEFT first")
    with no_code_of(place):
        return adapters.ADAPTERS[chosen](str(place), config)


def _able(model: Any, kinds: Sequence[Capability], wanted: Sequence[Capability], place: Path) -> Any:
    if not set(kinds) & set(wanted):
        raise ValueError(
            f"expected a model that can {' or '.join(wanted)}, got {place}, which can {' or '.join(kinds) or 'nothing'}"
        )
    return model


def _config(place: Path) -> dict[str, Any]:
    path = place / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


_HEADS: tuple[tuple[str, Capability], ...] = (
    ("ForImageClassification", "classify"),
    ("ForSequenceClassification", "classify"),
    ("ForAudioClassification", "classify"),
    ("ForVideoClassification", "classify"),
    ("ForObjectDetection", "detect"),
    ("ForSemanticSegmentation", "segment"),
)
OURS = ("one_peace", "mplug2", "mplug_owl", "mplug_owl2")
"""Families that `plait.models.auto` opens."""


def kinds_of(config: dict[str, Any], place: Path) -> tuple[Capability, ...]:
    """What a peer can do, from its configuration; every kind that applies."""
    if (place / "modules.json").is_file():
        return ("embed",)
    model_type = config.get("model_type", "")
    name = (config.get("architectures") or [""])[0]
    for ending, kind in _HEADS:
        if name.endswith(ending):
            return (kind,)
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return ("generate", "text")
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return ("text",)
    return ("embed",)
