"""`plait eval TASK MODEL --data DIR`: measure a model on a task; `--list` shows tasks, `compare` tests two results."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.options import DtypeOption, raise_limits
from plait.errors import UsageError
from plait.places import at_work
from plait.training.run import refuse_beside

if TYPE_CHECKING:
    from plait.evaluation.emergent import Evaluation


def _emergent(
    model: Path, data: Path, out: Path | None, adapter: Path | None = None, dtype: str | None = None
) -> Evaluation:
    """Retrieval between modalities that no training paired, with sounds where the model hears."""
    from plait.embedder import Embedder
    from plait.evaluation.emergent import HeldOut, evaluate_emergent

    HeldOut.read(data)  # what is wrong with the data is told before a model is opened
    embedder = Embedder(model, adapter=adapter, dtype=dtype)
    gallery = None if out is None else out / "gallery"
    return evaluate_emergent(embedder, data, gallery=gallery, audio="audio" in embedder.modalities)


TASKS: dict[str, Callable[..., Evaluation]] = {"emergent": _emergent}
"""Tasks with a report of their own: name -> function of (model, data, output directory, adapter, dtype)."""

RuleOption = Annotated[
    str | None, typer.Option(help="variant of the metric, such as release for VQA; the task's own without it")
]
OutOption = Annotated[
    Path | None, typer.Option(help="directory of the run: predictions, cache, result; nothing is kept without it")
]
PredictionsOption = Annotated[
    Path | None, typer.Option(help="score this file; no model is needed; without it the model answers")
]
JudgeOption = Annotated[
    str | None, typer.Option(help="stored replies (.jsonl) or a model that grades; none without it")
]
MediaOption = Annotated[
    str | None,
    typer.Option(help="how media files are called, such as 'clips/{stem}.flac'; as annotations name them without it"),
]
AnswersOption = Annotated[
    Path | None,
    typer.Option(help="list of answers that families which rank choose from; the task's own without it"),
]
RerankOption = Annotated[
    int | None,
    typer.Option(help="best items of a retrieval that the match head scores; 0: none; the published number without it"),
]


def evaluate(
    task: Annotated[str | None, typer.Argument(help="what to measure (--list), compare, or leaderboard")] = None,
    model: Annotated[str | None, typer.Argument(help="model directory, hf:DIR, or results")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="data set directory with its annotation files and media; needed, else --list or compare"),
    ] = None,
    *,
    other: Annotated[str | None, typer.Argument(help="the other result.json to compare")] = None,
    split: Annotated[str | None, typer.Option(help="split; the published one by default")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N, NAME=NUMBER",
            help="only the first N items; or what one media file may cost, such as max_seconds=3600; repeatable",
        ),
    ] = None,
    rule: RuleOption = None,
    out: OutOption = None,
    predictions: PredictionsOption = None,
    judge: JudgeOption = None,
    batch_size: Annotated[int, typer.Option(help="items per forward pass")] = 8,
    media: MediaOption = None,
    adapter: Annotated[
        Path | None, typer.Option(help="directory of a LoRA trained on the model; none without it")
    ] = None,
    dtype: DtypeOption = None,
    frames: Annotated[str, typer.Option(help="frames of films: published, time (evenly), or a rule")] = "published",
    rerank: RerankOption = None,
    answers: AnswersOption = None,
    multi_scale: Annotated[bool, typer.Option(help="segmenters look at the published scales, mirrored too")] = False,
    skip_missing: Annotated[bool, typer.Option(help="count items without media as wrong")] = False,
    listing: Annotated[bool, typer.Option("--list", help="show every task")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure MODEL on TASK with the official files of a data set."""
    count = _first_items(limit)
    needless = {
        "--data": data, "--out": None if task == "leaderboard" else out, "--split": split, "--limit": count,
        "--rule": rule, "--predictions": predictions, "--judge": judge, "--media": media, "--adapter": adapter,
        "--frames": None if frames == "published" else frames, "--skip-missing": skip_missing or None,
        "--rerank": rerank, "--answers": answers,
    }  # fmt: skip
    if task in TASKS:
        needless = {name: value for name, value in needless.items() if name not in ("--data", "--out", "--adapter")}
    if task in ("compare", "leaderboard", *TASKS):
        refuse_beside(task, **needless)
    elif predictions is not None:
        refuse_beside("--predictions, which no model makes", MODEL=model, **{"--adapter": adapter, "--dtype": dtype})
    if listing:
        print(_listing(as_json))
    elif task == "compare":
        print(_compare(model, other, as_json))
    elif task is None:
        raise UsageError("expected a task, got none; plait eval --list shows them")
    elif task == "leaderboard":
        print(_leaderboard(model, out))
    elif other is not None:
        raise UsageError(f"expected TASK MODEL, got a third name {other!r}; only compare takes two results")
    elif data is None:
        raise UsageError(f"expected --data DIR for {task}, got none; pass the directory with its annotation files")
    elif task in TASKS:
        _run_own(task, _required(model, task), data, out, as_json, adapter, dtype)
    else:
        from plait.evaluation.run import Options

        options = Options(
            split, count, rule, batch_size, media, skip_missing, judge, frames=frames, rerank=rerank, answers=answers,
            dtype=dtype, multi_scale=multi_scale,
        )  # fmt: skip
        print(_run(task, model, data, out, predictions, options, as_json, adapter))


