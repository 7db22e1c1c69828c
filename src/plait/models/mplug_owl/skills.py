"""What mPLUG-Owl offers a `plait.Assistant`; see `plait.generation.talking`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from plait.generation.talking import TalkingSkills, summed_losses
from plait.models.mplug_owl.conversation import IMAGE, VIDEO, Turn, prompt

DESCRIBE = "Describe this {kind}."


class MPlugOwlSkills(TalkingSkills):
    """Questions are asked in the published conversation."""

    family, describe, name = "mPLUG-Owl", DESCRIBE, "What is in this {kind}?"
    placeholders = {"image": IMAGE, "video": VIDEO}  # noqa: RUF012

    def written(self, asked: Sequence[str]) -> list[str]:
        """Questions as open conversations."""
        return [prompt([(question, None)]) for question in asked]

    def answer_losses(self, kind: str, item: Any, asked: str, answers: Sequence[str]) -> Tensor:
        """Every row shows the same, so it is encoded once."""
        conversations: list[list[Turn]] = [[(asked, answer)] for answer in answers]
        rows = self.processor.supervised(conversations, **self.media(kind, [item] * len(answers)))
        rows = rows.to(self.model.device)
        for pixels, features in (("pixel_values", "image_features"), ("pixel_values_videos", "video_features")):
            if pixels in rows:
                seen = rows.pop(pixels)
                rows[features] = self.model.encode(seen[: len(seen) // len(answers)]).repeat(len(answers), 1, 1)
        labels = rows.pop("labels")
        return summed_losses(self.model(**rows, use_cache=False).logits, labels)
