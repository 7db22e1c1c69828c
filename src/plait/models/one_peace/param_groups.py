"""Which ONE-PEACE parameters decay, at which learning-rate scale, and which a stage trains (specification 6.4, 6.5)."""

from __future__ import annotations

import re

_EMBEDDINGS = re.compile(
    r"(adapters\.(text|image|audio)\.cls_embedding|adapters\.(text|image)\.position_embedding"
    r"|decoder\.branches\.\w+\.(cls_embedding|position_embedding))$"
)
# A missing comma in the official list lets these two decay.
_OFFICIAL_SLIP = re.compile(r"decoder\.branches\.(text\.cls_embedding|image\.position_embedding)$")

STAGE2_TRAINABLE = (
    r"(model\.)?adapters\.audio\..*",
    r"(model\.)?trunk\.layers\.\d+\.mlp\.audio\..*",
    r"(model\.)?trunk\.norm\.audio\..*",
    r"(model\.)?projections\.audio\..*",
    r"(model\.)?logit_scale",
    r"decoder\..*",
)
"""What stage 2 trains: everything of audio, the temperature and the decoder; the rest of the encoder is frozen."""


def decays(name: str, ndim: int, *, official: bool = False) -> bool:
    """Whether weight decay applies to the parameter called `name` (Plait's layout)."""
    if ndim <= 1 or name.endswith(".bias"):
        return False
    if official and _OFFICIAL_SLIP.search(name):
        return True
    return not _EMBEDDINGS.search(name)


def layer_id(name: str, num_layers: int) -> int:
    """Depth of a parameter for layer-wise decay: adapters 0, layer i and its table i + 1, the rest num_layers + 1."""
    if table := re.search(r"adapters\.\w+\.bias\.tables\.(\d+)$", name):
        return int(table[1]) + 1
    if "adapters." in name:
        return 0
    if layer := re.search(r"^(?:model\.)?trunk\.layers\.(\d+)\.", name):
        return int(layer[1]) + 1
    return num_layers + 1
