"""What mPLUG-2 offers a `plait.Assistant`: each task class does its own, all through one small interface.

decoded items -> processor -> model.generate | rank_answers | ground | forward | get_*_features -> texts, boxes, labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from plait.models.mplug2.instructions import Medium, instruct
from plait.models.mplug2.processor import MPlug2Processor
from plait.objectives.grounding import corners


class Offer(NamedTuple):
    """The tasks of a class and what it looks at."""

    tasks: frozenset[str]
    kinds: frozenset[str]


OFFERS = {
    "MPlug2ForConditionalGeneration": Offer(
        frozenset({"caption", "answer", "rank", "classify"}), frozenset({"image", "video"})
    ),
    "MPlug2ForRetrieval": Offer(frozenset({"classify"}), frozenset({"image", "video"})),
    "MPlug2ForImageClassification": Offer(frozenset({"classify"}), frozenset({"image"})),
    "MPlug2ForVideoClassification": Offer(frozenset({"classify"}), frozenset({"video"})),
    "MPlug2ForSequenceClassification": Offer(frozenset({"classify"}), frozenset({"text"})),
    "MPlug2ForGrounding": Offer(frozenset({"ground"}), frozenset({"image"})),
    "MPlug2ForPreTraining": Offer(frozenset({"caption", "answer", "rank", "classify"}), frozenset({"image", "video"})),
}
"""Class of the model -> its offer."""

COMPARING = ("MPlug2ForRetrieval", "MPlug2ForPreTraining")
"""Classes that choose among labels by similarity."""

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class MPlug2Skills:
    """See `plait.assistant.skills.Skills`.

    The model has, as far as its class offers the task:
    `generate(pixel_values= | pixel_values_videos=, [input_ids=, attention_mask=], [num_beams=, min_length=,
    max_length=])` -> ids (batch, length); `rank_answers(answer_ids=, answer_mask=, ...the same)` -> `RankedAnswers`;
    `ground(pixel_values=, input_ids=, attention_mask=)` -> boxes (batch, 4) as (cx, cy, w, h); a forward with `.logits`
    and `config.id2label`; `get_image_features`, `get_video_features`, `get_text_features` and `temperature()`.
    A model with `config.instructions` is told what to do as in its training. Raises ValueError for a class or task
    without an offer.
    """

    def __init__(self, model: Any, processor: MPlug2Processor) -> None:
        self.name = type(model).__name__
        if self.name not in OFFERS:
            raise ValueError(
                f"expected one of {', '.join(OFFERS)}, got {self.name}; load the directory as one of these classes"
            )
        self.model, self.processor = model, processor
        self.writer = model.writer() if self.name == "MPlug2ForPreTraining" else model
        self.instructed = bool(getattr(model.config, "instructions", False))
        self.tasks, self.kinds = _offered(self.name, model.config)
        self.num_frames = processor.num_frames
        has_head = self.name.endswith("Classification")
        self.labels = tuple(model.config.id2label[i] for i in sorted(model.config.id2label)) if has_head else ()

    def prepare(self, kind: str, value: Image | Sequence[Image] | str) -> Tensor | str:
        """A picture -> (3, side, side), frames -> (3, time, side, side); a text stays."""
        if isinstance(value, str):
            return value
        return self.processor.pixels(value) if isinstance(value, Image) else self.processor.clip(value)

    def check_text(self, text: str) -> None:
        """Raise ValueError for a text over the processor's limit."""
        self.processor.tokenize(self._asked("video", [text]) if text.strip() else [text])

    def caption(self, kind: str, prepared: Sequence[Tensor], options: Mapping[str, Any]) -> list[str]:
        """Beam search from the media alone, or from them and the instruction to describe them."""
        asked = self._tokens([instruct("caption", _medium(kind))] * len(prepared)) if self.instructed else {}
        ids = self.writer.generate(**self._pixels(kind, prepared), **asked, **options)
        return [self.processor.decode_text(row) for row in ids]

    def answer(
        self, kind: str, prepared: Sequence[Tensor], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """Beam search from media and question."""
        asked = self._tokens(self._asked(kind, questions))
        ids = self.writer.generate(**self._pixels(kind, prepared), **asked, **options)
        return [self.processor.decode_text(row) for row in ids]

    def rank(
        self, kind: str, prepared: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """Every answer by its likelihood."""
        return self._ranked(answers, **self._pixels(kind, prepared), **self._tokens(self._asked(kind, questions)))

    def ground(self, prepared: Sequence[Tensor], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """Boxes as shares of width and height."""
        boxes = self.model.ground(**self._pixels("image", prepared), **self._tokens(phrases))
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in corners(boxes).clamp(0, 1).tolist()]

    def classify(
        self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """By the head, by similarity to the labels as texts, or by the likelihood of the labels as captions."""
        if self.labels:
            if labels is not None:
                raise ValueError(f"expected no labels for {self.name}, got some; its head has its own")
            inputs = self._tokens(prepared) if kind == "text" else self._pixels(kind, prepared)
            return _best_first(self.model(**inputs).logits.float().softmax(-1), self.labels)
        if labels is None:
            raise ValueError(f"expected labels to choose from for {self.name}, got none; give some")
        if self.name not in COMPARING:
            asked = self._tokens([instruct("classify", _medium(kind))] * len(prepared)) if self.instructed else {}
            return self._ranked(labels, **self._pixels(kind, prepared), **asked)
        features = getattr(self.model, f"get_{kind}_features")(**self._pixels(kind, prepared))
        texts = self.model.get_text_features(**self._tokens(labels))
        return _best_first((features @ texts.T / self.model.temperature()).float().softmax(-1), labels)

    def _ranked(self, answers: Sequence[str], **inputs: Tensor) -> list[list[tuple[str, float]]]:
        targets = self.processor.answers(answers)
        ids, mask = (targets[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        found = self.writer.rank_answers(answer_ids=ids, answer_mask=mask, **inputs)
        rows = zip(found.indices.tolist(), found.probabilities.tolist(), strict=True)
        return [[(answers[i], share) for i, share in zip(*row, strict=True)] for row in rows]

    def _asked(self, kind: str, questions: Sequence[str]) -> list[str]:
        return [instruct("answer", _medium(kind), question, enabled=self.instructed) for question in questions]

    def _pixels(self, kind: str, prepared: Sequence[Tensor]) -> dict[str, Tensor]:
        return {_PIXELS[kind]: torch.stack(list(prepared)).to(self.model.device, self.model.dtype)}

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.processor.tokenize(texts)
        known = getattr(self.model.config, "vocab_size", None)
        if known is not None and int(tokens["input_ids"].max()) >= known:
            raise ValueError(
                f"expected ids below {known}, got a vocabulary of {len(self.processor.tokenizer)}; save the processor "
                "with the vocabulary of the model"
            )
        return {name: value.to(self.model.device) for name, value in tokens.items()}


def _offered(name: str, config: Any) -> Offer:
    """What a class offers in a configuration, which may have fewer parts and media than the class knows."""
    tasks, kinds = OFFERS[name]
    task, media = getattr(config, "task", None), getattr(config, "modalities", kinds)
    if task == "caption":
        tasks -= {"answer", "rank"}
    elif task in ("entail", "compare"):
        raise ValueError(f"expected a model for single items, got one to {task}; call it with text and pictures itself")
    return Offer(tasks, frozenset(kind for kind in kinds if kind == "text" or kind in media))


def _medium(kind: str) -> Medium:
    return "video" if kind == "video" else "image"


def _best_first(probabilities: Tensor, labels: Sequence[str]) -> list[list[tuple[str, float]]]:
    shares, places = probabilities.sort(dim=-1, descending=True, stable=True)
    return [
        [(labels[i], share) for i, share in zip(*row, strict=True)]
        for row in zip(places.tolist(), shares.tolist(), strict=True)
    ]
