"""The table of `plait study owl2`: results.json of every arm and seed -> summary -> text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.drawn_tasks import Drawings
from plait.inspect.table import format_table
from plait.recipes.mplug_owl2_batches import TASKS
from plait.recipes.mplug_owl2_measures import CHOICE_TASKS, CONDITIONS, majority, perplexity

REFERENCE = "adaptive"


def summarise(out: Path, order: Sequence[str], drawings: Drawings, count: int) -> dict[str, Any]:
    """Figures of every measured arm, means over seeds, and each arm's accuracy minus that of `adaptive`.

    order: names of arms that come first; arms of other names follow by the alphabet.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("seed-*/*/results.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(one["arm"], []).append(one)
    names = [name for name in order if name in found] + sorted(found.keys() - set(order))
    rows = [{"arm": name, **_row(found[name])} for name in names]
    for row in rows:
        own = found[row["arm"]]
        if row["arm"] != REFERENCE and len(own) == len(found.get(REFERENCE, ())):
            row["minus_adaptive"] = resampled(_all(own, "image") - _all(found[REFERENCE], "image"))
    guessing = majority(drawings, count)
    likeliest = float(np.mean([guessing[task] for task in CHOICE_TASKS]))
    return {
        "rows": rows,
        "majority": guessing | {"all": float(np.mean(list(guessing.values()))), "likeliest": likeliest},
    }


def resampled(values: np.ndarray) -> dict[str, Any]:
    """Mean and its 95 % percentile bootstrap interval over examples. values: (examples,)."""
    drawn = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return {"value": float(values.mean()), "interval": [float(low), float(high)]}


def _row(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    vqa = {}
    for condition in CONDITIONS:
        tasks = {task: float(_hits(results, task, condition).mean()) for task in TASKS}
        vqa[condition] = {"tasks": tasks, **resampled(_all(results, condition))}
    texts = {kind: float(np.mean([perplexity(r["text"][kind]) for r in results])) for kind in ("snippets", "news")}
    return {
        "seeds": len(results),
        "train_seconds": float(np.mean([r["train_seconds"] for r in results])),
        "vqa": vqa,
        "likeliest": resampled(_likeliest(results)),
        "perplexity": texts,
        "feeling": resampled(np.mean([r["text"]["feeling"] for r in results], axis=0)),
    }


def _hits(results: Sequence[Mapping[str, Any]], task: str, condition: str) -> np.ndarray:
    return np.mean([one["vqa"][task][condition] for one in results], axis=0)


def _all(results: Sequence[Mapping[str, Any]], condition: str) -> np.ndarray:
    """All questions of all tasks, each the mean of its seeds."""
    return np.concatenate([_hits(results, task, condition) for task in TASKS])


def _likeliest(results: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """All questions with choices, whether the right one was the likeliest, each the mean of its seeds."""
    return np.concatenate([np.mean([one["ranked"][task] for one in results], axis=0) for task in CHOICE_TASKS])


def as_text(summary: Mapping[str, Any]) -> str:
    """Accuracy in percent on a held-out style with intervals, controls, perplexities, feeling; then differences."""
    head = ["arm", *TASKS, "all", "(95 %)", "no image", "other image", "likeliest", "(95 %)"]
    head += ["ppl snippets", "ppl news", "feeling", "(95 %)"]
    rows = []
    for row in summary["rows"]:
        seen = row["vqa"]["image"]
        cells = [row["arm"], *(_percent(seen["tasks"][task]) for task in TASKS), *_with_range(seen)]
        cells += [_percent(row["vqa"][condition]["value"]) for condition in CONDITIONS[1:]]
        cells += _with_range(row["likeliest"])
        cells += [f"{row['perplexity'][kind]:.2f}" for kind in ("snippets", "news")]
        rows.append([*cells, *_with_range(row["feeling"])])
    guessing = summary["majority"]
    known = [_percent(guessing[task]) for task in (*TASKS, "all")]
    rows.append(["majority", *known, *[""] * 3, _percent(guessing["likeliest"]), *[""] * 5])
    lines = [format_table(head, rows)]
    for row in summary["rows"]:
        if (gap := row.get("minus_adaptive")) is not None:
            low, high = (f"{100 * bound:+.1f}" for bound in gap["interval"])
            lines.append(f"{row['arm']} minus {REFERENCE}: {100 * gap['value']:+.1f} points ({low} to {high})")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _with_range(found: Mapping[str, Any]) -> list[str]:
    return [_percent(found["value"]), "-".join(_percent(bound) for bound in found["interval"])]
