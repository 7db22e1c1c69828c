"""Which parameters a stage trains, by name: the two stages of the paper, the released scripts, LoRA (section 9).

model -> names -> `plait.training.stages.freeze` patterns, LoRA target modules
"""

from __future__ import annotations

from torch import nn

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
