"""Published key lists, on shapes alone: list -> rules -> our names -> rules backwards -> every key with its shape."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.weights.files import listed
from plait.weights.keymap import KeyMap

INDEX_BUFFERS = ("an index buffer that the configuration determines", "an index buffer that nothing reads")
"""Why a key may stay away on the way back although nothing was lost."""


def read_list(path: Path) -> Any:
    """The decoded document of a key list."""
    return json.loads(gzip.decompress(path.read_bytes()))


def both_ways(
    shapes: Mapping[str, Sequence[int]],
    rules: KeyMap,
    *,
    lost: Iterable[str] = (),
    filled: Mapping[str, torch.Tensor] | None = None,
) -> bool | str:
    """True where every key of a list comes back with its shape and nothing else does, or else what does not.

    lost: reasons for which a key may be dropped for good; filled: state dict of a model on the meta device that the
    list must fill, names and shapes.
    """
    official = {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}
    try:
        native, report = rules.forward(official)
        back = rules.backward(native)
    except ValueError as error:
        return f"not explained: {error}"
    gone = {key for key, reason in report.dropped.items() if reason in set(lost)}
    wrong = [key for key in official if key not in gone and (key not in back or back[key].shape != official[key].shape)]
    wrong += [key for key in back if key not in official]
    for key, value in native.items():  # all layers of a stack are built alike
        if value.shape != native.get(re.sub(r"layers\.\d+\.", "layers.0.", key), value).shape:
            wrong.append(key)
    if filled is not None:
        wrong += [key for key in filled if key not in native or native[key].shape != filled[key].shape]
        wrong += [key for key in native if key not in filled]
    return True if not wrong else f"not both ways: {listed(wrong)}"
