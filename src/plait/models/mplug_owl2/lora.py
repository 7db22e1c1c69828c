"""LoRA outputs of the released script: a base, adapters under official names, and what trained in full beside them.

official base state + `non_lora_trainables.bin` over it, then scale * B A per adapted weight -> official state
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from plait.models.mplug_owl2.weights import official_names
from plait.weights.files import read_checkpoint
from plait.weights.lora import read_adapter
from plait.weights.state import LazyState

IN_FULL = "non_lora_trainables.bin"


def with_lora(state: Mapping[str, Tensor], directory: str | Path) -> LazyState:
    """The official state `state` with the adapters of `directory` merged into it, tensor by tensor when read.

    Raises ValueError (StateError) where the directory holds no adapters or they belong to other weights.
    """
    adapter, file = read_adapter(directory), Path(directory) / IN_FULL
    readers: dict[str, Callable[[], Tensor]] = {key: partial(state.__getitem__, key) for key in state}
    if file.is_file():
        full = official_names(read_checkpoint(file).state)
        readers |= {key: partial(full.__getitem__, key) for key in full}
    return adapter.merged(LazyState(readers))


def with_adapter(state: LazyState, directory: str | Path) -> LazyState:
    """`with_lora` on a state as it lies in the file."""
    return with_lora(official_names(state), directory)
