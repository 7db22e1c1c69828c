"""LoRA outputs of the released script: a base, adapters under official names, and what trained in full beside them.

official base state + scale * B A per adapted weight, then `non_lora_trainables.bin` over it -> official state
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from plait.models.mplug_owl2.weights import official_names
from plait.weights.files import read_checkpoint
from plait.weights.state import LazyState, StateError

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
IN_FULL = "non_lora_trainables.bin"


def with_lora(state: Mapping[str, Tensor], directory: str | Path) -> LazyState:
    """The official state `state` with the adapters of `directory` merged into it, tensor by tensor when read.

    Raises ValueError (StateError) where the directory holds no adapters or they belong to other weights.
    """
    directory = Path(directory)
    adapters = next((directory / name for name in ADAPTERS if (directory / name).is_file()), None)
    if adapters is None or not (directory / "adapter_config.json").is_file():
        raise ValueError(f"expected adapter_config.json and {' or '.join(ADAPTERS)} in {directory}, got others")
    settings = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    rank = settings["r"]
    scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    found = read_checkpoint(adapters).state
    readers: dict[str, Callable[[], Tensor]] = {key: partial(state.__getitem__, key) for key in state}
    if (directory / IN_FULL).is_file():
        full = official_names(read_checkpoint(directory / IN_FULL).state)
        readers |= {key: partial(full.__getitem__, key) for key in full}
    strangers = []
    for key in found:
        name = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        if ".lora_B." in key:
            continue
        if ".lora_A." not in key or name not in readers:
            strangers.append(key)
        else:
            readers[name] = partial(_merged, readers[name], found, key, scale)
    if strangers:
        raise StateError(
            f"expected adapters of this base, got {strangers[0]} and {len(strangers) - 1} others", strangers
        )
    return LazyState(readers)


def _merged(base: Callable[[], Tensor], found: Mapping[str, Tensor], key: str, scale: float) -> Tensor:
    weight, down, up = base(), found[key].float(), found[key.replace(".lora_A.", ".lora_B.")].float()
    return (weight.float() + scale * (up @ down)).to(weight.dtype)
