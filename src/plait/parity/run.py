"""Runs golden cases: directory -> chosen cases -> runner -> our values (written if asked) -> verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from plait.errors import UsageError
from plait.parity.cases import Case, Place, Settings, discover, fields_of

if TYPE_CHECKING:
    from plait.parity.compare import CaseResult


def select(directory: Path, system: str | None = None, case: str | None = None) -> list[Place]:
    """The cases a command asks for. Raises UsageError where there is none."""
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
    """Run cases one after the other and yield what came out of each."""
    for place in places:
        start = perf_counter()
        result = run_case(place, settings, out)
        result.seconds = perf_counter() - start
        yield result


def run_case(place: Place, settings: Settings, out: Path | None = None) -> CaseResult:
    """Find the runner of a case, run it, write our values if asked, and compare."""
    from plait.parity.compare import CaseResult, judge, stored_names
    from plait.parity.runners import NotRun, find

    runner = find(place.system, place.name)
    if runner is None or isinstance(runner, NotRun):
        stored = len(stored_names(Case(*place, settings)))
        verdict, note = ("UNCOVERED", "no runner") if runner is None else (runner.verdict, runner.reason)
        return CaseResult(place.system, place.name, verdict, stored, notes=[f"{verdict}: {note}"])
    case = Case(*place, settings, runner.config_outputs, runner.json_inputs)
    try:
        actual = runner.function(case)
        if out is not None:
            write_actual(case, actual, out)
        return judge(case, runner, actual)
    except Exception as error:  # a broken case is a verdict, the others still run
        where = _innermost(error)
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
    document = {key: actual.get(key, value) for key, value in fields_of(case.document).items()}
    if isinstance(case.document, list):
        return list(document.values())
    entries = {key: actual[f"config.{key}"] for key in case.config_entries if f"config.{key}" in actual}
    if entries:
        document["config"] = entries
    lists = {name: getattr(actual[name], "verdict", actual[name]) for name in case.key_lists if name in actual}
    return document | ({"keys": lists} if lists else {})


def _innermost(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else "unknown place"
