"""What mPLUG-Owl2 offers a `plait.Assistant`; see `plait.generation.talking`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plait.generation.talking import TalkingSkills, summed_losses
from plait.models.mplug_owl2.conversation import IMAGE, VIDEO, Turn
from plait.models.mplug_owl2.model import IMAGE as IMAGE_MODALITY


class MPlugOwl2Skills(TalkingSkills):
    """Questions are asked as they are, without the suffixes of benchmarks; captions as in the published evaluation."""

    family, describe = "mPLUG-Owl2", "Provide a one-sentence caption for the provided {kind}."
    name = "What is in this {kind}? Answer the question using a single word or phrase."
    placeholders = {"image": IMAGE, "video": VIDEO}  # noqa: RUF012

    def written(self, asked: Sequence[str]) -> list[str]:
        """Questions in the processor's template."""
        return [self.processor.conversation.prompt([(question, None)]) for question in asked]

    def answer_losses(self, kind: str, item: Any, asked: str, answers: Sequence[str]) -> Tensor:
        """Every row shows the same, so it is read once."""
        frames = [item] if kind == "image" else list(item) if kind == "video" else []
        asked = asked.replace(VIDEO, IMAGE * len(frames)) if kind == "video" else asked
        turns: list[list[Turn]] = [[(asked, answer)] for answer in answers]
        rows = self.processor.expanded(turns).to(self.model.device)
        ids = rows["input_ids"]
        self.check_prompt(ids.shape[1])
        is_image = torch.eq(ids, self.model.config.image_token)
        embeds = self.model.model.token_embedding(ids.masked_fill(is_image, 0))
        if frames:
            pixels = self.processor.image_processor(frames)["pixel_values"].to(self.model.device)
            features = self.model.model.encode_images(pixels).flatten(0, 1).repeat(len(answers), 1)
            embeds = embeds.masked_scatter(is_image[..., None], features.to(embeds.dtype))
        modality_ids = is_image.long() * IMAGE_MODALITY
        found = self.model(inputs_embeds=embeds, attention_mask=rows["attention_mask"], modality_ids=modality_ids)
        return summed_losses(found.logits, rows["labels"])
