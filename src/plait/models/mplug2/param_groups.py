"""Which mPLUG-2 parameters decay and which learn slower (specification 12).

Two learning rates: the vision encoder learns ten times slower than the rest (2e-6 beside 2e-5).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

VISION_SCALE = 0.1
WEIGHT_DECAY = 0.02

_TABLES = ("position_embedding", "positional_embedding", "class_embedding", "cls_embedding", "latents")


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies to a parameter: not to biases, norms, position tables, class tokens and latents."""
    return ndim > 1 and not any(part in name for part in _TABLES)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float = WEIGHT_DECAY,
    vision: str = "vision",
    vision_scale: float = VISION_SCALE,
) -> list[dict[str, Any]]:
    """Groups of trainable parameters with one weight decay and one learning-rate scale each.

    vision: the first part of the names in the vision encoder (after a `model.`), scaled by `vision_scale`.
    Returns dicts with `params`, `names`, `weight_decay` and `lr_scale`, in the order in which they are first met.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay = weight_decay if decays(name, parameter.ndim) else 0.0
        scale = vision_scale if name.removeprefix("model.").startswith(f"{vision}.") else 1.0
        empty = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        group = groups.setdefault((decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def official_group(name: str) -> str:
    """Where the released optimiser puts a parameter of the official layout: `lr1_decay`, `lr2_nodecay`, ... or `none`.

    Its exemption goes by name, "bias" and "LayerNorm.weight", so CLIP's `ln_*`, the visual norm, embeddings and latents
    decay. Momentum copies are listed but frozen, except the fusion encoder's, which is neither updated nor frozen, and
    the vision encoder's, which both filters miss.
    """
    module = name.partition(".")[0]
    if module == "visual_encoder_m":
        return "none"
    rate = "lr2" if module == "visual_encoder" else "lr1"
    decay = "nodecay" if "bias" in name or "LayerNorm.weight" in name else "decay"
    frozen = "_frozen" if module.endswith("_m") and module != "fusion_encoder_m" else ""
    return f"{rate}_{decay}{frozen}"
