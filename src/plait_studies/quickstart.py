"""`plait quickstart`: everything once, with public commands only, each printed before it runs.

shipped data | FOLDER -> first search with the model that ships -> check -> stage 1 -> stage 2 -> evaluate -> info
    -> index -> search -> summary.json and report.html

The first hit is something real to look at within seconds, before anything trains. Every step is kept: a second run
reuses what exists, and an interrupted run continues where it stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli import INTERRUPTED, command
from plait.cli.options import LimitOption, raise_limits
from plait.data.manifest import write_manifest
from plait.errors import UsageError
from plait.media import kind_of
from plait.places import at_work, check_apart, claim, remove
from plait.types import Sample


@dataclass(frozen=True)
class Step:
    """One command of the quickstart.

    Args:
        name: its key in quickstart.json.
        phase: under which its seconds are summed up.
        title: what is printed above it.
        argv: of `plait`.
        output: the file or directory whose presence says that it is whole.
        place: what it makes, removed before it runs anew.
        needs: names of the steps whose results it reads; when one of them ran anew, this does too.
        is_whole_or_nothing: what an interrupted try left is removed too.
        is_always: cheap, and worth seeing every time.
    """

    name: str
    phase: str
    title: str
    argv: tuple[str, ...]
    output: Path | None = None
    place: Path | None = None
    needs: tuple[str, ...] = ()
    is_whole_or_nothing: bool = False
    is_always: bool = False

    @property
    def command(self) -> str:
        """What a user would type."""
        return shlex.join(("plait", *self.argv))

    def clear(self) -> None:
        """Remove what earlier tries left. UsageError where a person put something in that place."""
        if self.place is not None:
            remove(self.place)


# Minutes on two cores: a small net at a high rate, every drawing changed much, some of them side by side. Published are
# other numbers, which are the recipes' own.
SHORT: dict[str, tuple[str, ...]] = {
    "stage1": (
        "preset=nano", "steps=2400", "batch_size=64", "lr=1e-3", "floor=2e-6", "warmup=0.04", "composed=0.15",
        "augmentation=0.7", "bare_names=0.8",
    ),
    "stage2": ("steps=320", "batch_size=48", "lr=2e-3", "floor=1e-5", "augmentation=0.5"),
}  # fmt: skip
"""What the demo sets, by stage."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Args:
        out: run directory.
        folder: of the user's media; None is the shipped data set.
        k: denoising losses at every k-th step, 0 for never.
        stage1, stage2: KEY=VALUE for the recipes. limits: NAME=NUMBER, of the user's media.
    """

    out: Path
    folder: Path | None
    k: int
    stage1: tuple[str, ...] = ()
    stage2: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @property
    def data(self) -> Path:
        """The data set directory of the run."""
        return self.out / "data"

    def to_json(self) -> dict[str, Any]:
        """What a run directory is bound to."""
        folder = None if self.folder is None else str(self.folder.resolve())
        return {"folder": folder, "k": self.k, "stage1": list(self.stage1), "stage2": list(self.stage2)}

    def as_arguments(self, seeds: int) -> list[str]:
        """The arguments that ask for the same again."""
        words = [] if self.folder is None else [str(self.folder)]
        words += ["--seeds", str(seeds), "--out", str(self.out), "--k", str(self.k)]
        for name, values in (("--stage1", self.stage1), ("--stage2", self.stage2), ("--limit", self.limits)):
            words += [word for value in values for word in (name, value)]
        return words

    def data_steps(self) -> list[Step]:
        """The data set as plain files, and the proof that it is whole."""
        data = str(self.data)
        if self.folder is None:
            make: tuple[str, ...] = ("data", "build", "mini", "--shipped", "--out", data)
        else:
            make = ("data", "from-folder", str(self.folder), data)
        return [
            Step("data", "data", "data", make, self.data / "manifest.jsonl", self.data, is_whole_or_nothing=True),
            Step("check", "data", "is the data whole?", ("data", "check", data), needs=("data",)),
        ]


@dataclass
class Plan:
    """Everything after the data: steps in order, and where the evaluations, the controls and the model will be."""

    has_sounds: bool
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Path] = field(default_factory=list)
    controls: list[Path] = field(default_factory=list)
    model: Path = Path()


def plan_of(settings: Settings, seeds: int) -> Plan:
    """Read the data set and lay out training, evaluation and index. UsageError where nothing is held out."""
    from plait.data.manifest import read_manifest
    from plait.evaluation.emergent import HeldOut

    held_out = HeldOut.read(settings.data)
    trained = any(row.audio is not None and row.split == "train" for row in read_manifest(settings.data))
    plan = Plan(has_sounds=bool(held_out.notes) and trained)
    if not held_out.training_drawings:
        raise UsageError(f"expected pictures to train on in {settings.data}, got none; give at least two of each thing")
    for seed in range(seeds):
        _add_seed(plan, settings, seed, with_control=seeds > 1 and plan.has_sounds)
    final = "stage2" if plan.has_sounds else "stage1"
    plan.model = settings.out / "seed-0" / final / "model"
    index, held_out_files = settings.out / "index.lance", settings.out / "seed-0" / "evaluation" / "gallery"
    searched = held_out_files if settings.folder is None else settings.data
    plan.steps += [
        Step("info", "info", "the model, saved", ("info", str(plan.model)), needs=(f"seed-0 {final}",)),
        Step(
            "index",
            "index",
            "index",
            ("index", "add", str(index), str(searched), "--model", str(plan.model)),
            index,
            index,
            needs=("data", f"seed-0 {final}", "seed-0 evaluate"),
            is_whole_or_nothing=True,
        ),
    ]
    return plan


def _add_seed(plan: Plan, settings: Settings, seed: int, with_control: bool) -> None:
    """Train and measure one seed, and its control: the same stage 2 with shuffled sounds."""
    name, home, data = f"seed-{seed}", settings.out / f"seed-{seed}", str(settings.data)

    def train(phase: str, words: str, before: str, values: Sequence[str], needs: tuple[str, ...]) -> Step:
        stage = phase.removesuffix("-shuffled")
        recipe, asked = f"one_peace.{stage}", {value.partition("=")[0] for value in values}
        short = [value for value in SHORT[stage] if value.partition("=")[0] not in asked]
        given = [*([before] if before else []), f"data={data}", *short, f"denoise_every={settings.k}", *values]
        sets = [word for value in given for word in ("--set", value)]
        argv = ("train", recipe, *sets, "--seed", str(seed), "--share-cores", "--out", str(home / phase))
        place = home / phase
        return Step(f"{name} {phase}", phase, f"seed {seed}: {words}", argv, place / "model", place, needs)

    def measure(phase: str, words: str, trained: str) -> Path:
        place = home / phase.replace("evaluate", "evaluation")
        argv = ("eval", "emergent", str(home / trained / "model"), "--data", data, "--out", str(place))
        result, needs = place / "evaluation.json", (f"{name} {trained}",)
        plan.steps.append(Step(f"{name} {phase}", phase, f"seed {seed}: {words}", argv, result, place, needs))
        return result

    plan.steps.append(train("stage1", "pictures with words", "", settings.stage1, ("data",)))
    if not plan.has_sounds:
        plan.evaluations.append(measure("evaluate", "measure", "stage1"))
        return
    init, needs = f"init={home / 'stage1' / 'model'}", ("data", f"{name} stage1")
    plan.steps.append(train("stage2", "sounds with words", init, settings.stage2, needs))
    plan.evaluations.append(measure("evaluate", "measure", "stage2"))
    if with_control:
        words, shuffled = "the control, sounds with shuffled words", (*settings.stage2, "shuffle_pairs=true")
        plan.steps.append(train("stage2-shuffled", words, init, shuffled, needs))
        plan.controls.append(measure("evaluate-shuffled", "measure the control", "stage2-shuffled"))


def searches(settings: Settings, plan: Plan) -> list[Step]:
    """A query by sound and one by sound and word (by word alone where there are no sounds), on the new index."""
    index = str(settings.out / "index.lance")
    examples = json.loads(plan.evaluations[0].read_text(encoding="utf-8"))["examples"]

    def step(name: str, title: str, *query: str) -> Step:
        argv = ("search", index, *query, "--modality", "image", "-k", "5", "--html", str(settings.out / f"{name}.html"))
        return Step(name, "search", title, argv, is_always=True)

    steps = []
    for example in examples.get("audio_to_image", [])[:1]:
        steps.append(
            step("search-sound", f"which pictures sound like this? ({example['name']})", *_audio(settings, example))
        )
    for example in examples.get("fused_to_image", [])[:1]:
        title = f"a sound and a word in one query ({example['name']} + {example['text']})"
        steps.append(step("search-sound-and-word", title, *_audio(settings, example), "--text", example["text"]))
    if not steps:
        from plait.evaluation.emergent import HeldOut

        word = next(iter(HeldOut.read(settings.data).names.values()))
        steps.append(step("search-word", f"which pictures show this? ({word})", "--text", word))
    return steps


def _audio(settings: Settings, example: dict[str, Any]) -> tuple[str, str]:
    """The option that asks with the sound of an example."""
    return "--audio", str(settings.data / example["audio"])


MODEL = "nano"
FILES = 60
"""Files of a folder that are looked at: some seconds, whatever their size."""
LOOKED_AT = 5000
"""Files of a folder among which those are chosen."""
SOUND = "bird"
WORD = "trumpet"
"""What is asked of the shipped data: two of the things that the shipped model knows well."""


def first_steps(settings: Settings) -> list[Step]:
    """Index some pictures with the shipped model and search them. UsageError where FOLDER holds no media."""
    samples, queries = _of_mini(settings.data) if settings.folder is None else _of_folder(settings.folder)
    place = settings.out / "first"
    claim(place)
    write_manifest(place / "manifest.jsonl", samples)
    index = str(place / "index.lance")
    steps = [
        Step(
            "first-index",
            "first",
            f"{len(samples)} files, and the model that ships with Plait",
            ("index", "add", index, str(place / "manifest.jsonl"), "--model", MODEL),
            Path(index),
            Path(index),
            needs=("data",) if settings.folder is None else (),
            is_whole_or_nothing=True,
        )
    ]
    for number, (title, *query) in enumerate(queries, 1):
        argv = ("search", index, *query, "-k", "5", "--html", str(settings.out / f"first-{number}.html"))
        steps.append(Step(f"first-search-{number}", "first", title, argv, is_always=True))
    return steps


def _of_mini(data: Path) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """The held-out drawings, and two queries: a word and a held-out note."""
    from plait.evaluation.emergent import HeldOut, concept

    held_out = HeldOut.read(data.resolve())
    notes = [str(note.audio) for note in held_out.notes if concept(note) == SOUND]
    return held_out.drawings, [
        (f"which drawings show a {WORD}?", "--text", WORD),
        (f"which drawings sound like this? (a {SOUND})", "--audio", notes[0]),
    ]


def _of_folder(folder: Path) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """Pictures and sounds of a folder, evenly chosen, and what looks (or sounds) like the first of them."""
    if not folder.is_dir():
        raise UsageError(f"expected a folder, got {folder}: {'a file' if folder.exists() else 'no such folder'}")
    found = [(path, kind) for path in _files(folder) if (kind := kind_of(path)) in ("image", "audio")]
    if not found:
        raise UsageError(f"expected pictures or sounds in {folder}, got none; pass a folder that holds some")
    count = min(FILES, len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]
    samples = [Sample.from_row({"id": str(path), kind: str(path)}) for path, kind in chosen]
    # The first picture, or the first sound where there is none.
    path, kind = min(chosen, key=lambda pair: pair[1] != "image")
    verb = "look" if kind == "image" else "sound"
    return samples, [(f"which of your files {verb} like {path.name}?", f"--{kind}", str(path))]


def _files(folder: Path) -> Iterator[Path]:
    """The first files below `folder`, hidden ones and indices left out."""

    def walk() -> Iterator[Path]:
        for place, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if not name.startswith(".") and not name.endswith(".lance"))
            yield from (Path(place, name).resolve() for name in sorted(files) if not name.startswith("."))

    return itertools.islice(walk(), LOOKED_AT)


SHIPPED_CAVEAT = (
    "These drawings were held out of its training; of all notes 27 % find their drawing within five of 300, by chance "
    "1.7 %."
)
FOLDER_CAVEAT = "The shipped model knows drawings: on photographs it sees little more than colours and shapes."
"""What the first hits do and do not say."""


def quickstart(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="pictures (and sounds) of your own, in named sub-folders")
    ] = None,
    *,
    seeds: Annotated[int, typer.Option(min=1, help="2 or more also train the control with shuffled sounds")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="run directory; without it runs/demo, or runs/NAME of the folder")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=0, help="denoising losses at every k-th step, 0 for never")] = 8,
    stage1: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="setting of stage 1")] = None,
    stage2: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="setting of stage 2")] = None,
    limits: LimitOption = None,
) -> int:
    """Search at once with the shipped model, then train one on the shipped data (or a folder), measure it, report."""
    raise_limits(limits)
    out = out or Path("runs") / ("demo" if folder is None else folder.resolve().name)
    if folder is not None:
        check_apart(folder, out)
    with at_work(out):
        settings = Settings(out, folder, k, tuple(stage1 or ()), tuple(stage2 or ()), tuple(limits or ()))
        log = Log(out / "quickstart.json", settings.to_json())
        print(f"Plait quickstart: first a search, then a small ONE-PEACE from random weights, in {out}")
        joins = f"denoising losses at every k-th step, k = {k}: the loss jumps there, contrast tells how training goes"
        print(joins if k else "no denoising losses (k = 0)")
        from plait.training.data_order import use_idle_cores

        use_idle_cores()
        try:
            if _run(settings, seeds, log):
                return 0
        except KeyboardInterrupt:
            pass  # between two steps; inside one, its own command catches it and saves
        again = typed(f"plait {shlex.join(('quickstart', *settings.as_arguments(seeds)))}")
        print(f"\nstopped; what is done is kept. Continue with:\n  {again}")
        return INTERRUPTED


def _run(settings: Settings, seeds: int, log: Log) -> bool:
    """All steps, the summary, searches and the report. False when a signal stopped a step."""
    changed: set[str] = set()
    start = time.monotonic()
    # A folder is searched as it lies there; the shipped data is unpacked first.
    ready = settings.data_steps()[:1] if settings.folder is None else []
    if not all(_take(step, log, changed) for step in ready):
        return False
    if not all(_take(step, log, changed) for step in first_steps(settings)):
        return False
    print(f"\n{SHIPPED_CAVEAT if settings.folder is None else FOLDER_CAVEAT}")
    print(f"({time.monotonic() - start:.0f} s so far; the model of your own is trained now)")
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
        from plait_studies.summary import write_json

        self.content |= more
        write_json(self.path, self.content)


def typed(command: str) -> str:
    """A command as it can be typed here: by the place of `plait` where no shell finds it."""
    beside = Path(sys.executable).with_name("plait")
    is_found = shutil.which("plait") is not None or not beside.is_file()
    return command if is_found else shlex.quote(os.path.relpath(beside)) + command.removeprefix("plait")


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
    print(f"\n{label}\n$ {typed(step.command)}", flush=True)
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
    result = command(argv[0]).main(args=list(argv[1:]), prog_name=f"plait {argv[0]}", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _summarise(settings: Settings, plan: Plan, log: Log) -> dict[str, Any]:
    """Write summary.json from the stored evaluations."""
    from plait_studies.summary import BARS, summarise, write_summary

    def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    bars = BARS if settings.folder is None else ()
    summary = summarise(read(plan.evaluations), read(plan.controls), bars=bars)
    wanted = {step.name for step in [*settings.data_steps(), *plan.steps]}
    steps = {name: entry for name, entry in log.content["steps"].items() if name in wanted}
    seconds: dict[str, float] = {}
    for entry in steps.values():
        seconds[entry["phase"]] = seconds.get(entry["phase"], 0.0) + entry["seconds"]
    # What one seed costs: everything but other seeds and the control.
    others = {name for name in steps if name.startswith("seed-") and not name.startswith("seed-0 ")}
    others |= {name for name in steps if "shuffled" in name}
    seconds["one_seed"] = sum(entry["seconds"] for name, entry in steps.items() if name not in others)
    seconds["total"] = sum(entry["seconds"] for entry in steps.values())
    write_summary(settings.out / "summary.json", summary, seconds)
    return summary


def _report(settings: Settings, plan: Plan, log: Log) -> None:
    """Write what the page needs into quickstart.json, then the page."""
    from plait_studies.report import build_report

    shown = [*settings.data_steps(), *plan.steps, *searches(settings, plan)]
    commands = [{name: log.content["steps"][step.name][name] for name in ("command", "seconds")} for step in shown]
    log.write(
        data=settings.data.relative_to(settings.out).as_posix(),
        is_shipped_data=settings.folder is None,
        commands=commands,
        notes={"denoising losses": f"every {settings.k} steps (k)" if settings.k else "none"},
    )
    print(f"\nreport\n$ python -c 'from plait_studies.report import build_report; build_report(\"{settings.out}\")'")
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
