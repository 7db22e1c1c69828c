"""What mPLUG-Owl offers a `plait.Assistant`: descriptions, answers, and answers of a list by their likelihood.

decoded items -> prompt with a placeholder -> processor -> model.generate | token losses -> texts, probabilities
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch.nn import functional as F

from plait.models.mplug_owl.conversation import IMAGE, VIDEO, Turn, prompt
from plait.models.mplug_owl.processor import MPlugOwlProcessor

DESCRIBE = "Describe this {kind}."
NAME = "What is in this {kind}?"
MAX_NEW_TOKENS = 128
_PLACEHOLDERS = {"image": IMAGE, "video": VIDEO, "text": ""}


class MPlugOwlSkills:
    """See `plait.assistant.skills.Skills`."""

    tasks = frozenset({"caption", "answer", "rank", "classify"})
    kinds = frozenset({"image", "video", "text"})
    labels: tuple[str, ...] = ()

    def __init__(self, model: Any, processor: MPlugOwlProcessor) -> None:
        self.model, self.processor = model, processor
        self.num_frames = processor.num_frames

    def prepare(self, kind: str, value: Image | Sequence[Image] | str) -> Any:
        """As it is: pixels are made when the prompt is."""
        return value

    def check_text(self, text: str) -> None:
        """Raise ValueError for a text that leaves no room in the context."""
        length, context = len(self.processor.encode(text)), self.model.config.context
        if context is not None and length >= context:
            raise ValueError(f"expected a text of less than {context} pieces, got {length}; shorten it")

    def caption(self, kind: str, prepared: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
        """What the model says when it is asked to describe."""
        return self.answer(kind, prepared, [DESCRIBE.format(kind=kind)] * len(prepared), options)

    def answer(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """Greedy decoding, or beams where options ask for them; `max_length` counts the answer."""
        turns: list[list[Turn]] = [[(self._asked(kind, item, q), None)] for item, q in zip(prepared, questions)]
        batch = self.processor(text=[prompt(t) for t in turns], **self._media(kind, prepared)).to(self.model.device)
        given = {"num_beams": options.get("num_beams", 1), "max_new_tokens": options.get("max_length", MAX_NEW_TOKENS)}
        if "min_length" in options:
            given["min_new_tokens"] = options["min_length"]
        found = self.model.generate(**batch, do_sample=False, **given)
        return self.processor.batch_decode(found[:, batch["input_ids"].shape[1] :])

    def rank(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], answers: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """Every answer by its likelihood, its end included."""
        return [self._ranked(kind, item, question, answers) for item, question in zip(prepared, questions)]

    def classify(
        self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """Labels by their likelihood as the answer to what is there."""
        if labels is None:
            raise ValueError("expected labels to choose from for mPLUG-Owl, got none; give some")
        return self.rank(kind, prepared, [NAME.format(kind=kind)] * len(prepared), labels)

    def ground(self, prepared: Sequence[Any], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """mPLUG-Owl draws no boxes. Raises ValueError."""
        raise ValueError("expected a model that grounds phrases, got mPLUG-Owl; use an mPLUG-2 or ONE-PEACE one")

    @torch.no_grad()
    def _ranked(self, kind: str, item: Any, question: str, answers: Sequence[str]) -> list[tuple[str, float]]:
        asked = self._asked(kind, item, question)
        conversations: list[list[Turn]] = [[(asked, answer)] for answer in answers]
        rows = self.processor.supervised(conversations, **self._media(kind, [item] * len(answers)))
        rows = rows.to(self.model.device)
        for pixels, features in (("pixel_values", "image_features"), ("pixel_values_videos", "video_features")):
            if pixels in rows:  # every row shows the same: encode it once
                seen = rows.pop(pixels)
                once = self.model.encode(seen[: len(seen) // len(answers)])
                rows[features] = once.repeat(len(answers), 1, 1)
        labels = rows.pop("labels")
        logits = self.model(**rows).logits[:, :-1].float()
        losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
        shares, order = (-losses.sum(1)).softmax(0).sort(descending=True, stable=True)
        return [(answers[i], share) for i, share in zip(order.tolist(), shares.tolist())]

    def _asked(self, kind: str, item: Any, question: str) -> str:
        return f"{item}\n{question}" if kind == "text" else _PLACEHOLDERS[kind] + question

    def _media(self, kind: str, prepared: Sequence[Any]) -> dict[str, Any]:
        return {} if kind == "text" else {f"{kind}s": list(prepared)}
