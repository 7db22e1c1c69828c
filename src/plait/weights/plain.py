"""Plain data out of what a pickle held: configurations written as omegaconf, argparse, enum or numpy objects.

dict | list | StandIn -> to_plain -> dict, list, str, int, float, bool, None
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from plait.weights.standins import StandIn

MAX_NODES = 100_000
MAX_DEPTH = 64
_SCALAR = str | int | float | bool | None


class NotPlainError(ValueError):
    """A value that has no plain form."""


def to_plain(value: Any) -> Any:
    """`value` with every stand-in replaced by the data it held.

    omegaconf nodes give their content, argparse.Namespace its attributes, enum members their value, paths their text,
    numpy scalars a number. Raises NotPlainError for anything else, naming its class, and for values too deep or large.
    """
    return _Plain().convert(value, MAX_DEPTH)


class _Plain:
    def __init__(self) -> None:
        # Shared values are visited once per use: without a bound a short pickle could unfold into a huge one.
        self.left = MAX_NODES

    def convert(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth < 0:
            raise NotPlainError(f"expected at most {MAX_NODES} values and {MAX_DEPTH} levels, got more")
        if isinstance(value, _SCALAR):
            return value
        if isinstance(value, dict):
            if not all(isinstance(key, _SCALAR) for key in value):
                raise NotPlainError("expected plain keys, got others")
            return {str(key): self.convert(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.convert(item, depth - 1) for item in value]
        if isinstance(value, StandIn):
            return self.stand_in(value, depth)
        raise NotPlainError(f"expected plain data, got {getattr(value, 'name', type(value).__name__):.80}")

    def stand_in(self, value: StandIn, depth: int) -> Any:
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if isinstance(state, dict) and value.name.startswith("omegaconf."):
            for content in ("_content", "_val"):
                if content in state:
                    return self.convert(state[content], depth - 1)
        if isinstance(state, dict) and value.name == "argparse.Namespace":
            return self.convert(state, depth - 1)
        if value.name.startswith("pathlib.") and all(isinstance(arg, str) for arg in value.args):
            return str(PurePosixPath(*value.args))
        if value.name.endswith("multiarray.scalar"):
            return _numpy_scalar(value)
        if len(value.args) == 1 and state is None and not value.items and isinstance(value.args[0], _SCALAR):
            return value.args[0]
        raise NotPlainError(f"expected plain data, got an object of {value.name:.80}")


def _numpy_scalar(value: StandIn) -> Any:
    kind = value.args[0] if value.args else None
    code = kind.args[0] if isinstance(kind, StandIn) and kind.name == "numpy.dtype" and kind.args else None
    raw = value.args[1] if len(value.args) > 1 else None
    if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code) or not isinstance(raw, memoryview):
        raise NotPlainError("expected a numpy number, got another numpy object")
    if code == "f1" or len(raw) != np.dtype(code).itemsize:
        raise NotPlainError("expected the bytes of a numpy number, got another length")
    return np.frombuffer(raw, np.dtype(code).newbyteorder("<"))[0].item()
