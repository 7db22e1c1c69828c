"""What mPLUG-Owl is asked and what it trains: the skills of a `plait.Assistant`, and parameters of a stage by name.

question about a medium -> published conversation -> generate | likelihoods        (see `plait.generation.talking`)
model -> names -> `plait.training.stages.freeze` patterns, LoRA target modules     (specification mPLUG-Owl, section 9)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from plait.generation.talking import TalkingSkills
from plait.models.mplug_owl.conversation import IMAGE, VIDEO, prompt
from plait.types import Ask, as_words

DESCRIBE = "Describe this {kind}."


class MPlugOwlSkills(TalkingSkills):
    """Questions are asked in the published conversation.

    What `plait.Assistant` asks of a family: prompts around a question, settings, and losses of given answers.

    Args:
        model: an `MPlugOwlForConditionalGeneration`.
        processor: its `MPlugOwlProcessor`.

    Source:
        Specification mPLUG-Owl, section 8, the prompt template.
    """

    family, describe, name = "mPLUG-Owl", DESCRIBE, "What is in this {kind}?"
    frames = "centred"
    placeholders = {"image": IMAGE, "video": VIDEO}  # noqa: RUF012

    @property
    def has_clips(self) -> bool:
        """Whether the model has temporal modules, which published files of the video model alone have."""
        return self.model.config.temporal

    def dialogue(self, earlier: Sequence[tuple[str, str]], words: str) -> str:
        """Turns that are over, between the roles that `layout` writes around the last one.

        Args:
            earlier: (question, answer) of every turn before.
            words: the question of the turn that is open.
        """
        return "".join(f"{asked}\nAI: {answer}\nHuman: " for asked, answer in earlier) + words

    def layout(self, ask: Ask) -> str:
        """The released conversation, its system line first; every medium in a `Human:` line of its own.

        A video is one medium to a model with temporal modules, and so many images to one without.
        """
        clip = "" if not ask.video else VIDEO if self.has_clips else IMAGE * len(ask.video)
        return prompt([(IMAGE * len(ask.images) + clip + as_words(ask.words), None)])

    def written(self, asked: Sequence[str]) -> list[str]:
        """Questions as open conversations."""
        return [prompt([(question, None)]) for question in asked]

    def answered(self, kind: str, item: Any, asked: str, answers: Sequence[str]) -> Any:
        """See `TalkingSkills.answered`."""
        return self.processor.answered(asked, answers, **self.media(kind, [item]))


LANGUAGE = "language_model."
STAGE1 = {
    "all": ("vision.", "abstractor."),
    "abstractor": ("abstractor.",),
    # The end vector lies behind the projection, in the language model's space, so it goes with it.
    "projection": ("abstractor.proj.", "abstractor.temporal_proj.", "abstractor.end"),
}
"""What stage 1 may train: tower and abstractor as published, the abstractor alone, or its projection alone."""


def visual_names(model: nn.Module, what: str = "all") -> list[str]:
    """Parameters that the first stage trains; the language model stays.

    Args:
        model: an `MPlugOwlForConditionalGeneration`.
        what: `all` (tower and abstractor, as published), `abstractor`, or `projection`.

    Returns:
        Names of parameters, in the model's order.

    Raises:
        ValueError: for any other `what`.

    Source:
        arXiv 2304.14178, section 3; specification mPLUG-Owl, section 9, stage 1.

    Example:
        >>> from plait.models.mplug_owl import MPlugOwlConfig, MPlugOwlForConditionalGeneration
        >>> model = MPlugOwlForConditionalGeneration(MPlugOwlConfig.preset("nano"))
        >>> visual_names(model, "projection")
        ['abstractor.end', 'abstractor.proj.weight', 'abstractor.proj.bias']
    """
    if what not in STAGE1:
        raise ValueError(f"expected one of {', '.join(STAGE1)} to train, got {what!r}")
    return [name for name, _ in model.named_parameters() if name.startswith(STAGE1[what])]


def language_names(model: nn.Module) -> list[str]:
    """Parameters of the second stage without LoRA: the whole language model, embeddings and head included.

    The released script for full fine-tuning takes every name with `language_model` in it, and nothing else
    (specification mPLUG-Owl, section 9).
    """
    return [name for name, _ in model.named_parameters() if name.startswith(LANGUAGE)]


def lora_targets(model: nn.Module) -> list[str]:
    """Modules that LoRA adapts in the second stage, by name.

    Queries and values of a LLaMA, with r = 8 and alpha = 32 in the released script; the fused projection of a BLOOM, as
    its authors advise (specification mPLUG-Owl, sections 5.5 and 9).
    """
    # The tower's own projection has another name, and `name` must lie in the language model besides.
    wanted = ("q_proj", "v_proj", "query_key_value")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(LANGUAGE) and name.endswith(wanted)
    ]
