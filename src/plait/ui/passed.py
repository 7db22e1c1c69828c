"""Which modules an answer passed: seen while it was made, so true of every family and branch.

model -> hooks on its named parts -> answer -> Passed(name, times, parameters), in the order of first entry
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_DEPTH = 3
"""Names of up to so many parts: `model.vision`, `model.decoder.layers`; deeper ones are layers, hundreds of them."""


@dataclass(slots=True)
class Passed:
    """A module that was entered.

    Attributes:
        name: its path in the model.
        times: how often.
        parameters: numbers in it, with all below.
    """

    name: str
    times: int
    parameters: int


@contextmanager
def passing(model: nn.Module) -> Generator[list[Passed]]:
    """Note the modules that are entered while the context is open.

    Args:
        model: any; its hooks are gone afterwards.

    Yields:
        A list that fills as modules are entered. Copies per modality keep their way's name (`k_proj.visual`).
    """
    seen: dict[str, Passed] = {}
    listed: list[Passed] = []

    def note(name: str, module: nn.Module) -> Any:
        def enter(*_: Any) -> None:
            if name not in seen:
                seen[name] = Passed(name, 0, sum(one.numel() for one in module.parameters()))
                listed.append(seen[name])
            seen[name].times += 1

        return enter

    named = [(name, module) for name, module in model.named_modules() if name and name.count(".") < _DEPTH]
    # a layer of a list says less than the list: `layers.0` is left out, what is beside it stays
    hooks = [
        module.register_forward_pre_hook(note(name, module))
        for name, module in named
        if not any(part.isdigit() for part in name.split("."))
    ]
    try:
        yield listed
    finally:
        for hook in hooks:
            hook.remove()
