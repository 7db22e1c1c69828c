"""The modalities that a user adds: what a name stands for, so that nothing above media and the adapters knows names.

file | array --load--> value --process--> tensors --adapter--> tokens, mask, attention biases -> trunk

`text`, `image`, `video` and `audio` are built in: `plait.media` loads them, each family has their processors and
adapters. Others come by the user's own hand: a file that calls `register`, brought in by `plait.use("my_file.py")`, or
an installed package that names such a module among the entry points `plait.modalities` (name = module). A model
directory stores the name of a modality and its weights; the name imports nothing but what was installed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from plait.errors import UsageError, installed
from plait.types import MODALITIES, Sample


@dataclass(frozen=True)
class Registered:
    """A modality that a user added.

    load: a path, bytes or object already decoded -> a value, such as an array; process: values -> the arguments of the
    adapter by name, tensors with one row per value; adapter: the family's configuration -> a fresh
    `plait.nn.adapters.Adapter` of its width.
    """

    name: str
    load: Callable[[Any], Any]
    process: Callable[[Sequence[Any]], Mapping[str, Any]]
    adapter: Callable[[Any], Any]


_REGISTRY: dict[str, Registered] = {}


def register(
    name: str,
    *,
    load: Callable[[Any], Any],
    process: Callable[[Sequence[Any]], Mapping[str, Any]],
    adapter: Callable[[Any], Any],
) -> Registered:
    """Add a modality; see `Registered`. The same module may say it anew, as a notebook does.

    Raises UsageError for a name that is no word or built in, since it becomes a part of the names of weights, and for
    one that another module has.
    """
    if not name.isidentifier() or name in MODALITIES:
        raise UsageError(f"expected a new word for a modality, other than {', '.join(MODALITIES)}, got {name!r}")
    if name in _REGISTRY and (before := _REGISTRY[name].adapter.__module__) != adapter.__module__:
        raise UsageError(f"expected one file that registers {name}, got {before} and {adapter.__module__}; use one")
    _REGISTRY[name] = Registered(name, load, process, adapter)
    return _REGISTRY[name]


def registered(name: str) -> Registered:
    """The modality that a user added under this name. Raises UsageError where nobody did."""
    if not is_registered(name):
        known = ", ".join(_REGISTRY) or "none so far"
        raise UsageError(
            f"expected a modality that was added ({known}), got {name!r}; plait.use(...) the file that registers it"
        )
    return _REGISTRY[name]


def is_registered(name: str) -> bool:
    """Whether a user added a modality of this name, or installed a package that does."""
    if name not in _REGISTRY and (home := installed("plait.modalities", name)) is not None:
        import_module(home)
    return name in _REGISTRY


def names() -> tuple[str, ...]:
    """All modalities that there are: the built-in ones, and those that a user added."""
    return (*MODALITIES, *_REGISTRY)


def held(sample: Sample) -> dict[str, Any]:
    """What a row holds of each modality, in order; a user's own lies among its other fields, under its name."""
    own = {name: sample.meta[name] for name in _REGISTRY if sample.meta.get(name) is not None}
    return {name: getattr(sample, name) for name in sample.modalities} | own


def in_order(names: Iterable[str]) -> list[str]:
    """Names of modalities in the order used everywhere: the built-in ones, then others as they come."""
    given = list(dict.fromkeys(names))
    return [m for m in MODALITIES if m in given] + [m for m in given if m not in MODALITIES]
