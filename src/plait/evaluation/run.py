"""What an evaluation found: result.json for machines, one page for people.

One evaluation: DIR -> items -> media checked -> predictions.jsonl -> scores -> result.json and result.html.

Predictions are complete on disk before anything is scored, so that `score_file` gives the same result without the
model. The directory of a run holds cache.jsonl (every answer), predictions.jsonl, result.json, result.html and, for
benchmarks scored by a server, submission.json.
"""

from __future__ import annotations

import hashlib
import html
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.evaluation.cache import ResponseCache
from plait.evaluation.media_files import MediaFiles, missing_line, missing_media
from plait.evaluation.readers import Item, read
from plait.evaluation.readers.files import read_rows, unique
from plait.evaluation.tasks import Task, Way
from plait.places import atomic_write
from plait.types import Modality

if TYPE_CHECKING:
    from plait.evaluation.scoring import Scored

SHOWN = 50
"""Predictions that the page lists."""


def build_result(
    task: Task,
    loaded: Loaded,
    rows: Sequence[Mapping[str, Any]],
    scored: Scored,
    model: Mapping[str, Any],
    rule: str | None,
    options: Options,
    seconds: float,
) -> dict[str, Any]:
    """The result of one evaluation, ready to be written.

    `units` are the values by item whose mean is the score, `groups` the items that hang together: what intervals and
    paired tests resample.
    """
    from plait.report.about import about

    primary = scored.scores.get(task.primary)
    prompts = Counter(row.get("prompt", "") for row in rows)
    return {
        "task": task.name,
        "about": task.about,
        "model": dict(model),
        "split": loaded.split,
        "layout": loaded.layout,
        "items": len(loaded.items),
        "items_in_split": loaded.total,
        "limit": options.limit,
        "rule": rule,
        "primary": task.primary,
        "score": primary,
        "interval": scored.interval(),
        "scores": scored.scores,
        "categories": scored.categories,
        "failures": {name: {"count": len(ids), "ids": ids[:SHOWN]} for name, ids in failures(rows, scored).items()},
        "notes": scored.notes,
        "prompt": next((row.get("prompt", "") for row in rows if row.get("prompt")), ""),
        "distinct_prompts": len(prompts),
        "units": scored.units,
        "groups": scored.groups,
        "predictions_sha256": hashlib.sha256(json.dumps([dict(r) for r in rows], sort_keys=True).encode()).hexdigest(),
        "published": [asdict(number) for number in task.published],
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%d"),
        "environment": about(),
    }


def failures(rows: Sequence[Mapping[str, Any]], scored: Scored) -> dict[str, list[str]]:
    """Ids of what went wrong, by kind: all of them count as wrong."""
    found: dict[str, list[str]] = {
        "media missing": [row["id"] for row in rows if row.get("failed") == "media missing"],
        "empty reply": [row["id"] for row in rows if row.get("prediction") == "" and not row.get("failed")],
        "unreadable": list(scored.unreadable),
    }
    return {name: ids for name, ids in found.items() if ids}


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write result.json in one step."""
    atomic_write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def write_page(path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the page: score with its interval, published numbers, exact prompt, failures, the first predictions."""
    model, environment = result["model"], result["environment"]
    facts = {
        "model": f"{model.get('name')} ({model.get('family', '')}, weights {model.get('fingerprint', 'unknown')})",
        "split": f"{result['split']}, {result['items']} of {result['items_in_split']} items ({result['layout']})",
        "metric": f"{result['primary']}" + (f", rule {result['rule']}" if result["rule"] else ""),
        "decoding": json.dumps(model.get("decoding", {})),
        "failures": ", ".join(f"{v['count']} {k}" for k, v in result["failures"].items()) or "none",
        "notes": "; ".join(result["notes"]) or "none",
        "measured": f"{result['date']}, {result['seconds']} s",
        "versions": ", ".join(f"{k} {v}" for k, v in environment["versions"].items()),
        "commit": environment["commit"],
    }
    shown = [[row["id"], row.get("prompt", ""), row.get("raw"), row.get("prediction")] for row in rows[:SHOWN]]
    published = [[one["model"], one["value"], one["status"]] for one in result["published"]]
    parts = [
        f"<h1>{_safe(result['task'])}: {_safe(headline(result))}</h1>",
        f"<p>{_safe(result['about'])}</p>",
        _table([], [[name, value] for name, value in facts.items()]),
        f"<h2>Prompt</h2><pre>{_safe(result['prompt'] or 'none')}</pre>",
        "<h2>Scores</h2>"
        + _table([], [[k, _number(v)] for k, v in {**result["scores"], **result["categories"]}.items()]),
        "<h2>Published by others</h2>" + _table(["model", "value", "status"], published),
        f"<h2>First {len(shown)} predictions</h2>" + _table(["id", "prompt", "raw", "prediction"], shown),
    ]
    style = (
        "body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
    )
    style += "td,th{border-bottom:1px solid #ddd;padding:.2rem .6rem;text-align:left;vertical-align:top}"
    style += "pre{white-space:pre-wrap}"
    page = f"<!doctype html><meta charset=utf-8><title>{_safe(result['task'])}</title><style>{style}</style>"
    path.write_text(page + "\n".join(parts) + "\n", encoding="utf-8")


