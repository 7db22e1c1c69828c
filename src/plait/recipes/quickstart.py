"""`plait quickstart`: everything once, with public commands only, each printed before it runs.

    data -> first search -> check -> stage 1 -> stage 2 -> evaluate -> info -> index -> search -> summary and report

Every step is kept: a second run reuses what exists, and an interrupted run continues where it stopped.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.errors import UsageError
from plait.places import check_apart, check_free, claim
from plait.recipes.quickstart_first import caveat, first_steps
from plait.recipes.quickstart_steps import INTERRUPTED, Plan, Settings, Step, plan_of, searches

COMMAND = "plait.cli:command"
"""How a verb is called in this process: found by name when it runs, since the command line sits above this room."""


def quickstart(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="pictures (and sounds) of your own, in named sub-folders")
    ] = None,
    *,
    seeds: Annotated[int, typer.Option(min=1, help="2 or more also train the control with shuffled sounds")] = 1,
    out: Annotated[Path | None, typer.Option(help="run directory; runs/demo, or runs/NAME of the folder")] = None,
    k: Annotated[int, typer.Option("--k", min=0, help="denoising losses at every k-th step, 0 for never")] = 8,
    stage1: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="setting of stage 1")] = None,
    stage2: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="setting of stage 2")] = None,
) -> int:
    """Search at once with the shipped model, then train one on the shipped data (or a folder), measure it, report."""
    out = out or Path("runs") / ("demo" if folder is None else folder.resolve().name)
    if folder is not None:
        check_apart(folder, out)
    check_free(out)
    settings = Settings(out, folder, k, tuple(stage1 or ()), tuple(stage2 or ()))
    log = Log(out / "quickstart.json", settings.to_json())
    again = "plait quickstart" + "".join(f" {shlex.quote(word)}" for word in settings.as_arguments(seeds))
    print(f"Plait quickstart: first a search, then a small ONE-PEACE from random weights, in {out}")
    print(f"denoising losses at every k-th step, k = {k}" if k else "no denoising losses (k = 0)")
    try:
        finished = _run(settings, seeds, log)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        print(f"\nstopped; what is done is kept. Continue with:\n  {again}")
        return INTERRUPTED
    return 0


def _run(settings: Settings, seeds: int, log: Log) -> bool:
    """All steps, the summary, searches and the report. False when a signal stopped a step."""
    changed: set[str] = set()
    if not _first_hit(settings, log, changed):
        return False
    for step in settings.data_steps():
        if step.name not in changed and not _take(step, log, changed):
            return False
    plan = plan_of(settings, seeds)
    if not plan.has_sounds:
        print("no sounds with pictures of the same things: stage 2 and everything that listens are left out")
    for number, step in enumerate(plan.steps, 1):
        if not _take(step, log, changed, f"{number}/{len(plan.steps)}"):
            return False
    summary = _summarise(settings, plan, log)
    for step in searches(settings, plan):
        _take(step, log, changed)
    _report(settings, plan, log)
    _closing(settings, summary)
    return True


def _first_hit(settings: Settings, log: Log, changed: set[str]) -> bool:
    """Search with the model that ships, before anything trains. False when a signal stopped it."""
    start = time.monotonic()
    ready = []
    if settings.folder is None:  # else the folder is searched as it lies there
        claim(settings.out)
        ready = settings.data_steps()[:1]
    if not all(_take(step, log, changed) for step in ready):
        return False
    for step in first_steps(settings):
        if not _take(step, log, changed):
            return False
    print(f"\n{caveat(settings.folder is None)}")
    print(f"({time.monotonic() - start:.0f} s so far; the model of your own is trained now)")
    return True


class Log:
    """quickstart.json: the settings of a run directory, and command, seconds and state of every step so far."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": settings, "steps": {}}
        for name, value in settings.items():
            if stored["settings"].get(name) != value:
                raise UsageError(
                    f"expected {name} {stored['settings'].get(name)!r} to continue {path.parent}, got {value!r}; "
                    "choose another --out, or delete the directory to start again"
                )
        self.content: dict[str, Any] = stored

    def is_done(self, step: Step) -> bool:
        """Whether this very command finished and what it made still exists."""
        entry = self.content["steps"].get(step.name, {})
        made = step.output is None or step.output.exists()
        return bool(entry.get("is_done")) and entry["command"] == step.command and made and not step.is_always

    def record(self, step: Step, seconds: float, is_done: bool) -> None:
        """Add seconds to a step (several tries add up, a repeated step counts once) and write the file."""
        entry = self.content["steps"].get(step.name, {})
        spent = 0.0 if entry.get("is_done", True) else entry["seconds"]
        new = {"command": step.command, "seconds": spent + seconds, "is_done": is_done, "phase": step.phase}
        self.content["steps"][step.name] = new
        self.write()

    def write(self, **more: Any) -> None:
        """Write the file in one step."""
        self.content |= more
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def _take(step: Step, log: Log, changed: set[str], place: str = "") -> bool:
    """Run a step unless it is done. False when a signal stopped it. `changed` holds the steps that ran this time."""
    label = f"[{place}] {step.title}" if place else step.title
    is_stale = bool(changed & set(step.needs))
    if log.is_done(step) and not is_stale:
        print(f"{label}: kept from before ({log.content['steps'][step.name]['seconds']:.0f} s)")
        return True
    if is_stale or step.is_whole_or_nothing:
        step.clear()
    if step.place is not None:
        claim(step.place)  # before the command runs, so that a kill leaves nothing that looks like a person's
    print(f"\n{label}\n$ {step.command}", flush=True)
    start = time.monotonic()
    is_done = False
    try:
        is_done = invoke(step.argv) == 0 and (step.output is None or step.output.exists())
    finally:
        log.record(step, time.monotonic() - start, is_done)
    changed.add(step.name)
    return is_done


