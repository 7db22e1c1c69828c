"""The registry of runners: (system, kind) -> function from a `Case` to our values for its outputs.

The longest registered kind that begins the name of a case picks its runner (`plait.parity.run.find`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from plait.parity.cases import Case


class Tolerance(NamedTuple):
    """Largest accepted error of one value: `absolute + relative * |expected|`, of integers `steps`."""

    absolute: float
    relative: float
    steps: int = 0


@dataclass(frozen=True)
class NotRun:
    """Stands for an output that could not be computed here, and says why.

    Args:
        verdict: `absent` (a file that this copy of the goldens leaves out), `later` (an issue brings its runner) or
            `unavailable` (an installed copy has no runner of it).
        reason: one sentence.
    """

    verdict: Literal["absent", "later", "unavailable"]
    reason: str


class Quirk(NamedTuple):
    """Outputs of a kind that are right only with a quirk of the official code.

    Args:
        outputs: patterns of their names.
        what: the quirk.
        judged_by: tests that judge what Plait does instead.
    """

    outputs: tuple[str, ...]
    what: str
    judged_by: str


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

    Args:
        system, kind: the cases it serves; a kind is the beginning of their names.
        function: from a `Case` to our values.
        tolerance: patterns of output names -> what CASE.md allows.
        properties: patterns of outputs that are random draws, held against `check` instead of stored values.
        check: the violated properties of our values.
        config_outputs, json_inputs: as in `Case`.
    """

    system: str
    kind: str
    function: RunFunction
    tolerance: Mapping[str, Tolerance] = field(default_factory=dict)
    properties: tuple[str, ...] = ()
    check: PropertyCheck | None = None
    config_outputs: tuple[str, ...] = ()
    json_inputs: tuple[str, ...] = ()


REGISTRY: dict[tuple[str, str], Runner] = {}


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
    """Register the decorated function for cases of `kind`; one function may serve several kinds.

    Arguments are those of `Runner`.

    Raises:
        ValueError: for properties without a check, and for a second runner of a kind.

    Example:
        >>> @runner("my_system", "add")
        ... def add(case):
        ...     return {"out.sum": case.inputs["a"] + case.inputs["b"]}
    """
    if properties and check is None:
        raise ValueError(f"expected a check for the properties of {system} {kind}, got none; pass check=")

    def register(function: RunFunction) -> RunFunction:
        if (system, kind) in REGISTRY:
            raise ValueError(f"expected one runner for {system} {kind}, got a second; give it another kind")
        REGISTRY[system, kind] = Runner(
            system, kind, function, tolerance or {}, properties, check, config_outputs, json_inputs
        )
        return function

    return register