def headline(result: Mapping[str, Any]) -> str:
    """The score in words, with its interval."""
    if result["score"] is None:
        return "predictions written, not scored"
    interval = result["interval"]
    around = f" (95 % {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    rule = f", rule {result['rule']}" if result["rule"] else ""
    return f"{result['primary']} {result['score']:.2f}{around}{rule}, {result['items']} items"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = f"<tr>{''.join(f'<th>{_safe(cell)}</th>' for cell in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{_safe(_short(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _safe(value: Any) -> str:
    return html.escape(str(value))


PREDICTIONS, CACHE, RESULT, PAGE, SUBMISSION = (
    "predictions.jsonl", "cache.jsonl", "result.json", "result.html", "submission.json",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How a task is run. rule: a variant of the metric. template: how the user's media files are called.

    skip_missing: items without media count as wrong instead of stopping the run. judge: stored replies or a model.
    """

    split: str | None = None
    limit: int | None = None
    rule: str | None = None
    batch_size: int = 8
    template: str | None = None
    skip_missing: bool = False
    judge: str | None = None
    show_progress: bool | None = None


@dataclass
class Loaded:
    """Items of a task with where they come from."""

    items: list[Item]
    files: MediaFiles
    split: str
    layout: str
    total: int


def load_items(task: Task, data: str | Path, options: Options) -> Loaded:
    """Read the annotation files of a task. ValueError where they are absent or malformed, or nothing is left."""
    split = options.split or task.split
    items, _, layout = read(data, task.layouts, split)
    if task.media == ("image",):  # ScienceQA has questions without a picture: they are no part of the score
        items = [item for item in items if item.pictures]
    if not items:
        raise ValueError(f"expected items in split {split!r} of {task.name} in {data}, got none; pass --split")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"expected --limit of at least 1, got {options.limit}")
    return Loaded(items[: options.limit], MediaFiles(data, options.template), split, layout, len(items))


def prepare(task: Task, data: str | Path, options: Options) -> Loaded:
    """Items of a task whose media are there. Needs no model: call it before one is opened.

    Raises ValueError where annotation files are absent or malformed, and one that lists missing media.
    """
    check_rule(task, options.rule)
    loaded = load_items(task, data, options)
    missing = missing_media(loaded.items, loaded.files, _seen(task))
    if missing and not options.skip_missing:
        raise ValueError(missing_line(sorted(missing), loaded.files.root))
    return loaded


def _seen(task: Task) -> list[Modality]:
    return [modality for modality in task.media if modality != "text"]


def predict(task: Task, model: Any, loaded: Loaded, options: Options, out: Path | None) -> list[dict[str, Any]]:
    """Make predictions, answer by answer through the cache of `out`, and write them to predictions.jsonl."""
    from plait.evaluation.predict import WAYS, Setting

    way, modalities = way_of(task, model), _seen(task)
    missing = set(missing_media(loaded.items, loaded.files, modalities))
    present = [item for item in loaded.items if not missing & _names(item, modalities)]
    about = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "task": task.name,
        "way": way,
        "decoding": asdict(task.decoding_of(model.family)),
        "frames": task.num_frames,
    }
    with ResponseCache(None if out is None else out / CACHE, about) as cache:
        setting = Setting(task, model, loaded.files, cache, options.batch_size, options.show_progress)
        rows = WAYS[way](present, setting) if present else []
    rows += [
        {"id": item.id, "prediction": None, "raw": None, "prompt": "", "failed": "media missing"}
        for item in loaded.items
        if missing & _names(item, modalities)
    ]
    if out is not None:
        write_rows(out / PREDICTIONS, rows)
    return rows


def _names(item: Item, modalities: Sequence[Any]) -> set[str]:
    from plait.evaluation.media_files import media_of

    return {str(name) for _, name in media_of(item, modalities)}


def way_of(task: Task, model: Any) -> Way:
    """How this model predicts for this task. ValueError where it cannot."""
    for capability, way in task.ways.items():
        if capability in model.capabilities:
            return way
    raise ValueError(
        f"expected a model that can {' or '.join(task.ways)} for {task.name}, got {model.name}, "
        f"which can {', '.join(model.capabilities)}"
    )


def evaluate(
    task: Task, model: Any, data: str | Path | Loaded, out: Path | None, options: Options | None = None
) -> dict[str, Any]:
    """Run a task with an open model (see `plait.evaluation.models`); returns the result that result.json holds.

    data: the directory of the data set, or what `prepare` made of it.
    """
    options = options or Options()
    started = time.perf_counter()
    loaded = data if isinstance(data, Loaded) else prepare(task, data, options)
    rows = predict(task, model, loaded, options, out)
    about = {
        "name": model.name,
        "family": model.family,
        "fingerprint": model.fingerprint,
        "way": way_of(task, model),
        "decoding": asdict(task.decoding_of(model.family)),
    }
    return _finish(task, loaded, rows, about, options, out, time.perf_counter() - started)


def score_file(
    task: Task, predictions: Path, data: str | Path, out: Path | None, options: Options | None = None
) -> dict[str, Any]:
    """Score predictions.jsonl, or a submission file, without the model.

    Raises ValueError for ids that come twice, that are not in the data, or that have no prediction.
    """
    options = options or Options()
    check_rule(task, options.rule)
    loaded = load_items(task, data, options)
    rows = [dict(row) for row in _prediction_rows(predictions)]
    beside = predictions.parent / RESULT
    stored = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    about = stored.get("model", {"name": predictions.stem, "way": "stored predictions"})
    return _finish(task, loaded, rows, about, options, out, 0.0)


def _prediction_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    from plait.evaluation.readers.results import read_results

    rows = read_rows(path)
    if rows and "id" in rows[0] and "prediction" in rows[0]:
        unique(path.name, (row.text("id") for row in rows))
        return rows
    return [{"id": key, "prediction": value, "raw": value, "prompt": ""} for key, value in read_results(path)]


def check_rule(task: Task, rule: str | None) -> None:
    """Raise UsageError for a rule that the task does not have."""
    from plait.errors import UsageError

    if rule is not None and rule not in task.rules:
        have = f"one of {', '.join(task.rules)}" if task.rules else "no --rule"
        raise UsageError(f"expected {have} for {task.name}, got {rule!r}")


def _finish(
    task: Task,
    loaded: Loaded,
    rows: list[dict[str, Any]],
    model: Mapping[str, Any],
    options: Options,
    out: Path | None,
    seconds: float,
) -> dict[str, Any]:
    pass
    from plait.evaluation.scoring import Scoring, score
    from plait.evaluation.submissions import write_submission

    rule = options.rule or (task.rules[0] if task.rules else None)
    scored = score(task, Scoring(loaded.items, rows, rule, options.judge, loaded.files, out))
    result = build_result(task, loaded, rows, scored, model, rule, options, seconds)
    if out is not None:
        if task.submission:
            result["submission"] = write_submission(task, loaded.items, rows, out, model["name"]).name
        write_result(out / RESULT, result)
        write_page(out / PAGE, result, rows)
    return result


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines in one step: the file is whole or absent."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
