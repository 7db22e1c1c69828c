"""Models behind a few methods, so that ours and peers stand in the same table.

    plait DIR | official file | hf:DIR -> open_model -> an object with the methods of its capabilities

Every model has `name`, `family`, `fingerprint` (equal for equal weights), `capabilities`, and, by capability:

    embed               modalities, embed(items) -> unit vectors (n, dim)
    generate, text      asking (`plait.types.Asks`), prompt(ask) -> the text that is read, generate(asks, decoding) ->
                        replies; likelihoods(pairs of text and continuation) where it has one
    classify, decide    scores(asks) -> (n, classes), of media or texts alone, or of words about media, whose classes
                        asking.class_words(kind of question) names
    ground              ground(asks) -> boxes (n, 4): x1, y1, x2, y2 as fractions of width and height
    detect, segment     lists of {"label", "score", "box" in pixels}; classes (height, width) uint8

What a model of ours can do and how it is asked are its family's skills (`SKILLS` of its package); none is named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.embedder import Embedder
from plait.errors import UsageError, no_code_of
from plait.evaluation.peers import Classifier, Detector, Named, Segmenter, TextGenerator, home, kinds_of
from plait.generation.asking import Asking
from plait.models import auto, locate
from plait.processing.regions import coco_results
from plait.reading import read_json
from plait.types import Ask, Capability, Decoding


def open_model(
    spec: str | Path, wanted: Iterable[Capability], adapter: str | Path | None = None, dtype: str | None = None
) -> Any:
    """Open a model as what a task can use.

    Args:
        spec: a model directory, a hub id (`hf:` in front of either is accepted) or an official checkpoint of
            ours.
        wanted: capabilities that the task can use, best first.
        adapter: directory of a LoRA trained on a model of ours.
        dtype: as in `plait.Embedder`, for models of ours and for what embeds.

    Returns:
        An object with the methods of its capabilities, see above.

    Raises:
        ValueError: where the model has none of them, and for a LoRA beside a peer.
    """
    place, wanted = locate(spec), list(wanted)
    path = place / "config.json"
    config = read_json(path) if path.is_file() else {}
    model = None
    if place.is_file() or config.get("model_type") in auto.FAMILIES:
        model = OurModel(str(place), auto.opened(place, home(), dtype, adapter))
    kinds = kinds_of(config, place) if model is None else model.capabilities
    chosen = next((kind for kind in wanted if kind in kinds), None)
    if chosen is None:
        can = " or ".join(kinds) or "nothing"
        raise ValueError(f"expected a model that can {' or '.join(wanted)}, got {place}, which can {can}")
    if model is not None:
        return model
    if adapter is not None:
        raise ValueError(f"expected a model of Plait for the adapter {adapter}, got {place}; merge it with PEFT first")
    with no_code_of(place):
        if chosen == "embed":
            return EmbedderModel(str(place), config, dtype)
        if dtype is not None:
            raise UsageError(f"expected no dtype for {place}, which transformers runs as stored, got {dtype}")
        return PEERS[chosen](str(place), config)


class EmbedderModel:
    """`plait.Embedder` under the name of the directory of a peer.

    Args:
        place, config: the directory and its config.json.
        dtype: as in `plait.Embedder`.
    """

    capabilities: tuple[Capability, ...] = ("embed",)
    asking = Asking()

    def __init__(self, place: str, config: Mapping[str, Any], dtype: str | None = None) -> None:
        self.embedder = Embedder(place, dtype=dtype, long_sounds="cut", shrink=False)  # as published
        self.name, self.family = Path(place).name, str(config.get("model_type", "embedder"))
        self.modalities = self.embedder.accepts

    @property
    def fingerprint(self) -> str:
        """Hash of configuration and weights."""
        return self.embedder.fingerprint

    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Unit vectors (n, dim)."""
        return self.embedder.embed(items, show_progress=False)


