"""`plait parity`: run golden cases and say, case by case, what holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plait.errors import UsageError
from plait.parity.cases import Case, Place, Settings, discover, fields_of

if TYPE_CHECKING:
    from plait.parity.compare import CaseResult


def parity(
    directory: Annotated[Path, typer.Argument(help="directory of golden cases, of one system, or of one case")],
    *,
    system: Annotated[str | None, typer.Option(help="only this system")] = None,
    case: Annotated[str | None, typer.Option(help="only cases of this name; * and ? match any part")] = None,
    attn: Annotated[Literal["eager", "sdpa"], typer.Option(help="attention implementation")] = "eager",
    device: Annotated[str, typer.Option(help="device to run on, as torch names it")] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"], typer.Option(help="floating-point type")
    ] = "float32",
    out: Annotated[Path | None, typer.Option(help="write our values here, one directory per case")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per case")] = False,
) -> int:
    """Run golden cases against the models and print a verdict per case; exit code 1 on FAIL or UNCOVERED."""
    places = select(directory, system, case)
    results: list[CaseResult] = []
    if not as_json:
        print(f"{'case':<44} {'compared':>9} {'abs error':>10} {'rel error':>10}  verdict")
    for result in run_all(places, Settings(attn, device, dtype), out):
        results.append(result)
        print(_as_json(result) if as_json else _line(result), flush=True)
    if not as_json:
        print(_summary(results))
    return int(any(result.is_broken for result in results))


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


def _line(result: CaseResult) -> str:
    name = f"{result.system}/{result.name}"
    line = f"{name:<44} {f'{result.compared}/{result.stored}':>9} {result.absolute:>10.1e} {result.relative:>10.1e}"
    remarks = [note for note in result.notes if result.is_broken == note.startswith(("FAIL", "UNCOVERED"))]
    shown = [f"      {note}" for note in remarks[:8]] if result.is_broken else []
    more = [f"      and {len(remarks) - 8} more"] if result.is_broken and len(remarks) > 8 else []
    return "\n".join([f"{line}  {result.verdict}{_aside(result, remarks)}", *shown, *more])


def _aside(result: CaseResult, remarks: list[str]) -> str:
    """What a good verdict leaves unsaid: outputs that could not be computed here, and why."""
    if result.is_broken or not remarks:
        return ""
    kinds = sorted({note.split(":")[0] for note in remarks})
    if len(remarks) == 1 or result.compared == 0:
        return f" ({remarks[0].split(': ', 1)[1]})"
    return " (" + ", ".join(f"{sum(n.startswith(kind) for n in remarks)} {kind}" for kind in kinds) + ")"


def _as_json(result: CaseResult) -> str:
    from dataclasses import asdict

    return json.dumps(asdict(result))


def _summary(results: list[CaseResult]) -> str:
    verdicts = [result.verdict for result in results]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return f"{len(results)} cases in {sum(result.seconds for result in results):.1f} s: {counts}"
