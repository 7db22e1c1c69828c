"""Trained heads of our families that read words beside a picture, several pictures or a sound.

Ask(words, pictures | sound) | one medium | a text | a pair of texts -> inputs of the family -> scores of classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from plait.embedder.items import parts_of
from plait.evaluation.adapters import Named
from plait.evaluation.runners import Ask
from plait.evaluation.tasks import Capability
from plait.media.audio import load_audio
from plait.media.image import load_image

BOX = 4
"""Outputs of a grounding head."""


class _Head(Named):
    """A model of ours with a classification head. pair: model and processor, already open."""

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        model, self.processor = pair
        super().__init__(place, config, model.eval())
        names = model.config.id2label or {}
        self.class_words = tuple(str(names[key]) for key in sorted(names))

    def _scores(self, inputs: Mapping[str, Any]) -> np.ndarray:
        with torch.inference_mode():
            found = self.model(**self.placed(inputs))
        return found["logits"].float().cpu().numpy()


class OnePeaceHead(_Head):
    """ONE-PEACE with a head: answers, statements about two pictures, sounds and their tags, choices, boxes."""

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        super().__init__(place, config, pair)
        self.capabilities: tuple[Capability, ...] = ("decide",)
        if not self.model.config.use_two_images:
            self.capabilities = ("classify", "decide")
        if self.model.config.num_classes == BOX:
            self.capabilities = ("ground", *self.capabilities)

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """One medium or text each, all of one kind -> scores (n, classes), before any softmax or sigmoid."""
        parts = [parts_of(one)[0] for one in inputs]
        kind = parts[0].modality
        if kind == "text":
            return self._scores(self.processor(text=[part.value for part in parts]))
        if kind == "image":
            return self._scores(self.processor(images=[load_image(part.value) for part in parts]))
        if kind == "audio":
            read = self._heard([part.value for part in parts])
            return self._scores({"input_values": read["input_values"], "audio_attention_mask": read["attention_mask"]})
        raise ValueError(f"expected pictures, sounds or texts for {self.name}, got {kind}: {parts[0].name}")

    def decide(self, asks: Sequence[Ask]) -> np.ndarray:
        """Words beside one picture, two, or a sound -> scores (n, classes). Words start with a space, as released."""
        words = [f" {ask.words.strip()}" for ask in asks]
        if asks[0].audio is not None:
            read = self._heard([ask.audio for ask in asks])
            text = self.processor(text=words)
            heard = {"input_values": read["input_values"], "audio_attention_mask": read["attention_mask"]}
            return self._scores({**text, **heard})
        count = 2 if self.model.config.use_two_images else 1
        if wrong := next((ask for ask in asks if len(ask.images) != count), None):
            raise ValueError(f"expected {count} pictures per item for {self.name}, got {len(wrong.images)}")
        inputs = dict(self.processor(images=[load_image(ask.images[0]) for ask in asks], text=words))
        if count == 2:
            second = self.processor(images=[load_image(ask.images[1]) for ask in asks])
            inputs["second_pixel_values"] = second["pixel_values"]
        return self._scores(inputs)

    def ground(self, asks: Sequence[Ask]) -> np.ndarray:
        """Boxes (n, 4) as fractions of width and height: the sigmoid of the four outputs."""
        return 1 / (1 + np.exp(-self.decide(asks)))

    def _heard(self, sounds: Sequence[Any]) -> Mapping[str, Any]:
        rate = self.processor.sampling_rate
        return self.processor(audio=[load_audio(one, sampling_rate=rate) for one in sounds], sampling_rate=rate)


class MPlug2Head(_Head):
    """mPLUG-2 for texts and pairs of texts (GLUE), and for statements about pictures (NLVR2, SNLI-VE)."""

    def __init__(self, place: str, config: Mapping[str, Any], pair: tuple[Any, Any]) -> None:
        super().__init__(place, config, pair)
        reads_text = self.model.config.task in (None, "classify")
        self.capabilities: tuple[Capability, ...] = ("classify",) if reads_text else ("decide",)

    def class_scores(self, inputs: Sequence[Any]) -> np.ndarray:
        """Texts or pairs of texts -> probabilities (n, classes); one score (n, 1) of a head for numbers."""
        first, second = zip(*((one, None) if isinstance(one, str) else one for one in inputs))
        pairs = None if second[0] is None else list(second)
        return _shares(self._scores(self.processor.tokenize(list(first), pairs, truncation=True)))

    def decide(self, asks: Sequence[Ask]) -> np.ndarray:
        """Statements, each about as many pictures as the model compares -> probabilities (n, classes)."""
        count = self.model.config.num_images if self.model.config.task == "compare" else 1
        if wrong := next((ask for ask in asks if len(ask.images) != count), None):
            raise ValueError(f"expected {count} pictures per item for {self.name}, got {len(wrong.images)}")
        pictures = [torch.stack([self.processor.pixels(load_image(image)) for image in ask.images]) for ask in asks]
        pixels = torch.stack(pictures)  # (n, count, 3, side, side)
        inputs = self.processor.tokenize([ask.words for ask in asks], truncation=True)
        return _shares(self._scores({**inputs, "pixel_values": pixels if count > 1 else pixels[:, 0]}))


def _shares(logits: np.ndarray) -> np.ndarray:
    if logits.shape[1] == 1:
        return logits
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
