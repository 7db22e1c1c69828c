"""The modalities that a user adds: what a name stands for, so that nothing above media and the adapters knows names.

file | array --load--> value --process--> tensors --adapter--> tokens, mask, attention biases -> trunk

`text`, `image`, `video` and `audio` are built in: `plait.media` loads them, each family has their processors and
adapters. Others come by the user's own hand: a file with a class under `@modality("name")` (or a call of `register`),
brought in by `plait.use("my_file.py")`, or an installed package that names such a module among the entry points
`plait.modalities` (name = module). A model directory stores the name of a modality and its weights; the name imports
nothing but what was installed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from plait.errors import UsageError, installed
from plait.types import MODALITIES, Sample


@dataclass(frozen=True)
class Registered:
    """A modality that a user added.

    load: a path, bytes or object already decoded -> a value, such as an array; process: values -> the arguments of the
    adapter by name, tensors with one row per value; adapter: the family's configuration -> a fresh
    `plait.nn.adapters.Adapter` of its width; suffixes: endings of its files, such as `.mid`; example: the smallest
    thing that `load` takes, where there is one: widths are checked with it before anything trains.
    """

    name: str
    load: Callable[[Any], Any]
    process: Callable[[Sequence[Any]], Mapping[str, Any]]
    adapter: Callable[[Any], Any]
    suffixes: tuple[str, ...] = ()
    example: Callable[[], Any] | None = None


AdapterClass = TypeVar("AdapterClass", bound=type)

_REGISTRY: dict[str, Registered] = {}


def register(
    name: str,
    *,
    load: Callable[[Any], Any],
    process: Callable[[Sequence[Any]], Mapping[str, Any]],
    adapter: Callable[[Any], Any],
    suffixes: Sequence[str] = (),
    example: Callable[[], Any] | None = None,
) -> Registered:
    """Add a modality; see `Registered`. The same module may say it anew, as a notebook does.

    Raises UsageError for a name that is no word or built in, since it becomes a part of the names of weights, and for
    one that another module has.
    """
    if not name.isidentifier() or name in MODALITIES:
        raise UsageError(f"expected a new word for a modality, other than {', '.join(MODALITIES)}, got {name!r}")
    if name in _REGISTRY and (before := _REGISTRY[name].adapter.__module__) != adapter.__module__:
        raise UsageError(f"expected one file that registers {name}, got {before} and {adapter.__module__}; use one")
    endings = tuple(suffix.lower() for suffix in suffixes)
    if isinstance(suffixes, str) or not all(ending.startswith(".") and len(ending) > 1 for ending in endings):
        raise UsageError(f"expected endings of files such as ('.mid',) for {name}, got {suffixes!r}")
    _REGISTRY[name] = Registered(name, load, process, adapter, endings, example)
    return _REGISTRY[name]


PARTS = ("load", "process", "forward")
"""What a class under `modality` must have: two static methods and the adapter's own forward pass."""


def modality(name: str, *, suffixes: Sequence[str] = ()) -> Callable[[AdapterClass], AdapterClass]:
    """A decorator that adds a modality: an adapter class with a loader and a processor.

    Args:
        name: a new word.
        suffixes: endings of its files, by which folders and manifests know them.

    Returns:
        What registers a class and gives it back. The class is built with the family's configuration, has static
        methods `load(value)` and `process(values)`, `forward(**processed) -> Adapted`, and may have static
        `example()`, see `Registered`.

    Raises:
        UsageError: for a class that lacks a part, and as `register`.

    Example:
        >>> @modality("depth", suffixes=(".depth",))
        ... class Depth(nn.Module):
        ...     def load(self): ...
        ...     def process(self): ...
        ...     def forward(self, **processed): ...
    """

    def add(adapter: AdapterClass) -> AdapterClass:
        parts: Any = adapter
        if missing := [part for part in PARTS if not callable(getattr(parts, part, None))]:
            raise UsageError(f"expected an adapter class with {', '.join(PARTS)} for {name}, got none of {missing}")
        example = getattr(parts, "example", None)
        register(name, load=parts.load, process=parts.process, adapter=parts, suffixes=suffixes, example=example)
        return adapter

    return add


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
    if name in MODALITIES:
        # which no package can claim, and looking through all packages takes a while
        return False
    if name not in _REGISTRY and (home := installed("plait.modalities", name)) is not None:
        import_module(home)
    return name in _REGISTRY


def names() -> tuple[str, ...]:
    """All modalities that there are: the built-in ones, and those that a user added."""
    return (*MODALITIES, *_REGISTRY)


def own(found: Iterable[str]) -> list[str]:
    """Of some modalities those that a user added, in order."""
    return [name for name in found if name not in MODALITIES and is_registered(name)]


def of_suffix(path: str | Path) -> str | None:
    """The modality that a user added for files of this ending; None where nobody did."""
    ending = Path(path).suffix.lower()
    return next((name for name, one in _REGISTRY.items() if ending in one.suffixes), None)


def in_files(row: Mapping[str, Any]) -> list[str]:
    """Of the modalities that users added those for which a row names a file, by its ending."""
    return [
        name
        for name, one in _REGISTRY.items()
        if isinstance(row.get(name), str | Path) and Path(row[name]).suffix.lower() in one.suffixes
    ]


def held(sample: Sample) -> dict[str, Any]:
    """What a row holds of each modality, in order; a user's own lies among its other fields, under its name."""
    own = {name: sample.meta[name] for name in _REGISTRY if sample.meta.get(name) is not None}
    return {name: getattr(sample, name) for name in sample.modalities} | own


def in_order(names: Iterable[str]) -> list[str]:
    """Names of modalities in the order used everywhere: the built-in ones, then others as they come."""
    given = list(dict.fromkeys(names))
    return [m for m in MODALITIES if m in given] + [m for m in given if m not in MODALITIES]
