"""The table of `plait study mplug2`: hits of every arm and seed -> means, intervals, differences and bars -> text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.metrics.bootstrap import bootstrap_mean, paired_bootstrap
from plait.recipes.mplug2_evaluate import LANGUAGE, MAJORITY, ONE_FRAME, OURS, SHUFFLED

POOLED = "all questions"
BARS = {
    MAJORITY: "beats the most frequent answer",
    LANGUAGE: "beats the question alone",
    ONE_FRAME: "beats one frame of an unknown time",
    SHUFFLED: "shuffled labels learn nothing",
}
"""Arm -> what is asked of the model, or of the arm, where it was measured."""


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % bootstrap intervals over examples, each example the mean of its seeds; and the bars.

    results: of one seed each, {"rows", "zero_shot", "gap", "examples", "cpu_seconds"}.
    """
    arms = results[0]["gap"]
    gaps = {arm: {key: float(np.mean([r["gap"][arm][key] for r in results])) for key in arms[arm]} for arm in arms}
    rows = _combined([result["rows"] for result in results])
    return {
        "seeds": len(results),
        "rows": [_figures(row) for row in rows],
        "zero_shot": [_figures(row) for row in _combined([result["zero_shot"] for result in results])],
        "bars": bars(rows),
        "gap": gaps,
        "examples": results[0]["examples"],
        "cpu_seconds": [result["cpu_seconds"] for result in results],
    }


def _combined(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows with the hits of every example, mean over seeds, and the mean of every seed."""
    rows = []
    for same in zip(*tables, strict=True):
        per_seed = [float(np.mean(row["hits"])) for row in same]
        rows.append(dict(same[0]) | {"hits": np.mean([row["hits"] for row in same], axis=0), "per_seed": per_seed})
    return rows


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    found = bootstrap_mean(row["hits"].tolist())
    return {
        "task": row["task"], "arm": row["arm"], "chance": row["chance"], "n": len(row["hits"]),
        "value": found.estimate, "interval": [found.lower, found.upper], "per_seed": row["per_seed"],
    }  # fmt: skip


def bars(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is asked of every task, the difference that decides it, and whether it is held.

    rows: with `hits` (examples,). The model has to be better than an arm, the 95 % interval of the paired difference
    above zero; a control may not be better than the better of chance and the most frequent answer. Questions (tasks
    with a language-only arm and choices) are also held to the question alone all together.
    """
    hits: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        hits.setdefault(row["task"], {})[row["arm"]] = np.asarray(row["hits"])
    chances = {row["task"]: row["chance"] for row in rows}
    found = []
    for arm in BARS:
        for task, arms in hits.items():
            if arm not in arms:
                continue
            if arm == SHUFFLED:
                found.append(_control(task, arms, chances[task]))
            else:
                found.append(_better(task, arm, arms[OURS], arms[arm]))
        questions = [arms for task, arms in hits.items() if LANGUAGE in arms and chances[task] is not None]
        if arm == LANGUAGE and questions:
            pooled = (np.concatenate([arms[name] for arms in questions]) for name in (OURS, LANGUAGE))
            found.append(_better(POOLED, arm, *pooled))
    return found


def _better(task: str, arm: str, ours: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    gain = paired_bootstrap(ours.tolist(), other.tolist())
    return {
        "bar": BARS[arm], "task": task, "against": arm, "difference": gain.estimate,
        "interval": [gain.lower, gain.upper], "held": gain.lower > 0,
    }  # fmt: skip


def _control(task: str, arms: Mapping[str, np.ndarray], chance: float | None) -> dict[str, Any]:
    guess = max(chance or 0.0, float(arms[MAJORITY].mean()) if MAJORITY in arms else 0.0)
    gain = bootstrap_mean((arms[SHUFFLED] - guess).tolist())
    return {
        "bar": BARS[SHUFFLED], "task": task, "against": "chance or majority", "difference": gain.estimate,
        "interval": [gain.lower, gain.upper], "held": gain.lower <= 0,
    }  # fmt: skip


def as_text(summary: Mapping[str, Any]) -> str:
    """The table, one task per line: every arm's share of right answers in percent; then bars and the gap."""
    lines = []
    for title in ("rows", "zero_shot"):
        rows = summary[title]
        lines += ["", "after training" if title == "rows" else "zero-shot, after pretraining on pictures alone"]
        for task in dict.fromkeys(row["task"] for row in rows):
            own = [row for row in rows if row["task"] == task]
            parts = [f"{row['arm']} {100 * row['value']:.1f}" for row in own]
            low, high = (100 * bound for bound in own[0]["interval"])
            chance = "" if own[0]["chance"] is None else f", chance {100 * own[0]['chance']:.1f}"
            lines.append(f"  {task:<26}{'; '.join(parts)} (interval {low:.1f}-{high:.1f}, n {own[0]['n']}{chance})")
    lines += ["", "what was asked of it (differences in points, 95 % intervals)"]
    for bar in dict.fromkeys(one["bar"] for one in summary["bars"]):
        own = [one for one in summary["bars"] if one["bar"] == bar]
        lines.append(f"  {bar}: held on {sum(one['held'] for one in own)} of {len(own)}")
        for one in own:
            low, high = (100 * bound for bound in one["interval"])
            verdict = "held" if one["held"] else "NOT held"
            lines.append(f"    {one['task']:<24}{100 * one['difference']:+.1f} ({low:+.1f} to {high:+.1f}) {verdict}")
    lines.append("")
    for arm, figures in summary["gap"].items():
        name = "universal layers apart" if arm.endswith("apart") else "universal layers shared"
        told = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in figures.items())
        lines.append(f"  {name}: {told}")
    lines.append("  CPU time: " + ", ".join(f"{s / 60:.1f}" for s in summary["cpu_seconds"]) + " minutes per seed")
    return "\n".join(lines)