class Embedding(Asking):
    """Skills of a family that tells of none: its models embed."""

    capabilities: tuple[Capability, ...] = ("embed",)


class OurModel(Named):
    """A model of a family of ours, asked as its family's skills say; a family without skills can embed.

    Args:
        place: the directory, or an official checkpoint.
        pair: model and processor, already open.
    """

    def __init__(self, place: str, pair: tuple[Any, Any]) -> None:
        model, processor = pair
        super().__init__(place, {}, model.eval())
        self.asking: Any = Embedding() if auto.skills_class(model) is None else auto.skills(model, processor)
        self.capabilities = self.asking.capabilities
        self.embedder = (
            Embedder((model, processor), long_sounds="cut", shrink=False) if "embed" in self.capabilities else None
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it embeds, nothing where it does not."""
        return () if self.embedder is None else self.embedder.accepts

    def embed(self, items: Sequence[Any]) -> np.ndarray:
        """Unit vectors (n, dim)."""
        assert self.embedder is not None
        return self.embedder.embed(items, show_progress=False)

    def prompt(self, ask: Ask) -> str:
        """The exact text that the model reads, placeholders included."""
        return self.asking.layout(ask)

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        """Replies without special tokens, in the order of the questions; nothing is sampled."""
        with torch.inference_mode():
            return self.asking.reply(asks, decoding)

    def choose(self, asks: Sequence[Ask], answers: Sequence[str]) -> list[str]:
        """The best of a list of answers to every question, by the family's ranking."""
        with torch.inference_mode():
            return self.asking.choose(asks, answers)

    def match(self, ask: Ask, texts: Sequence[str]) -> np.ndarray:
        """How well texts fit one medium by the match head, (texts,): high is good."""
        with torch.inference_mode():
            return self.asking.match(ask, texts).cpu().numpy()

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Summed log-probability of every continuation after its text."""
        return self.asking.likelihoods(pairs)

    def scores(self, asks: Sequence[Ask]) -> np.ndarray:
        """Outputs of the head (n, classes), before any softmax or sigmoid."""
        with torch.inference_mode():
            return self.asking.scores(asks).float().cpu().numpy()

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """Boxes (n, 4) as fractions of width and height."""
        with torch.inference_mode():
            pictures = [self.asking.prepare("image", ask.images[0]) for ask in asks]
            return np.array(self.asking.ground(pictures, [ask.words for ask in asks]))

    def detect(self, images: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Boxes in pixels of every image, of every confidence, as average precision needs them.

        Where the model makes masks, boxes hold `segmentation` (run lengths) and the `mask_score` that ranks it.
        """
        names = self.asking.labels
        with torch.inference_mode():
            found = self.asking.detect([self.asking.prepare("image", image) for image in images], 0.0)
        boxes = []
        for one in found:
            rows = coco_results(one, None, dict(enumerate(names)))
            masked = one["mask_scores"].tolist() if "masks" in one else None
            boxes.append([])
            for i, row in enumerate(rows):
                x, y, width, height = row["bbox"]
                box = [x, y, round(x + width, 2), round(y + height, 2)]
                boxes[-1].append({"label": row["category_id"], "score": row["score"], "box": box})
                if masked is not None:
                    boxes[-1][-1] |= {"segmentation": row["segmentation"], "mask_score": masked[i]}
        return boxes

    def segment(self, images: Sequence[Any], multi_scale: bool = False) -> list[np.ndarray]:
        """The class of every pixel (height, width) uint8, at the size of the image. multi_scale: see `Assistant`."""
        with torch.inference_mode():
            masks = self.asking.segment([self.asking.prepare("image", image) for image in images], multi_scale)
        return [mask.numpy().astype(np.uint8) for mask in masks]


PEERS: dict[Capability, Any] = {
    "embed": EmbedderModel, "generate": TextGenerator, "text": TextGenerator, "classify": Classifier,
    "detect": Detector, "segment": Segmenter,
}  # fmt: skip
"""Capability -> what opens the directory of a peer."""
