"""What mPLUG-Owl2 offers a `plait.Assistant`: descriptions, answers, and answers of a list by their likelihood.

decoded items -> prompt with a placeholder -> processor -> model.generate | likelihoods -> texts, probabilities
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch.nn import functional as F

from plait.models.mplug_owl2.conversation import IMAGE, VIDEO, Turn
from plait.models.mplug_owl2.model import IMAGE as IMAGE_MODALITY
from plait.models.mplug_owl2.processor import MPlugOwl2Processor

DESCRIBE = "Provide a one-sentence caption for the provided {kind}."
NAME = "What is in this {kind}? Answer the question using a single word or phrase."
MAX_NEW_TOKENS = 128
NUM_FRAMES = 8
_PLACEHOLDERS = {"image": IMAGE, "video": VIDEO, "text": ""}


class MPlugOwl2Skills:
    """See `plait.assistant.skills.Skills`. Questions are asked as they are, without the suffixes of benchmarks."""

    tasks = frozenset({"caption", "answer", "rank", "classify"})
    kinds = frozenset({"image", "video", "text"})
    labels: tuple[str, ...] = ()
    num_frames = NUM_FRAMES

    def __init__(self, model: Any, processor: MPlugOwl2Processor) -> None:
        self.model, self.processor = model, processor

    def prepare(self, kind: str, value: Image | Sequence[Image] | str) -> Any:
        """As it is: pixels are made when the prompt is."""
        return value

    def check_text(self, text: str) -> None:
        """Raise ValueError for a text that leaves no room in the context."""
        length, context = len(self.processor.encode(text)), self.model.config.max_position_embeddings
        if length >= context:
            raise ValueError(f"expected a text of less than {context} pieces, got {length}; shorten it")

    def caption(self, kind: str, prepared: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
        """A sentence, asked for as in the published evaluation."""
        return self.answer(kind, prepared, [DESCRIBE.format(kind=kind)] * len(prepared), options)

    def answer(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], options: Mapping[str, Any]
    ) -> list[str]:
        """Greedy decoding, or beams where options ask for them; `max_length` counts the answer."""
        template = self.processor.conversation
        asked = [template.prompt([(_asked(kind, item, q), None)]) for item, q in zip(prepared, questions, strict=True)]
        batch = self.processor(text=asked, **_media(kind, prepared)).to(self.model.device)
        given = {"num_beams": options.get("num_beams", 1), "max_new_tokens": options.get("max_length", MAX_NEW_TOKENS)}
        if "min_length" in options:
            given["min_new_tokens"] = options["min_length"]
        found = self.model.generate(**batch, do_sample=False, **given)
        texts = self.processor.batch_decode(found[:, batch["input_ids"].shape[1] :])
        for stop in self.processor.stop_strings:
            texts = [text.partition(stop)[0].rstrip() for text in texts]
        return texts

    def rank(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], answers: Sequence[str]
    ) -> list[list[tuple[str, float]]]:
        """Every answer by its likelihood, its end included."""
        return [self._ranked(kind, item, q, answers) for item, q in zip(prepared, questions, strict=True)]

    def classify(
        self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """Labels by their likelihood as the answer to what is there."""
        if labels is None:
            raise ValueError("expected labels to choose from for mPLUG-Owl2, got none; give some")
        return self.rank(kind, prepared, [NAME.format(kind=kind)] * len(prepared), labels)

    def ground(self, prepared: Sequence[Any], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """mPLUG-Owl2 draws no boxes. Raises ValueError."""
        raise ValueError("expected a model that grounds phrases, got mPLUG-Owl2; use an mPLUG-2 or ONE-PEACE one")

    @torch.no_grad()
    def _ranked(self, kind: str, item: Any, question: str, answers: Sequence[str]) -> list[tuple[str, float]]:
        asked = _asked(kind, item, question)
        frames = [item] if kind == "image" else list(item) if kind == "video" else []
        asked = asked.replace(VIDEO, IMAGE * len(frames)) if kind == "video" else asked
        turns: list[list[Turn]] = [[(asked, answer)] for answer in answers]
        rows = self.processor.expanded(turns).to(self.model.device)
        labels, ids = rows["labels"], rows["input_ids"]
        is_image = torch.eq(ids, self.model.config.image_token)
        embeds = self.model.model.token_embedding(ids.masked_fill(is_image, 0))
        if frames:  # every row shows the same: it is read once
            pixels = self.processor.image_processor(frames)["pixel_values"].to(self.model.device)
            features = self.model.model.encode_images(pixels).flatten(0, 1).repeat(len(answers), 1)
            embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
        modality_ids = is_image.long() * IMAGE_MODALITY
        found = self.model(inputs_embeds=embeds, attention_mask=rows["attention_mask"], modality_ids=modality_ids)
        logits = found.logits[:, :-1].float().transpose(1, 2)
        losses = F.cross_entropy(logits, labels[:, 1:], reduction="none", ignore_index=-100)
        shares, order = (-losses.sum(1)).softmax(0).sort(descending=True, stable=True)
        return [(answers[i], share) for i, share in zip(order.tolist(), shares.tolist(), strict=True)]


def _asked(kind: str, item: Any, question: str) -> str:
    return f"{item}\n{question}" if kind == "text" else _PLACEHOLDERS[kind] + question


def _media(kind: str, prepared: Sequence[Any]) -> dict[str, Any]:
    return {} if kind == "text" else {f"{kind}s": list(prepared)}
