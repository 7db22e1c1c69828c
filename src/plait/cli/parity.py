"""`plait parity`: run golden cases and say, case by case, what holds. `plait doctor`: is this installation fit?"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plait.cli.options import DeviceOption, DtypeOption
from plait.parity.cases import Settings
from plait.parity.run import run_all, select
from plait.places import at_work, check_apart
from plait.training.run import refuse_beside

if TYPE_CHECKING:
    from plait.parity.cases import Place
    from plait.parity.compare import CaseResult
    from plait.parity.doctor import Check


def parity(
    directory: Annotated[Path, typer.Argument(help="directory of golden cases, of one system, or of one case")],
    *,
    system: Annotated[str | None, typer.Option(help="only this system; all without it")] = None,
    case: Annotated[
        str | None, typer.Option(help="only cases of this name; * and ? match any part; all without it")
    ] = None,
    attn: Annotated[Literal["eager", "sdpa"], typer.Option(help="attention implementation")] = "eager",
    device: Annotated[str, typer.Option(help="device to run on, as torch names it")] = "cpu",
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"], typer.Option(help="floating-point type")
    ] = "float32",
    door: Annotated[
        Literal["official", "default", "both"],
        typer.Option(help="with the quirks of the official code, as users get the models, or one after the other"),
    ] = "official",
    out: Annotated[
        Path | None, typer.Option(help="write our values here, one directory per case; none without it")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per case")] = False,
) -> int:
    """Run golden cases against the models and print a verdict per case; exit code 1 on FAIL or UNCOVERED."""
    places = select(directory, system, case)
    if out is not None:
        check_apart(directory, out)  # our values beside the stored ones would be taken for them
    with nullcontext() if out is None else at_work(out):
        return _run(places, Settings(attn, device, dtype), door, out, as_json)


def _run(places: list[Place], settings: Settings, door: str, out: Path | None, as_json: bool) -> int:
    """Every case through one door or both, a line each; the exit code."""
    results: list[CaseResult] = []
    if not as_json:
        print(f"{'case':<44} {'compared':>9} {'abs error':>10} {'rel error':>10}  verdict")
    for one in ("official", "default") if door == "both" else (door,):
        if door == "both" and not as_json:
            print(f"\nthrough the {one} door")
        settings = replace(settings, official=one == "official")
        through: list[CaseResult] = []
        # Both doors into directories of their own, or the second would write over the first.
        for result in run_all(places, settings, out / one if out and door == "both" else out):
            through.append(result)
            print(_as_json(result) if as_json else _line(result), flush=True)
        if not as_json:
            print(_summary(through))
        results += through
    return int(any(result.is_broken for result in results))


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="a model's name or path: show what it says, to be pasted")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILES]...", help="show it these; three drawings and notes of ours")
    ] = None,
    *,
    text: Annotated[list[str] | None, typer.Option(help="words beside FILES; repeatable; names of ours")] = None,
    parity: Annotated[bool, typer.Option("--parity/--no-parity", help="run the shipped golden cases")] = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> int:
    """Check the installation: versions, extras, devices, models, a golden case of every family. Or try one MODEL."""
    if model is not None:
        from plait.parity.example import Asked, report

        refuse_beside("MODEL", **{"--json": as_json or None, "--no-parity": None if parity else True})
        for line in report(model, Asked.of(files or (), text or ()), device=device, dtype=dtype):
            print(line, flush=True)
        return 0
    refuse_beside("no MODEL", **{"--text": text, "--device": device, "--dtype": dtype})
    from plait.parity.doctor import examine

    checks: list[Check] = []
    for check in examine(parity):
        checks.append(check)
        if not as_json:
            print(f"{check.state:<7} {check.topic:<8} {check.name:<30} {check.note}".rstrip(), flush=True)
    broken = [check for check in checks if check.state == "BROKEN"]
    if as_json:
        print(json.dumps({"is_healthy": not broken, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print(f"\n{f'{len(broken)} broken: ' + ', '.join(c.name for c in broken) if broken else 'everything works'}")
    return int(bool(broken))


def _line(result: CaseResult) -> str:
    """A case for people: its verdict, and of a broken one the first eight reasons."""
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
    reasons = {note.split(": ", 2)[-1] for note in remarks}
    if len(remarks) > 1 and len(reasons) == 1:
        return f" ({len(remarks)} {kinds[0]}: {reasons.pop()})"
    if len(remarks) == 1 or result.compared == 0:
        return f" ({remarks[0].split(': ', 1)[1]})"
    return " (" + ", ".join(f"{sum(n.startswith(kind) for n in remarks)} {kind}" for kind in kinds) + ")"


def _as_json(result: CaseResult) -> str:
    return json.dumps(asdict(result))


def _summary(results: list[CaseResult]) -> str:
    """How many cases came to each verdict, in the order in which they first did."""
    verdicts = [result.verdict for result in results]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return f"{len(results)} cases in {sum(result.seconds for result in results):.1f} s: {counts}"
