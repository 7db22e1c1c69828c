"""What an evaluation found: result.json for machines, one page for people.

task, items, prediction rows, scores, what was used -> build_result -> result.json
result, rows -> write_result_page -> result.html
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from plait.evaluation.base import Item, Scored, Task
from plait.evaluation.files import MediaFiles
from plait.report.about import about
from plait.report.page import section, write_page
from plait.report.run import said_section
from plait.report.tables import plain_table

PREDICTIONS, RESULT, PAGE = "predictions.jsonl", "result.json", "result.html"
SHOWN = 50
"""Predictions that the page lists, and ids of failures that the result keeps."""
_LONGEST_CELL = 400


@dataclass
class Loaded:
    """Items of a task with where they come from.

    Attributes:
        items: after any limit.
        files: media of the data set.
        split, layout: which were read.
        total: items of the split before any limit.
    """

    items: list[Item]
    files: MediaFiles
    split: str
    layout: str
    total: int


def build_result(
    task: Task,
    loaded: Loaded,
    rows: Sequence[Mapping[str, Any]],
    scored: Scored,
    model: Mapping[str, Any],
    rule: str | None,
    limit: int | None,
    seconds: float,
) -> dict[str, Any]:
    """The result of one evaluation, ready to be written as JSON.

    Args:
        task, loaded, rows, scored: what was asked, of which items, what came back and what it is worth.
        model: who was asked and with what: method, kind of question, decoding, frames.
        rule, limit: as the run had them.
        seconds: of the run; 0 where only scores were made.

    Returns:
        Names as in result.json. `units` are the values by item whose mean is the score, `groups` the items that
        hang
        together: what intervals and paired tests resample.
    """
    failures = {  # all of them count as wrong
        "media missing": [row["id"] for row in rows if row.get("failed") == "media missing"],
        "empty reply": [row["id"] for row in rows if row.get("prediction") == "" and not row.get("failed")],
        "unreadable": list(scored.unreadable),
    }
    return {
        "task": task.name,
        "about": task.about,
        "model": dict(model),
        "split": loaded.split,
        "layout": loaded.layout,
        "items": len(loaded.items),
        "items_in_split": loaded.total,
        "limit": limit,
        "rule": rule,
        "primary": task.primary,
        "score": scored.scores.get(task.primary),
        "interval": scored.interval(),
        "scores": scored.scores,
        "categories": scored.categories,
        "failures": {kind: {"count": len(ids), "ids": ids[:SHOWN]} for kind, ids in failures.items() if ids},
        "notes": scored.notes,
        # the first one stands for all; their number beside it tells whether that is fair
        "prompt": next((row.get("prompt", "") for row in rows if row.get("prompt")), ""),
        "distinct_prompts": len(Counter(row.get("prompt", "") for row in rows)),
        "units": scored.units,
        "groups": scored.groups,
        # by this two results can be told to rest on the same predictions
        "predictions_sha256": hashlib.sha256(json.dumps([dict(r) for r in rows], sort_keys=True).encode()).hexdigest(),
        "published": [asdict(number) for number in task.published],
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%d"),
        "environment": about(),
    }


def write_result_page(
    path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], items: Sequence[Item], command: str
) -> Path:
    """Write the page: score with its interval, command, prompt, published numbers, right and wrong, predictions.

    Args:
        path: of the page.
        result: from `build_result`.
        rows: prediction rows.
        items: what was asked about.
        command: that measures it again.

    Returns:
        The path.
    """
    model, environment = result["model"], result["environment"]
    decoding = ", ".join(f"{name} {value}" for name, value in model.get("decoding", {}).items())
    facts = {
        "model": f"{model.get('name')} ({model.get('family', '')}, weights {model.get('fingerprint', 'unknown')})",
        "split": f"{result['split']}, {result['items']} of {result['items_in_split']} items ({result['layout']})",
        "metric": f"{result['primary']}" + (f", rule {result['rule']}" if result["rule"] else ""),
        "asked": f"{model.get('method', '')} {model.get('kind', '')}".strip() or "unknown",
        "decoding": decoding or "none",
        "frames of a video": f"{model['num_frames']}, {model.get('frames', 'time')}"
        if "num_frames" in model
        else "none",
        "failures": ", ".join(f"{v['count']} {k}" for k, v in result["failures"].items()) or "none",
        "notes": "; ".join(result["notes"]) or "none",
        "measured": f"{result['date']}, {result['seconds']} s",
        "versions": ", ".join(f"{k} {v}" for k, v in environment["versions"].items()),
        "commit": environment["commit"],
    }
    scores = {**result["scores"], **result["categories"]}
    measured = [[name, f"{v:.4g}" if isinstance(v, float) else v] for name, v in scores.items()]
    published = [[one["model"], one["value"], one["status"]] for one in result["published"]]
    shown = [[_short(row.get(name, "")) for name in ("id", "prompt", "raw", "prediction")] for row in rows[:SHOWN]]
    prompt, again = (f"<pre>{escape(words)}</pre>" for words in (result["prompt"] or "none", command))
    told = plain_table(["id", "prompt", "raw", "prediction"], shown)
    sections = [
        f'<header class="hero"><h1>{escape(result["task"])}: {escape(headline(result))}</h1>'
        f'<p class="lead">{escape(result["about"])}</p></header>',
        section("What was measured", "", again + plain_table([], list(facts.items())), "facts"),
        section("Prompt", "", prompt, "prompt"),
        section("Scores", "", plain_table([], measured), "scores"),
        said_section({"task": _table_of(items), "said": said_of(items, rows, result["units"])}),
        section("Published by others", "", plain_table(["model", "value", "status"], published), "published"),
        section(f"First {len(shown)} predictions", "", f'<div class="wide">{told}</div>', "rows"),
    ]
    return write_page(path, result["task"], sections)


def _table_of(items: Sequence[Item]) -> str:
    """`classify` where every item has one class with a name, and a table of classes says something."""
    return "classify" if items and all(i.label is not None and i.label_name is not None for i in items) else ""


def said_of(
    items: Sequence[Item], rows: Sequence[Mapping[str, Any]], units: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What was right and what was said of every item whose answer is a word, a choice or a class.

    Args:
        items, rows: asked and predicted.
        units: the value of each; above 0 counts as right, so that half a point is no mistake.

    Returns:
        Rows for `plait.report.run.said_section`.
    """
    names = {item.label: item.label_name for item in items if item.label_name is not None}
    names |= next((item.meta["classes"] for item in items if "classes" in item.meta), {})
    said = {row["id"]: row.get("prediction") for row in rows}
    found = []
    for item in items:
        choice = None if item.choices is None or item.answer_index is None else item.choices[item.answer_index]
        right = item.answers or [one for one in (choice, item.label_name) if one is not None][:1]
        answer = said.get(item.id)
        if isinstance(answer, list) and answer and not isinstance(answer[0], list | dict):
            # classes, best first
            answer = answer[0]
        if isinstance(answer, int) and not isinstance(answer, bool):
            has = item.choices is not None and 0 <= answer < len(item.choices)
            answer = item.choices[answer] if has and item.choices else names.get(answer)
        if right and isinstance(answer, str) and item.id in units:
            words = {"right": [str(one) for one in right], "said": _short(answer)}
            found.append({"id": item.id, **words, "is_right": units[item.id] > 0})
    return found


def headline(result: Mapping[str, Any]) -> str:
    """The score in words, with its interval, rule and number of items; "not scored" where there is none."""
    if result["score"] is None:
        return "predictions written, not scored"
    interval = result["interval"]
    around = f" (95 % {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    rule = f", rule {result['rule']}" if result["rule"] else ""
    return f"{result['primary']} {result['score']:.2f}{around}{rule}, {result['items']} items"


def _short(value: Any) -> str:
    """A value as text for a cell, cut to `_LONGEST_CELL` characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]} ..."
