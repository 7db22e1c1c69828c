"""`plait train finetune`: a model and a manifest of one's own -> plan, baselines, training, result, model directory.

model directory -> family -> job (build, stage, predict, save) -> measured before and after on the rows held out

A family brings its tasks in `recipes/<family>_finetune.py` as `JOBS`: task -> function (Request) -> Job.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plait.errors import UsageError
from plait.training.stages import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from plait.training.stages import Stage
    from plait.types import Sample

TASKS = ("retrieval", "classify", "caption", "vqa", "ground", "chat")
FAMILIES = {
    "one_peace": "plait.recipes.one_peace_finetune",
    "mplug2": "plait.recipes.mplug2_finetune",
    "mplug_owl": "plait.recipes.mplug_owl_finetune",
    "mplug_owl2": "plait.recipes.mplug_owl2_finetune",
}
"""model_type -> the module that holds its `JOBS`."""

HELD_OUT = ("test", "val", "validation", "dev")
MEDIA = ("image", "audio", "video", "text")
RESULT = "finetune.json"


@dataclass(frozen=True)
class Request:
    """What was asked for. model: a model directory; train, test: rows; medium: what the rows hold beside their text."""

    model: Path
    data: str
    task: str
    medium: str
    train: Sequence[Sample]
    test: Sequence[Sample]
    steps: int | None
    epochs: float | None
    batch_size: int
    lr: float | None
    lora: int
    bits: int
    augmentation: float
    reading: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a family does for a task.

    build: () -> model; stage: everything trains; predict: (model, rows) -> what `finetune_measures` scores; zero_shot:
    the same by the model as it came, where `predict` needs a head that is fresh; whole: model -> modules that train in
    full beside a LoRA; save: (model, directory).
    """

    build: Callable[[], nn.Module]
    stage: Stage
    predict: Callable[[nn.Module, Sequence[Sample]], Any]
    save: Callable[[nn.Module, Path], None]
    zero_shot: Callable[[nn.Module, Sequence[Sample]], Any] | None = None
    whole: Callable[[nn.Module], Sequence[str]] | None = None


