"""What mPLUG-Owl is asked and what it trains: the skills of a `plait.Assistant`, and parameters of a stage by name.

question about a medium -> published conversation -> generate | likelihoods        (see `plait.generation.talking`)
model -> names -> `plait.training.stages.freeze` patterns, LoRA target modules     (specification mPLUG-Owl, section 9)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from plait.generation.talking import TalkingSkills, summed_losses
from plait.models.mplug_owl.conversation import IMAGE, VIDEO, prompt
from plait.processing.talking import Turn

DESCRIBE = "Describe this {kind}."


class MPlugOwlSkills(TalkingSkills):
    """Questions are asked in the published conversation."""

    family, describe, name = "mPLUG-Owl", DESCRIBE, "What is in this {kind}?"
    placeholders = {"image": IMAGE, "video": VIDEO}  # noqa: RUF012

    def dialogue(self, earlier: Sequence[tuple[str, str]], words: str) -> str:
        """Turns that are over, between the roles that `layout` writes around the last one."""
        return "".join(f"{asked}\nAI: {answer}\nHuman: " for asked, answer in earlier) + words

    def layout(self, words: str, pictures: int) -> str:
        """The released conversation without its system line; every picture in a line of its own."""
        return f"Human: {IMAGE}\n" * pictures + f"Human: {words}\nAI: "

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


LANGUAGE = "language_model."
STAGE1 = {
    "all": ("vision.", "abstractor."),
    "abstractor": ("abstractor.",),
    "projection": ("abstractor.proj.", "abstractor.temporal_proj.", "abstractor.end"),
}
"""What stage 1 may train: tower and abstractor as published, the abstractor alone, or its projection alone."""


def visual_names(model: nn.Module, what: str = "all") -> list[str]:
    """The first stage: the language model stays. what: a key of `STAGE1`, ValueError for any other."""
    if what not in STAGE1:
        raise ValueError(f"expected one of {', '.join(STAGE1)} to train, got {what!r}")
    return [name for name, _ in model.named_parameters() if name.startswith(STAGE1[what])]


def language_names(model: nn.Module) -> list[str]:
    """The second stage without LoRA: the whole language model, embeddings and head included, and nothing else."""
    return [name for name, _ in model.named_parameters() if name.startswith(LANGUAGE)]


def lora_targets(model: nn.Module) -> list[str]:
    """Modules that LoRA adapts in the second stage: queries and values of a LLaMA, the fused projection of a BLOOM."""
    wanted = ("q_proj", "v_proj", "query_key_value")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(LANGUAGE) and name.endswith(wanted)
    ]