def _first_items(given: list[str] | None) -> int | None:
    """The N of `--limit N`, None without one; limits of media stand under the same name and are raised."""
    counts = [one for one in given or () if "=" not in one]
    raise_limits([one for one in given or () if "=" in one])
    if not counts:
        return None
    if len(counts) > 1 or not counts[0].isdecimal() or not int(counts[0]):
        raise UsageError(f"expected --limit N, a number of items from 1 on, got {' and '.join(counts)}")
    return int(counts[0])


def _required(model: str | None, task: str) -> str:
    """The model, which `compare` and --predictions alone do without; a string, since it may be `hf:DIR`."""
    if model is None:
        raise UsageError(f"expected a model for {task}, got none; pass a model directory, or --predictions FILE")
    return model


def _run_own(
    task: str, model: str, data: Path, out: Path | None, as_json: bool, adapter: Path | None, dtype: str | None
) -> None:
    """A task with a report of its own: measure, store where asked, print its metrics."""
    with nullcontext() if out is None else at_work(out):
        result = TASKS[task](Path(model), data, out, adapter, dtype)
        if out is not None:
            result.save(out)
    stored = result.to_json()["metrics"]
    print(json.dumps(stored) if as_json else as_table(stored))


def _run(
    name: str,
    model: str | None,
    data: Path,
    out: Path | None,
    predictions: Path | None,
    options: Any,
    as_json: bool,
    adapter: Path | None,
) -> str:
    """A registered task: score stored predictions or open a model and ask it; what is printed then."""
    from plait.evaluation.result import PAGE, headline
    from plait.evaluation.run import check_rule, evaluate, prepare, score_file
    from plait.evaluation.tasks import task_named

    task = task_named(name)
    check_rule(task, options.rule)
    if predictions is not None:
        if not predictions.is_file():
            raise UsageError(f"expected a file of predictions, got {predictions}: no such file")
        with nullcontext() if out is None else at_work(out):
            result = score_file(task, predictions, data, out, options)
    else:
        from plait.evaluation.models import open_model

        spec = _required(model, name)
        # Named after task, model and LoRA, so that results of several stand side by side.
        own = f"{name}-{Path(spec.removeprefix('hf:')).name}" + (f"-{adapter.name}" if adapter else "")
        own += f"-{options.dtype}" if options.dtype else ""
        out = out or Path("runs") / "eval" / own
        with at_work(out):
            # what is wrong with the data is told before a model is opened
            loaded = prepare(task, data, options)
            result = evaluate(task, open_model(spec, task.methods, adapter, options.dtype), loaded, out, options)
    if as_json:
        return json.dumps(result, ensure_ascii=False)
    lines = [f"{name}: {headline(result)}", *(f"  {k:<28}{v:>10.2f}" for k, v in result["scores"].items())]
    lines += [f"  {kind}: {found['count']}" for kind, found in result["failures"].items()]
    lines += [f"  note: {note}" for note in result["notes"]]
    return "\n".join([*lines, *([f"  {out / PAGE}"] if out is not None else [])])


def _compare(first: str | None, second: str | None, as_json: bool) -> str:
    """Two results on the same items, and whether their difference is more than chance."""
    from plait.evaluation.compare import as_lines, compare

    if first is None or second is None:
        raise UsageError("expected two results, such as plait eval compare A/result.json B/result.json")
    found = compare(first, second)
    return json.dumps(found) if as_json else as_lines(found)


def _leaderboard(results: str | None, out: Path | None) -> Path:
    """Write the table of all results below a directory; its path."""
    from plait.evaluation.compare import write_leaderboard

    if results is None or not Path(results).is_dir() or out is None:
        raise UsageError("expected plait eval leaderboard RESULTS_DIR --out FILE.md, with a directory that exists")
    return write_leaderboard(Path(results), out)


def _listing(as_json: bool) -> str:
    """Every task with its split, size, metric, what a model must be able to do, and two published numbers."""
    from dataclasses import asdict

    from plait.evaluation.tasks import all_tasks

    if as_json:
        told = ("name", "about", "layouts", "split", "media", "methods", "kind", "primary", "rules", "size", "needs")
        rows = [
            {**{key: getattr(task, key) for key in told}, "submission": task.submission is not None,
             "published": [asdict(one) for one in task.published]}
            for task in all_tasks()
        ]  # fmt: skip
        return json.dumps(rows + [{"name": name} for name in TASKS])
    head = f"{'task':<24}{'split':<12}{'items':>8}  {'metric':<38} {'models that':<16}{'needs':<18}published"
    lines = [head]
    for task in all_tasks():
        metric = task.primary + (f" ({'|'.join(task.rules)})" if task.rules else "")
        needs = task.needs or ("server for test" if task.submission else "")
        known = "; ".join(f"{one.model} {one.value} [{one.status}]" for one in task.published[:2])
        can = "|".join(task.methods)
        lines.append(
            f"{task.name:<24}{task.split:<12}{task.size or '':>8}  {metric:<38} {can:<16}{needs:<18}{known}".rstrip()
        )
    return "\n".join([*lines, f"{'emergent':<24}{'test':<12}{'':>8}  {'recall':<38} {'embed':<16}"])


def as_table(metrics: dict[str, Any]) -> str:
    """Lines of `name value [interval] chance queries gallery` for people; what was not measured is left out."""
    lines = [f"{'metric':<32}{'value':>7}  {'95 % interval':<15}{'chance':>7}{'queries':>9}{'gallery':>9}"]
    for name, found in metrics.items():
        if found is not None:
            low, high = found["interval"]
            lines.append(
                f"{name:<32}{found['value']:>7.3f}  {f'{low:.3f} to {high:.3f}':<15}{found['chance']:>7.3f}"
                f"{found['queries']:>9}{found['gallery']:>9}"
            )
    return "\n".join(lines)
