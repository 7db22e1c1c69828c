"""Which parameters a stage trains, by name: the two stages of the paper, the released script, LoRA (section 10).

model -> names -> `plait.training.stages.freeze` patterns, PEFT target modules, decay groups
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from plait.routing import PerModality

TOWER, ABSTRACTOR = "model.vision.", "model.abstractor."


def pretraining_names(model: nn.Module) -> list[str]:
    """The paper's first stage: tower, abstractor and the ways that images brought; the language model stays."""
    added = [
        f"{name}.{way}."
        for name, module in model.named_modules()
        if isinstance(module, PerModality)
        for way in module
        if way != module.way_of.get("text")
    ]
    return [name for name, _ in model.named_parameters() if name.startswith((TOWER, ABSTRACTOR, *added))]


def without_tower(model: nn.Module) -> list[str]:
    """The released fine-tuning script: everything but the vision tower."""
    return [name for name, _ in model.named_parameters() if not name.startswith(TOWER)]


def lora_targets(model: nn.Module) -> list[str]:
    """Modules that LoRA adapts: every linear layer of the language model except its head.

    Use with `LoraConfig(target_modules=lora_targets(model), modules_to_save=lora_saved(model))`, which trains exactly
    adapters and abstractor: the released script meant this and trained all base weights instead.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith((TOWER, ABSTRACTOR, "lm_head"))
    ]


def lora_saved(train_vision: bool = False) -> list[str]:
    """Modules that train in full beside LoRA adapters."""
    return ["abstractor", "vision"] if train_vision else ["abstractor"]


def decays(model: nn.Module) -> Callable[[str, Tensor], bool]:
    """A test `(name, parameter)` -> True for weight decay: all but biases and LayerNorms, as the released script does.

    RMS norms of the language model, tables and learned vectors do decay there.
    """
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    return lambda name, parameter: "bias" not in name and name not in norms


def vision_depth(num_layers: int) -> Callable[[str], int]:
    """Depth for layer-wise decay: 0 for the tower's inputs, l + 1 for its layer l, num_layers + 1 for the rest."""

    def depth(name: str) -> int:
        if not name.startswith(TOWER):
            return num_layers + 1
        if name.startswith(f"{TOWER}layers."):
            return int(name.split(".")[3]) + 1
        return num_layers + 1 if "post_norm" in name else 0

    return depth
