"""State dicts that are read tensor by tensor, and the one strict way to put them into a module.

file -> LazyState (names known, tensors not yet read) -> KeyMap.forward -> load_strict(module, state)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

LISTED = 20
"""How many keys one error message names before it only counts the rest."""


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are made when asked for: `{key: function without arguments}`.

    Looking at keys reads nothing, so tensors that nobody takes cost no memory. Nothing is cached.
    `{**state, "more": tensor}` or `dict(state)` give an ordinary dict.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, key: str) -> Tensor:
        return self._readers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, key: object) -> bool:
        return key in self._readers

    def select(self, keys: Iterable[str]) -> LazyState:
        """The same state with `keys` only, still unread. Raises KeyError for a key that is not there."""
        return LazyState({key: self._readers[key] for key in keys})

    def __repr__(self) -> str:
        return f"LazyState({len(self)} tensors)"


class StateError(ValueError):
    """Keys of a state dict that do not fit; `keys` names all of them, the message the first twenty."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


def listed(names: Sequence[str]) -> str:
    """`a, b, c` and how many more there are."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def meta_state(shapes: Mapping[str, Sequence]) -> dict[str, Tensor]:
    """Tensors without memory from a key list `{key: [shape, dtype name]}`, for rules tried on shapes only."""
    return {
        key: torch.empty(tuple(shape), dtype=getattr(torch, dtype.removeprefix("torch.")), device="meta")
        for key, (shape, dtype) in shapes.items()
    }


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    optional: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    assign: bool = False,
) -> tuple[str, ...]:
    """Put `state` into `module`, one tensor at a time; every key and shape must agree.

    Args:
        optional: keys of the module that the state may lack; they keep their values.
        dtype: cast floating tensors to it; without it copies take the module's own dtype, assigned ones the file's.
        assign: make the tensors themselves the module's parameters (needed for modules on the meta device) instead of
            copying into them.

    Returns the optional keys that were absent, in the module's order.
    Raises StateError, listing missing, unexpected and misshapen keys; the module is unchanged then.
    """
    own = module.state_dict()
    absent = [key for key in own if key not in state]
    allowed = set(optional)
    missing = [key for key in absent if key not in allowed]
    unexpected = [key for key in state if key not in own]
    # Shapes are compared only where names agree: reading a tensor is what costs.
    misshapen = {
        key: (tuple(value.shape), tuple(state[key].shape))
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    }
    _raise_unless_fitting(missing, unexpected, misshapen)
    present = [key for key in own if key in state]
    if assign:
        module.load_state_dict({key: _cast(state[key], dtype) for key in present}, strict=False, assign=True)
    elif any(own[key].is_meta for key in present):
        raise ValueError("expected a module with memory, got one on the meta device; pass assign=True")
    else:
        for key in present:
            own[key].copy_(_cast(state[key], dtype))
    return tuple(key for key in absent if key in allowed)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _raise_unless_fitting(
    missing: list[str], unexpected: list[str], misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {listed(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {listed(unexpected)}")
    if misshapen:
        shapes = [f"{key} expected {want} got {got}" for key, (want, got) in misshapen.items()]
        parts.append(f"{len(misshapen)} misshapen: {listed(shapes)}")
    if parts:
        message = "expected weights that fit the module, got " + "; ".join(parts)
        raise StateError(
            message + "; check that file and configuration belong together", [*missing, *unexpected, *misshapen]
        )
