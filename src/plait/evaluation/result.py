"""What an evaluation found: result.json for machines, one page for people."""

from __future__ import annotations

import hashlib
import html
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.evaluation.tasks import Task

if TYPE_CHECKING:
    from plait.evaluation.run import Loaded, Options
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
    from plait.evaluation.summary import about

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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


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
