"""Runs golden cases: directory -> chosen cases -> runner -> our values (written if asked) -> verdict."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

import plait
from plait.errors import UsageError
from plait.parity.cases import Case, Place, Settings, discover, fields_of
from plait.parity.runners import REGISTRY, NotRun, Quirk, Runner

if TYPE_CHECKING:
    from plait.parity.compare import CaseResult

CLONE = "run from a checkout of the repository, installed with pip install -e ."
GOLDEN_RUNNERS = "plait_golden_runners"
"""The name under which the directory of runners is imported, so that they can import one another."""
LATER: dict[str, dict[str, int]] = {}
"""System -> beginning of the names of cases that no runner serves yet -> the issue that brings it."""


def select(directory: Path, system: str | None = None, case: str | None = None) -> list[Place]:
    """The cases a command asks for.

    Args:
        directory: of goldens, of one system, or of a single case.
        system: only of this one.
        case: only of this name; `*` and `?` match any part.

    Raises:
        UsageError: where there is none, or no such system.
    """
    if not directory.is_dir():
        raise UsageError(f"expected a directory of golden cases, got {directory}; pass one that exists")
    places = discover(directory)
    systems = sorted({place.system for place in places})
    if system is not None and system not in systems:
        raise UsageError(
            f"expected one of the systems {', '.join(systems) or '(none)'}, got {system!r}; see {directory}"
        )
    places = [place for place in places if system in (None, place.system)]
    chosen = [place for place in places if case is None or fnmatchcase(place.name, case)]
    if not chosen:
        raise UsageError(f"expected golden cases under {directory}, got none{f' named {case!r}' if case else ''}")
    return chosen


def run_all(places: list[Place], settings: Settings, out: Path | None = None) -> Iterator[CaseResult]:
    """Run cases one after the other and yield what came out of each, as soon as it did.

    Args:
        places: of `select`.
        settings: how they run.
        out: where our values go, one directory per case; None writes nothing.
    """
    for place in places:
        start = perf_counter()
        result = run_case(place, settings, out)
        result.seconds = perf_counter() - start
        result.door = "official" if settings.official else "default"
        yield result


def run_case(place: Place, settings: Settings, out: Path | None = None) -> CaseResult:
    """Find the runner of a case, run it, write our values if asked, and compare.

    Args:
        place: of the case.
        settings: how it runs.
        out: where our values go.

    Returns:
        A verdict whatever happens: an error of a runner is a FAIL that names its place.
    """
    from plait.parity.compare import CaseResult, judge, stored_names

    runner = find(place.system, place.name)
    if runner is None or isinstance(runner, NotRun):
        stored = len(stored_names(Case(*place, settings)))
        verdict, note = ("UNCOVERED", "no runner") if runner is None else (runner.verdict, runner.reason)
        return CaseResult(place.system, place.name, verdict, stored, notes=[f"{verdict}: {note}"])
    case = Case(*place, settings, runner.config_outputs, runner.json_inputs)
    try:
        actual = runner.function(case)
        if out is not None:
            # before the comparison, so that a FAIL can be looked at
            write_actual(case, actual, out)
        return judge(case, runner, actual, quirks_of(place) if not settings.official else ())
    except Exception as error:  # a broken case is a verdict, the others still run
        where = _innermost(error)  # file and line say more than the message of a shape error
        note = f"FAIL: {type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
        return CaseResult(place.system, place.name, "FAIL", len(stored_names(case)), notes=[note])


def write_actual(case: Case, actual: Mapping[str, Any], out: Path) -> None:
    """Write our values of one case: `actual.safetensors` for tensors, `actual.json` for JSON outputs."""
    from safetensors.torch import save_file

    folder = out / case.system / case.name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: actual[name].detach().cpu().to(spec.dtype).contiguous().clone()
        for name, spec in case.outputs.items()
        if hasattr(actual.get(name), "detach")
    }
    if tensors:
        save_file(tensors, folder / "actual.safetensors")
    document = _actual_document(case, actual)
    if document:
        text = json.dumps(document, indent=1, ensure_ascii=False, default=str)
        (folder / "actual.json").write_text(text + "\n", encoding="utf-8")


def _actual_document(case: Case, actual: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
    """Our JSON outputs in the structure of the stored document; what we have no value for stays hidden."""
    document = {key: actual.get(key, value) for key, value in fields_of(case.document).items()}
    if isinstance(case.document, list):
        return list(document.values())
    entries = {key: actual[f"config.{key}"] for key in case.config_entries if f"config.{key}" in actual}
    if entries:
        document["config"] = entries
    lists = {name: getattr(actual[name], "verdict", actual[name]) for name in case.key_lists if name in actual}
    return document | ({"keys": lists} if lists else {})


def _innermost(error: BaseException) -> str:
    """`file.py:line` where an error was raised."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "unknown place"


def home() -> Path | None:
    """Where the runners of golden cases lie: tests/parity beside `src` of a checkout, None for an installed copy."""
    source = Path(plait.__file__).resolve().parents[1]
    place = source.parent / "tests" / "parity"
    return place if source.name == "src" and place.is_dir() else None


def runner_module(name: str) -> ModuleType:
    """The file `name`.py among the runners of golden cases, as a module.

    Raises:
        UsageError: in an installed copy, which has none.
    """
    place = home()
    if place is None:
        raise UsageError(f"expected the runner {name}.py in tests/parity, got none; {CLONE}")
    if GOLDEN_RUNNERS not in sys.modules:
        # A package made by hand: runners import one another, and their directory stays off sys.path.
        package = ModuleType(GOLDEN_RUNNERS)
        package.__path__ = [str(place)]
        sys.modules[GOLDEN_RUNNERS] = package
    return import_module(f"{GOLDEN_RUNNERS}.{name}")


def quirks_of(place: Place) -> list[Quirk]:
    """What the table tests/parity/doors.py says of a case; nothing for an installed copy."""
    rows = runner_module("doors").QUIRKS if home() else {}
    return [quirk for (system, kind), quirk in rows.items() if system == place.system and place.name.startswith(kind)]


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
    known |= {r.kind: r for (of, _), r in REGISTRY.items() if of == system}
    kinds = [kind for kind in known if name.startswith(kind)]
    if kinds:
        # the longest: `video_model_image` is no case of `video_model`
        return known[max(kinds, key=len)]
    return None if home() else NotRun("unavailable", f"its runner lies in tests/parity; {CLONE}")