def finetune(
    model: str,
    data: str,
    task: Literal["retrieval", "classify", "caption", "vqa", "ground", "chat"],
    lora: int = 0,
    bits: int = 0,
    steps: int | None = None,
    epochs: float = 10,
    batch_size: int = 16,
    lr: float | None = None,
    medium: str | None = None,
    augmentation: float = 0.3,
    workers: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Train a model on your own rows: LoRA or full, measured before and after on the rows you hold out.

    model: a model directory, or nano; data: a manifest, tar shards, parquet or a saved data set, with a split test;
    lora: rank of the adapter, 0 to train everything; bits: hold the frozen base in 4 or 8 bits beside it; steps instead
    of epochs where given; lr: the family's own without it; medium: image, audio, video or text, the most frequent
    without it (chat: all); augmentation: of pictures and sounds, 0 to 1; workers: threads that decode; on_bad,
    most_bad: skip so many rows that cannot be read.
    Needs: rows of split train or none, and of test. Cost: minutes for some hundred files on two cores with nano.
    """
    from plait.models import shipped

    place = Path(model) if Path(model).exists() else shipped(model) or Path(model)
    family = _family(place)
    if family not in FAMILIES or task not in (jobs := import_module(FAMILIES[family]).JOBS):
        known = ", ".join(jobs) if family in FAMILIES else "none yet"
        raise UsageError(f"expected a task that finetune knows for {family} ({known}), got {task}")
    if bits and not lora:
        raise UsageError(f"expected lora beside bits={bits}, got 0; a base of few bits cannot be trained itself")
    reading = {"workers": workers, "on_bad": on_bad, "most_bad": most_bad}
    length = (steps, None) if steps is not None else (None, epochs)
    medium, train, test = _rows(data, task, medium)
    request = Request(
        place, data, task, medium, train, test, *length, min(batch_size, len(train)), lr, lora, bits, augmentation,
        reading,
    )  # fmt: skip
    return _recipe(request, jobs[task](request))


def _family(place: Path) -> str:
    """The model_type of a model directory. Raises UsageError where there is none."""
    config = place / "config.json"
    if not config.is_file():
        raise UsageError(f"expected model=DIR with config.json, or nano, got {place}; plait convert makes one")
    return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))


def _rows(data: str, task: str, medium: str | None) -> tuple[str, list[Sample], list[Sample]]:
    """The medium, and the rows of it that have what the task needs: to train on, and held out."""
    from plait.data.mini import cached_mini
    from plait.data.sources import open_samples

    data = str(cached_mini()) if data == "mini" else data
    samples = list(open_samples(data))
    counts = Counter(m for s in samples for m in ("image", "audio", "video") if getattr(s, m) is not None)
    is_any = medium is None and task == "chat"  # conversations with pictures and without train together
    medium = medium or next((name for name, _ in counts.most_common(1)), "text")
    if medium not in MEDIA:
        raise UsageError(f"expected medium {', '.join(MEDIA)}, got {medium!r}")
    rows = [s for s in samples if (is_any or getattr(s, medium) is not None) and _has_target(s, task)]
    train = [s for s in rows if s.split in (None, "train")]
    test = [s for s in rows if s.split in HELD_OUT]
    if not train or not test:
        wanted = f"{medium} and {' or '.join(_TARGETS[task])}"
        raise ValueError(
            f"expected rows with {wanted} to train on and to hold out (split {' or '.join(HELD_OUT[:2])}) in {data}, "
            f"got {len(train)} and {len(test)}; plait data from-folder splits a folder"
        )
    return medium, train, test


_TARGETS = {
    "retrieval": ("text", "captions"),
    "classify": ("label",),
    "caption": ("captions", "text"),
    "vqa": ("answers",),
    "ground": ("boxes",),
    "chat": ("messages",),
}
"""Task -> the fields of a row of which one must be there."""


def _has_target(sample: Sample, task: str) -> bool:
    return any(getattr(sample, field) for field in _TARGETS[task])


def _recipe(request: Request, job: Job) -> Recipe:
    stage = job.stage
    if request.lora:
        from plait.training.lora import TRAINABLE

        stage = replace(stage, trainable=TRAINABLE)
    before, after = partial(_before, request, job, stage), partial(_after, request, job)
    return Recipe(partial(_build, request, job), [stage], partial(_save, request, job), before, after)


def _build(request: Request, job: Job) -> nn.Module:
    """The model in float32, which optimisers need, or as a base of few bits; with its adapter where there is one."""
    from plait.training.lora import add_lora, quantise

    model = job.build().float()
    if request.bits:
        quantise(model, request.bits)
    if request.lora:
        add_lora(model, request.lora, whole=job.whole(model) if job.whole else ())
    return model


def _before(request: Request, job: Job, stage: Stage, model: nn.Module, run_dir: Path) -> None:
    """Print the plan, and measure the trivial answer and the model as it came; once in a run."""
    from plait.recipes.finetune_measures import score, trivial
    from plait.recipes.plan import describe, plan_stage, with_cost

    print(describe(with_cost(plan_stage(model, stage), model, stage)), flush=True)
    path = run_dir / RESULT
    if not path.is_file():
        given = (job.zero_shot or job.predict)(model, request.test)
        found = {
            "task": request.task,
            "rows": {"train": len(request.train), "test": len(request.test)},
            "trivial": trivial(request.task, request.train, request.test),
            "before": None if given is None else score(request.task, given, request.test),
        }
        _write(path, found)
    _show(json.loads(path.read_text(encoding="utf-8")), "trivial", "before")


def _after(request: Request, job: Job, model: nn.Module, run_dir: Path) -> nn.Module:
    """Keep the adapter, merge it into a base in full precision, and measure the result; the model to save."""
    from plait.recipes.finetune_measures import score
    from plait.training.checkpoint import write_directory
    from plait.training.lora import folded, has_adapter, load_adapter, save_adapter

    model.eval()
    if has_adapter(model):
        write_directory(run_dir / "adapter", lambda directory: save_adapter(model, directory, request.model))
        if request.bits:
            device, model = next(model.parameters()).device, job.build().float()
            load_adapter(model, run_dir / "adapter")
            model.to(device).eval()
        folded(model)
    path = run_dir / RESULT
    found = json.loads(path.read_text(encoding="utf-8"))
    found["after"] = score(request.task, job.predict(model, request.test), request.test)
    _write(path, found)
    _show(found, "after")
    return model


def _save(request: Request, job: Job, model: nn.Module, directory: Path) -> None:
    """The model directory, and a card that says how to load it."""
    job.save(model, directory)
    name = directory.name.removeprefix(".writing-")
    lines = [
        "# A model finetuned with Plait",
        f"`{request.model.name}` on {len(request.train)} rows, task {request.task}, medium {request.medium}.",
        "```python",
        *how_to_load(model, name),
        "```",
    ]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def how_to_load(model: nn.Module, name: str) -> list[str]:
    """Three lines that load what was saved of `model` in the directory `name` with transformers."""
    import transformers

    from plait.models.auto import auto_class_of

    auto = auto_class_of(type(model))
    home, used = (transformers.__name__, auto) if auto else (type(model).__module__, type(model).__name__)
    return ["import plait.models.auto", f"from {home} import {used}", f'model = {used}.from_pretrained("{name}")']


def _write(path: Path, found: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _show(found: dict[str, Any], *names: str) -> None:
    """`before  accuracy 0.310 [0.220, 0.410] on 93 rows` for each of `names`."""
    for name in names:
        one = found[name]
        if one is None:
            print(f"{name:<9}the model cannot do this before it is trained", flush=True)
            continue
        low, high = one["interval"]
        about = f" ({one['about']})" if one.get("about") else ""
        print(
            f"{name:<9}{one['metric']} {one['value']:.3f} [{low:.3f}, {high:.3f}] "
            f"on {found['rows']['test']} rows{about}",
            flush=True,
        )
