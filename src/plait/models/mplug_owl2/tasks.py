"""What mPLUG-Owl2 is asked and what it trains: the skills of a `plait.Assistant`, and parameters of a stage by name.

question about a medium -> template -> generate | likelihoods                      (see `plait.generation.talking`)
model -> names -> freeze patterns, LoRA target modules, decay groups              (specification mPLUG-Owl2, section 10)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from plait.generation.talking import TalkingSkills
from plait.models.mplug_owl2.conversation import EVALUATION_GENERATION, IMAGE, VIDEO, evaluation_prompt
from plait.routing import PerModality
from plait.types import Ask, Decoding, Modality, Question, QuestionKind, as_words

RELEASED: dict[QuestionKind, str] = {
    "caption": "caption", "short": "vqa", "letters_with_hint": "mmbench", "yes_no": "mme",
}  # fmt: skip
"""Kind of question -> the prompt of the release."""


class MPlugOwl2Skills(TalkingSkills):
    """Questions are asked as they are, without the suffixes of benchmarks; captions as in the published evaluation.

    What `plait.Assistant` asks of a family: prompts around a question, settings, and losses of given answers.

    Args:
        model: an `MPlugOwl2ForConditionalGeneration`.
        processor: its `MPlugOwl2Processor`.

    Source:
        Specification mPLUG-Owl2, section 11.
    """

    family, describe = "mPLUG-Owl2", "Provide a one-sentence caption for the provided {kind}."
    name = "What is in this {kind}? Answer the question using a single word or phrase."
    abstractor = "model.abstractor"
    placeholders = {"image": IMAGE, "video": VIDEO}  # noqa: RUF012

    def prompt(self, kind: QuestionKind, item: Question) -> str:
        """The words of the released evaluation where it asks so; `layout` puts roles and images around.

        Args:
            kind: what is asked; a key of `RELEASED` takes the published prompt.
            item: the question with its choices and context.
        """
        if (task := RELEASED.get(kind)) is None:
            return super().prompt(kind, item)
        # The published prompt is one text; its roles and placeholder go, as `layout` writes them for any picture count.
        whole = evaluation_prompt(task, question=item.question or "", options=item.choices or (), hint=item.context)
        return whole.removeprefix(f"USER: {IMAGE}").removesuffix(" ASSISTANT: ")

    def decoding(self, kind: QuestionKind, medium: Modality) -> Decoding:
        """The settings of the released evaluation where it has such a question, all of them greedy.

        Args:
            kind: what is asked.
            medium: what it is asked about, for questions that were not published.
        """
        if (task := RELEASED.get(kind)) is None:
            return super().decoding(kind, medium)
        found = EVALUATION_GENERATION[task]
        lengths = (int(found["max_new_tokens"]), int(found["min_new_tokens"]))
        return Decoding(*lengths, length_penalty=found["length_penalty"])

    def dialogue(self, earlier: Sequence[tuple[str, str]], words: str) -> str:
        """Turns that are over, each ended as in training.

        Args:
            earlier: (question, answer) of every turn before.
            words: the question of the turn that is open.
        """
        return "".join(f"{asked} ASSISTANT: {answer}</s>USER: " for asked, answer in earlier) + words

    def layout(self, ask: Ask) -> str:
        """The released evaluation's conversation, which has no system line; frames of a video are images."""
        # The space behind "ASSISTANT:" is published for evaluation alone; chats end in the colon.
        return f"USER: {IMAGE * (len(ask.images) + len(ask.video))}{as_words(ask.words)} ASSISTANT: "

    def written(self, asked: Sequence[str]) -> list[str]:
        """Questions in the processor's template."""
        return [self.processor.conversation.prompt([(question, None)]) for question in asked]

    def answered(self, kind: str, item: Any, asked: str, answers: Sequence[str]) -> Any:
        """See `TalkingSkills.answered`; a video is a list of frames."""
        frames = [item] if kind == "image" else list(item) if kind == "video" else []
        asked = asked.replace(VIDEO, IMAGE * len(frames)) if kind == "video" else asked
        rows = self.processor.expanded([[(asked, answer)] for answer in answers])
        if frames:
            rows |= self.processor.image_processor(frames)
        return rows


TOWER, ABSTRACTOR = "model.vision.", "model.abstractor."


def pretraining_names(model: nn.Module) -> list[str]:
    """Parameters of the paper's first stage: tower, abstractor and the ways that images brought.

    Every weight that text goes through stays, so that the language model keeps what it knows.

    Args:
        model: an `MPlugOwl2ForConditionalGeneration`.

    Returns:
        Names of parameters, in the model's order.

    Source:
        arXiv 2311.04257, section 3; specification mPLUG-Owl2, section 10.

    Example:
        >>> from plait.models.mplug_owl2 import MPlugOwl2Config, MPlugOwl2ForConditionalGeneration
        >>> model = MPlugOwl2ForConditionalGeneration(MPlugOwl2Config.preset("nano"))
        >>> any(".text." in name for name in pretraining_names(model))
        False
    """
    added = [
        f"{name}.{way}."
        for name, module in model.named_modules()
        if isinstance(module, PerModality)
        for way in module
        if way != module.way_of.get("text")
    ]
    return [name for name, _ in model.named_parameters() if name.startswith((TOWER, ABSTRACTOR, *added))]


def without_tower(model: nn.Module) -> list[str]:
    """Parameters of the released fine-tuning script: everything but the vision tower.

    The paper trains the tower too; the script's `freeze_vision_model` is on (specification mPLUG-Owl2, section 10.3).
    """
    return [name for name, _ in model.named_parameters() if not name.startswith(TOWER)]


def lora_targets(model: nn.Module) -> list[str]:
    """Modules that LoRA adapts: every linear layer of the language model except its head.

    Use with `LoraConfig(target_modules=lora_targets(model), modules_to_save=lora_saved())`, which trains exactly LoRA
    and abstractor. The released script meant this and trained all base weights instead: it switched gradients on after
    it had added LoRA (specification mPLUG-Owl2, section 13, bug 7).
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith((TOWER, ABSTRACTOR, "lm_head"))
    ]


def lora_saved(train_vision: bool = False) -> list[str]:
    """Modules that train in full beside LoRA: the abstractor, and with `train_vision` the tower."""
    return ["abstractor", "vision"] if train_vision else ["abstractor"]


def decays(model: nn.Module) -> Callable[[str, Tensor], bool]:
    """A test `(name, parameter)` -> True for weight decay: all but biases and LayerNorms, as the released script does.

    RMS norms of the language model, tables and learned vectors do decay there.

    Args:
        model: whose layer norms are left out.
    """
    # RMSNorm is no nn.LayerNorm, so it is not among these.
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    return lambda name, parameter: "bias" not in name and name not in norms


def vision_depth(num_layers: int) -> Callable[[str], int]:
    """Depth of a parameter for layer-wise decay of learning rates in the tower.

    Args:
        num_layers: of the tower.

    Returns:
        A function of a parameter's name: 0 for the tower's inputs, l + 1 for its layer l, num_layers + 1 for its last
        norm and all the rest of the model.

    Source:
        The paper's decay of 0.9 per layer; the release has no code for it (specification mPLUG-Owl2, section 10).
    """

    def depth(name: str) -> int:
        if not name.startswith(TOWER):
            return num_layers + 1
        if name.startswith(f"{TOWER}layers."):
            return int(name.split(".")[3]) + 1
        return num_layers + 1 if "post_norm" in name else 0

    return depth