def invoke(argv: Sequence[str]) -> int:
    """Run a public command in this process, as the command line would. Returns its exit code; its errors propagate."""
    module, _, attribute = COMMAND.partition(":")
    command: Callable[[str], Any] = getattr(import_module(module), attribute)
    result = command(argv[0]).main(args=list(argv[1:]), prog_name=f"plait {argv[0]}", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _summarise(settings: Settings, plan: Plan, log: Log) -> dict[str, Any]:
    """Write summary.json from the stored evaluations."""
    from plait.evaluation.summary import BARS, summarise, write_summary

    def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    bars = BARS if settings.folder is None else ()
    summary = summarise(read(plan.evaluations), read(plan.controls), bars=bars)
    wanted = {step.name for step in [*settings.data_steps(), *plan.steps]}
    steps = {name: entry for name, entry in log.content["steps"].items() if name in wanted}
    seconds: dict[str, float] = {}
    for entry in steps.values():
        seconds[entry["phase"]] = seconds.get(entry["phase"], 0.0) + entry["seconds"]
    seconds["one_seed"] = sum(entry["seconds"] for name, entry in steps.items() if _is_of_first_seed(name))
    seconds["total"] = sum(entry["seconds"] for entry in steps.values())
    write_summary(settings.out / "summary.json", summary, seconds)
    return summary


def _is_of_first_seed(name: str) -> bool:
    return not name.startswith("seed-") or (name.startswith("seed-0 ") and "shuffled" not in name)


def _report(settings: Settings, plan: Plan, log: Log) -> None:
    from plait.inspect.report import build_report

    shown = [*settings.data_steps(), *plan.steps, *searches(settings, plan)]
    commands = [{name: log.content["steps"][step.name][name] for name in ("command", "seconds")} for step in shown]
    log.write(
        data=settings.data.relative_to(settings.out).as_posix(),
        is_shipped_data=settings.folder is None,
        commands=commands,
        notes={"denoising losses": f"every {settings.k} steps (k)" if settings.k else "none"},
    )
    print(f"\nreport\n$ python -c 'from plait.inspect.report import build_report; build_report(\"{settings.out}\")'")
    build_report(settings.out)


def _closing(settings: Settings, summary: dict[str, Any]) -> None:
    """The numbers in a few lines, and where everything is."""
    print(f"\n{'metric':<32}{'found':>8}{'chance':>9}   bar")
    for name, found in summary["metrics"].items():
        if found["value"] is not None:
            bar = summary["bars"].get(name)
            words = "" if bar is None else f"{'met' if bar['met'] else 'MISSED'}: {bar['bar']}"
            print(f"{name:<32}{100 * found['value']:>7.1f}%{100 * found['chance']:>8.1f}%   {words}")
    print(
        f"\nsummary  {settings.out / 'summary.json'}\nreport   {settings.out / 'report.html'}  (open it in a browser)"
    )
