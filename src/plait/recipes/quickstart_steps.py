"""The steps of a quickstart: which public command makes what, and what it needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.errors import UsageError
from plait.places import remove

INTERRUPTED = 130


@dataclass(frozen=True)
class Step:
    """One command. output: the file or directory whose presence says that it is whole.

    needs: names of the steps whose results it reads; when one of them ran anew, `place` is removed and this runs anew.
    is_whole_or_nothing: what an interrupted try left is removed too. is_always: cheap, and worth seeing every time.
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


@dataclass(frozen=True)
class Settings:
    """What the user asked for. folder None is the shipped data set; stage1, stage2: KEY=VALUE for the recipes."""

    out: Path
    folder: Path | None
    k: int
    stage1: tuple[str, ...] = ()
    stage2: tuple[str, ...] = ()

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
        for name, values in (("--stage1", self.stage1), ("--stage2", self.stage2)):
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
    name, home, data = f"seed-{seed}", settings.out / f"seed-{seed}", str(settings.data)
    title = f"seed {seed}: "
    shared = ("--set", f"data={data}", "--set", f"denoise_every={settings.k}", *_sets(settings.stage1))
    first = home / "stage1"
    plan.steps.append(_train(name, "stage1", title + "pictures with words", first, shared, seed, needs=("data",)))
    model = first / "model"
    if plan.has_sounds:
        shared = ("--set", f"init={model}", "--set", f"data={data}", "--set", f"denoise_every={settings.k}")
        shared += _sets(settings.stage2)
        words = title + "sounds with words"
        second, needs = home / "stage2", ("data", f"{name} stage1")
        plan.steps.append(_train(name, "stage2", words, second, shared, seed, needs=needs))
        model = second / "model"
    trained = f"{name} {'stage2' if plan.has_sounds else 'stage1'}"
    plan.steps.append(
        _evaluate(name, "evaluate", title + "measure", model, data, home / "evaluation", needs=(trained,))
    )
    plan.evaluations.append(home / "evaluation" / "evaluation.json")
    if with_control:
        control, words = home / "stage2-shuffled", title + "the control, sounds with shuffled words"
        shared += ("--set", "shuffle_pairs=true")
        plan.steps.append(
            _train(name, "stage2-shuffled", words, control, shared, seed, needs=("data", f"{name} stage1"))
        )
        place = home / "evaluation-shuffled"
        words, needs = title + "measure the control", (f"{name} stage2-shuffled",)
        plan.steps.append(_evaluate(name, "evaluate-shuffled", words, control / "model", data, place, needs=needs))
        plan.controls.append(place / "evaluation.json")


def _sets(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in ("--set", value))


def _train(
    name: str, phase: str, title: str, place: Path, sets: tuple[str, ...], seed: int, *, needs: tuple[str, ...]
) -> Step:
    recipe = "one_peace.stage1" if phase == "stage1" else "one_peace.stage2"
    argv = ("train", recipe, *sets, "--seed", str(seed), "--out", str(place))
    return Step(f"{name} {phase}", phase, title, argv, place / "model", place, needs)


def _evaluate(
    name: str, phase: str, title: str, model: Path, data: str, place: Path, *, needs: tuple[str, ...]
) -> Step:
    argv = ("eval", "emergent", str(model), "--data", data, "--out", str(place))
    return Step(f"{name} {phase}", phase, title, argv, place / "evaluation.json", place, needs)


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
    return "--audio", str(settings.data / example["audio"])
