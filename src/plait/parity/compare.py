"""Comparison of our values with stored ones: actual + stored -> errors per output -> verdict of the case.

Floating-point values: |ours - stored| <= absolute + relative * |stored|. Integers, booleans, strings: equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from plait.parity.cases import Case, fields_of, is_input, read_json
from plait.parity.runners import NotRun, Quirk, Runner, Tolerance

# Float64 against float32 of the official code alone moves logits by 4e-6 to 8e-6, a wrong eps by 3e-4 and more
# (specification mPLUG-Owl2, section 15): 2e-5 tells one from the other.
FLOAT32 = Tolerance(2e-5, 1e-4)
GRADIENT = Tolerance(1e-5, 1e-3)
HALF_PRECISION = {"bfloat16": 0.15, "float16": 0.03}
"""Error in half precision, which no golden case was computed in, as a share of the largest value of an output.

The random weights of golden cases amplify rounding far more than trained ones: this only tells noise from mistakes."""
ACCELERATOR_FACTOR = 5.0
"""Golden cases are CPU results; kernels of accelerators add in another order."""
UNCOVERED = object()
"""Stands for an output that a runner left out; None would be a value of JSON."""


@dataclass
class Comparison:
    """What came out for one stored output.

    Args:
        name: of the output.
        problem: what differs; None where it agrees.
        absolute, relative: largest errors.
        skipped: parts of it that could not be computed here -> verdict.
    """

    name: str
    problem: str | None = None
    absolute: float = 0.0
    relative: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class CaseResult:
    """Verdict of a case.

    Args:
        system, name: of the case.
        verdict: ok, FAIL, UNCOVERED (an output without a value of ours), properties (random draws, held against a
            check), quirk (judged by other tests), or why nothing could be computed: later, absent, unavailable.
        stored, compared: outputs.
        absolute, relative: largest errors over all of them.
        seconds: that the case took.
        door: `official` or `default`, as in `Settings.official`.
        notes: lines that start with a verdict and a colon.
    """

    system: str
    name: str
    verdict: str
    stored: int = 0
    compared: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    seconds: float = 0.0
    door: str = "official"
    notes: list[str] = field(default_factory=list)

    @property
    def is_broken(self) -> bool:
        """Whether this case alone makes the whole run fail."""
        return self.verdict in {"FAIL", "UNCOVERED"}


def stored_names(case: Case) -> list[str]:
    """Names of all outputs of a case: tensors, expected entries of config.json, key lists, fields of the document."""
    document = case.stored_document()
    fields = [f"json.{name}" for name in _output_fields(document, case.json_inputs)]
    return [
        *case.outputs,
        *(f"config.{key}" for key in case.config_entries),
        *case.key_lists,
        *fields,
    ]


def judge(case: Case, runner: Runner, actual: Mapping[str, Any], quirks: Sequence[Quirk] = ()) -> CaseResult:
    """Compare everything that is stored with our values.

    Args:
        case: that was run.
        runner: that ran it, for its tolerances and properties.
        actual: our values by name, as `plait.parity.runners.RunFunction` returns them.
        quirks: which outputs mean nothing without the official quirks; the tests that they name judge ours.

    Returns:
        The verdict, without seconds and door.
    """
    result = CaseResult(case.system, case.name, "ok")
    violations = runner.check(case, actual) if runner.check else []
    skipped: set[str] = set()
    missing: list[str] = []
    for name in stored_names(case):
        result.stored += 1
        value = actual.get(name.removeprefix("json."), UNCOVERED)
        quirk = next((q for q in quirks if any(fnmatchcase(name, pattern) for pattern in q.outputs)), None)
        # What stands for an output comes before its comparison; a quirk excuses a difference, never a missing value.
        if quirk is not None and value is not UNCOVERED:
            skipped.add("quirk")
            result.notes.append(f"quirk: {name}: {quirk.what}; {quirk.judged_by}")
        elif isinstance(value, NotRun):
            skipped.add(value.verdict)
            result.notes.append(f"{value.verdict}: {name}: {value.reason}")
        elif value is UNCOVERED:
            missing.append(name)
        elif any(fnmatchcase(name, pattern) for pattern in runner.properties):
            result.compared += 1
            result.notes += [f"FAIL: {line}" for line in violations if line.split(" ")[0] == name]
        else:
            result.compared += 1
            _add(result, _compare(case, runner, actual, name, value))
    result.notes += [f"UNCOVERED: {name}" for name in missing]
    result.verdict = _verdict(result, runner, skipped)
    return result


def _verdict(result: CaseResult, runner: Runner, skipped: set[str]) -> str:
    """The gravest of what the notes say. A case that stores nothing is UNCOVERED: it would hold for any code."""
    for verdict in ("FAIL", "UNCOVERED"):
        if any(note.startswith(verdict) for note in result.notes):
            return verdict
    if result.stored == 0:
        return "UNCOVERED"
    if result.compared == 0:
        return min(skipped)
    return "properties" if runner.properties else "ok"


def _add(result: CaseResult, comparison: Comparison) -> None:
    """Add what came out for one output to the verdict of its case."""
    result.absolute = max(result.absolute, comparison.absolute)
    result.relative = max(result.relative, comparison.relative)
    result.notes += [f"{verdict}: {comparison.name}: {part}" for part, verdict in comparison.skipped.items()]
    if comparison.problem:
        result.notes.append(f"FAIL: {comparison.name}: {comparison.problem}")


def _compare(case: Case, runner: Runner, actual: Mapping[str, Any], name: str, value: Any) -> Comparison:
    """Compare one output by its kind, which the beginning of its name tells."""
    tolerance = tolerance_of(case, runner, name)
    if name.startswith("out."):
        # Eager repeats the official code even where nothing is attended; other implementations give anything there.
        valid = None if case.attn == "eager" else actual.get(f"valid.{name}")
        stored = _stored_tensor(case, name)
        if case.settings.dtype in HALF_PRECISION and stored.is_floating_point() and stored.numel():
            allowed = HALF_PRECISION[case.settings.dtype] * float(stored.nan_to_num(0.0, 0.0, 0.0).abs().max())
            tolerance = Tolerance(max(tolerance.absolute, allowed), tolerance.relative)
        return compare_tensors(name, value, stored, tolerance, valid)
    if name.startswith("keys."):
        return Comparison(name, None if value is True else str(value))
    if name.startswith("config."):
        stored = read_json(case.path / "config.json")[name.removeprefix("config.")]
        return compare_json(name, value, stored, tolerance)
    stored = fields_of(case.stored_document())[name.removeprefix("json.")]
    return compare_json(name, value, stored, tolerance, runner.json_inputs)


def tolerance_of(case: Case, runner: Runner, name: str) -> Tolerance:
    """What is accepted for one output: the rule of CASE.md where the runner names it, else the general one.

    Args:
        case: whose device decides on `ACCELERATOR_FACTOR`.
        runner: whose first pattern that matches is taken.
        name: of the output; `.grad` in it asks for the rule of gradients, which sum up more rounding.
    """
    chosen = next((t for pattern, t in runner.tolerance.items() if fnmatchcase(name, pattern)), None)
    if chosen is None:
        chosen = GRADIENT if ".grad" in name else FLOAT32
    factor = 1.0 if case.settings.device == "cpu" else ACCELERATOR_FACTOR
    return Tolerance(chosen.absolute * factor, chosen.relative * factor, chosen.steps)


def compare_tensors(
    name: str, actual: Tensor, stored: Tensor, tolerance: Tolerance, valid: Tensor | None = None
) -> Comparison:
    """Compare one tensor.

    Args:
        name: of the output.
        actual: ours, on any device.
        stored: of the same shape; integers and booleans must agree but for `tolerance.steps`.
        tolerance: |ours - stored| <= absolute + relative * |stored|.
        valid: bool over the leading dimensions, False on positions without meaning, which are left out.
    """
    actual = actual.detach().cpu()
    if actual.shape != stored.shape:
        return Comparison(name, f"expected shape {tuple(stored.shape)}, got {tuple(actual.shape)}")
    if actual.is_floating_point() and not stored.is_floating_point():
        return Comparison(name, f"expected {stored.dtype}, got {actual.dtype}")
    if not stored.is_floating_point():
        # Signed and wide, since differences of bytes and of booleans would wrap around or fail.
        wrong = (actual.to(torch.int64) - stored.to(torch.int64)).abs() > tolerance.steps
        count = int((wrong if valid is None else wrong[valid.cpu()]).sum())
        return Comparison(name, f"{count} of {wrong.numel()} values differ" if count else None)
    a, b = actual.double(), stored.double()
    if valid is not None:
        a, b = a[valid.cpu()], b[valid.cpu()]
    # Equal infinities and NaN on both sides agree; NaN on one side alone is an infinite error.
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
    absolute = float(error.max()) if error.numel() else 0.0
    relative = float((error / b.abs().clamp_min(tolerance.absolute)).max()) if error.numel() else 0.0
    bad = int((error > tolerance.absolute + tolerance.relative * b.abs().nan_to_num()).sum())
    problem = f"{bad} of {error.numel()} values differ, largest error {absolute:.3g}" if bad else None
    return Comparison(name, problem, absolute, relative)


def compare_json(name: str, actual: Any, stored: Any, tolerance: Tolerance, inputs: tuple[str, ...] = ()) -> Comparison:
    """Compare decoded JSON: same structure, numbers within tolerance where one is fractional, all else equal.

    Args:
        name: of the output, from which paths in messages start.
        actual: ours; a `NotRun` in it is noted.
        stored: decoded JSON.
        tolerance: of numbers, where one of the two is fractional.
        inputs: fields that are left out, as is `note`.

    Returns:
        The first difference as the problem, errors over all numbers.
    """
    result = Comparison(name)
    for path, ours, theirs in _leaves(name, actual, stored, (*inputs, "note")):
        if isinstance(ours, NotRun):
            result.skipped[f"{path.rpartition('.')[2]}: {ours.reason}"] = ours.verdict
            continue
        if _is_number(ours) and _is_number(theirs) and isinstance(ours + theirs, float):
            error = _distance(ours, theirs)
            result.absolute = max(result.absolute, error)
            result.relative = max(result.relative, error / max(abs(theirs), tolerance.absolute))
            agrees = error <= tolerance.absolute + tolerance.relative * abs(theirs)
        else:
            agrees = type(ours) is type(theirs) and ours == theirs
        if not agrees and result.problem is None:
            result.problem = f"{path}: expected {theirs!r:.80}, got {ours!r:.80}"
    return result


def _leaves(path: str, ours: Any, theirs: Any, skip: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """(path, ours, stored) of everything that has no parts; where structures differ, of what differs in them."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        under = re.sub(r"\[\d+\]", "", path).rpartition(".")[2]
        ours, theirs = ({k: v for k, v in d.items() if not is_input(k, under, skip)} for d in (ours, theirs))
        if ours.keys() == theirs.keys():
            for key in theirs:
                yield from _leaves(f"{path}.{key}", ours[key], theirs[key], skip)
        else:
            yield f"{path} (keys)", sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    elif isinstance(ours, list | tuple) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _leaves(f"{path}[{i}]", *pair, skip)
    elif isinstance(ours, list | tuple) and isinstance(theirs, list):
        yield f"{path} (length)", len(ours), len(theirs)
    else:
        yield path, ours, theirs


def _distance(ours: float, theirs: float) -> float:
    """Absolute difference; two NaN agree, one alone is infinitely far."""
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    difference = abs(ours - theirs)
    return math.inf if math.isnan(difference) else difference


def _is_number(value: Any) -> bool:
    """Whether JSON has a number here; to Python True is one too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _output_fields(document: Any, inputs: tuple[str, ...]) -> list[str]:
    """Top-level fields of a document that hold an expected value somewhere."""
    return [key for key in fields_of(document) if key not in (*inputs, "note")]


def _stored_tensor(case: Case, name: str) -> Tensor:
    with safe_open(case.path / "tensors.safetensors", "pt") as file:
        return file.get_tensor(name)
