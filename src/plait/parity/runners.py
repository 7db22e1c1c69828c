"""The registry of runners: (system, kind) -> function from a `Case` to our values for its outputs.

The longest registered kind that begins the name of a case picks its runner; kinds that no release has yet are written
in `plait.parity.later`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import plait
from plait.errors import UsageError
from plait.parity.cases import Case
from plait.parity.later import LATER

CLONE = "run from a checkout of the repository, installed with pip install -e ."


class Tolerance(NamedTuple):
    """Largest accepted error: `absolute + relative * |expected|`, of integers `steps`."""

    absolute: float
    relative: float
    steps: int = 0


@dataclass(frozen=True)
class NotRun:
    """Stands for an output that could not be computed here, and says why."""

    verdict: Literal["absent", "later", "unavailable"]
    reason: str


RunFunction = Callable[[Case], Mapping[str, Any]]
"""Returns our values: `out.NAME` tensors, `config.NAME` expected entries of config.json, `keys.NAME` (True, or a
`NotRun`) for key lists, and the top-level fields of the JSON document under their own names ("0", "1", ... of a list).
`valid.out.NAME` is a boolean tensor, broadcast from the left, of the positions that mean something: under other
attention implementations than eager only those are compared. A `NotRun` may stand for any output."""

PropertyCheck = Callable[[Case, Mapping[str, Any]], list[str]]
"""Returns the violated properties of our values, as sentences that start with the name of the output."""


@dataclass(frozen=True)
class Runner:
    """A function with what the comparison has to know about its kind.

    `tolerance` maps patterns of output names to what CASE.md allows. Outputs that match `properties` are random draws,
    held against `check` instead of stored values.
    """

    system: str
    kind: str
    function: RunFunction
    tolerance: Mapping[str, Tolerance] = field(default_factory=dict)
    properties: tuple[str, ...] = ()
    check: PropertyCheck | None = None
    config_outputs: tuple[str, ...] = ()
    json_inputs: tuple[str, ...] = ()


_REGISTRY: dict[tuple[str, str], Runner] = {}


def runner(
    system: str,
    kind: str,
    *,
    tolerance: Mapping[str, Tolerance] | None = None,
    properties: tuple[str, ...] = (),
    check: PropertyCheck | None = None,
    config_outputs: tuple[str, ...] = (),
    json_inputs: tuple[str, ...] = (),
) -> Callable[[RunFunction], RunFunction]:
    """Register the decorated function for cases of `kind`; one function may serve several kinds."""
    if properties and check is None:
        raise ValueError(f"expected a check for the properties of {system} {kind}, got none; pass check=")

    def register(function: RunFunction) -> RunFunction:
        if (system, kind) in _REGISTRY:
            raise ValueError(f"expected one runner for {system} {kind}, got a second; give it another kind")
        _REGISTRY[system, kind] = Runner(
            system, kind, function, tolerance or {}, properties, check, config_outputs, json_inputs
        )
        return function

    return register


GOLDEN_RUNNERS = "plait_golden_runners"
"""The name under which the directory of runners is imported, so that they can import one another."""


def home() -> Path | None:
    """Where the runners of golden cases lie: tests/parity beside `src` of a checkout, None for an installed copy."""
    source = Path(plait.__file__).resolve().parents[1]
    place = source.parent / "tests" / "parity"
    return place if source.name == "src" and place.is_dir() else None


def runner_module(name: str) -> ModuleType:
    """The file `name`.py among the runners of golden cases. Raises UsageError in an installed copy."""
    place = home()
    if place is None:
        raise UsageError(f"expected the runner {name}.py in tests/parity, got none; {CLONE}")
    if GOLDEN_RUNNERS not in sys.modules:
        package = ModuleType(GOLDEN_RUNNERS)
        package.__path__ = [str(place)]
        sys.modules[GOLDEN_RUNNERS] = package
    return import_module(f"{GOLDEN_RUNNERS}.{name}")


def load_runners(system: str) -> None:
    """Import the shipped runners and, in a checkout, those of a system: `<system>.py` and `<system>_*.py`."""
    import_module("plait.parity.shipped_runners")
    place = home()
    for path in sorted(place.glob(f"{system}*.py")) if place else ():
        if path.stem == system or path.stem.startswith(f"{system}_"):
            runner_module(path.stem)


def find(system: str, name: str) -> Runner | NotRun | None:
    """The runner of a case, `NotRun("later", ...)` for a kind still to come, or None where nobody knows the kind.

    In an installed copy, which has the runners of shipped cases only, the others are `unavailable`.
    """
    load_runners(system)
    known: dict[str, Runner | NotRun] = {
        kind: NotRun("later", f"issue {issue}") for kind, issue in LATER.get(system, {}).items()
    }
    known |= {r.kind: r for (of, _), r in _REGISTRY.items() if of == system}
    kinds = [kind for kind in known if name.startswith(kind)]
    if kinds:
        return known[max(kinds, key=len)]
    return None if home() else NotRun("unavailable", f"its runner lies in tests/parity; {CLONE}")
