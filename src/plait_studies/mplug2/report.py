"""The table of `plait study mplug2`: hits of every arm and seed -> means, intervals, differences and bars -> text.

The page of `plait study mplug2`: every arm beside its baselines, and what the decoder saw, wrote and looked at.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.metrics.bootstrap import bootstrap_mean, paired_bootstrap
from plait.report.charts import line_chart
from plait.report.page import section, write_page
from plait.report.tables import meter, percent
from plait.training.logging import read_metrics
from plait_studies.mplug2.measures import LANGUAGE, MAJORITY, ONE_FRAME, OURS, SHUFFLED

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


TITLE = "One network, modules picked per task"
WORDS = {
    "caption": "caption a drawing",
    "name": "what is this?",
    "kind": "what kind of thing is this?",
    "is_kind": "is this a …?",
    "is_there": "is there a …?",
    "count": "how many things are there?",
    "beside": "what is left of the …?",
    "order": "clip: what comes first?",
    "motion": "clip: which way does it move?",
    "text: feeling": "is a movie snippet positive?",
    "picture: kind": "head on pictures: kind of thing",
    "clip: motion": "head on clips: which way it moves",
}
LEAD = (
    "A small mPLUG-2 learnt pictures with names, then every task below by another path through the same modules. All "
    "examples are new: drawings of a style that was never trained on, in scenes and clips composed of them, and "
    "held-out sentences. Whiskers are 95 % bootstrap intervals over examples, the red tick is guessing."
)
HONEST = (
    "Drawings are emoji of independent artists; scenes and clips are composed of them, and motion is made, not filmed. "
    "The network has a few million weights and knows only the things it was trained on; all test pictures are made of "
    "one held-out drawing of each, so naming has as many examples as there are things. Where an answer is one of a "
    "list, the model ranks the list; free generation is what it writes without one, right when it is exactly the "
    "answer. Language only is the most frequent training answer to the same question; one frame is a model trained on "
    "a frame of an unknown time; picture removed shows the trained model white pages; shuffled labels is a model "
    "trained on answers of other examples; ImageNet features are those of an EfficientNet-Lite0 trained on a million "
    "photographs, with a line on top."
)


def report(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write `out`/report.html."""
    shared = summary["gap"]
    gaps = "".join(
        f"<p><b>universal layers {'apart' if arm.endswith('apart') else 'shared'}</b>: centroids of pictures and names "
        f"{figures['centroid_distance']:.3f} apart, told apart by a line {percent(figures['separability'])} of the time"
        "</p>"
        for arm, figures in shared.items()
    )
    seconds = f"{round(np.mean(summary['cpu_seconds']) / 60)} minutes of CPU time per seed, {summary['seeds']} seed(s)"
    sections = [
        f'<header class="hero"><h1>{TITLE}</h1><p class="lead">{LEAD}</p></header>',
        section("What it saw and wrote", "", _examples(summary["examples"]), "examples"),
        section("Every task beside its baselines", seconds, _table(summary["rows"]), "numbers"),
        section("What was asked of it", "", _bars(summary["bars"]), "bars"),
        section("Zero-shot, after pictures with names alone", "", _table(summary["zero_shot"]), "zero"),
        section("The gap between pictures and names", "", gaps, "gap"),
        section("How it learnt", "", _curves(out), "curves"),
        section("What this is, and what not", "", f"<p>{HONEST}</p>", "honest"),
    ]
    return write_page(out / "report.html", TITLE, sections)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        title = escape(WORDS.get(task, task))
        body.append(f'<tr class="group"><th colspan="4">{title} <small>{own[0]["n"]} examples</small></th></tr>')
        for row in own:
            found = {"value": row["value"], "interval": row["interval"], "chance": row["chance"] or 0.0}
            chance = "" if row["chance"] is None else percent(row["chance"])
            body.append(
                f'<tr><td class="what">{escape(row["arm"])}</td><td class="value">{percent(row["value"])}</td>'
                f'<td class="meter">{meter(found)}</td><td class="chance">{chance}</td></tr>'
            )
    return f'<table class="metrics"><tbody>{"".join(body)}</tbody></table>'


def _bars(bars: Sequence[Mapping[str, Any]]) -> str:
    """Every bar, the paired difference with its interval in points, and whether it is held."""
    body = []
    for bar in dict.fromkeys(one["bar"] for one in bars):
        own = [one for one in bars if one["bar"] == bar]
        told = f"{bar} <small>held on {sum(one['held'] for one in own)} of {len(own)}</small>"
        body.append(f'<tr class="group"><th colspan="3">{told}</th></tr>')
        for one in own:
            low, high = (100 * bound for bound in one["interval"])
            verdict = "held" if one["held"] else "<b>not held</b>"
            body.append(
                f'<tr><td class="what">{escape(WORDS.get(one["task"], one["task"]))}</td>'
                f'<td class="value">{100 * one["difference"]:+.1f}</td>'
                f'<td class="what">{low:+.1f} to {high:+.1f} points: {verdict}</td></tr>'
            )
    return f'<table class="metrics"><tbody>{"".join(body)}</tbody></table>'


def _examples(shown: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for one in shown:
        frames, look = np.asarray(one["frames"], dtype=np.uint8), np.asarray(one["look"])
        seen = [_overlay(frame, share, look.max()) for frame, share in zip(frames, look, strict=True)]
        pages = seen if len(frames) > 1 else [frames[0], seen[0]]
        pictures = "".join(f'<figure><img alt="" src="{_data_url(page)}"></figure>' for page in pages)
        right = "right" if one["written"] == one["answer"] else f"right would be {escape(one['answer'])}"
        question = escape(one["question"] or "describe the image")
        cards.append(
            f'<div class="card"><h3>{question} <q>{escape(one["written"])}</q></h3>'
            f'<div class="row five">{pictures}</div><small>{escape(one["task"])}: {right}</small></div>'
        )
    note = "<p class='dim'>The tint shows where the decoder's last layer looked while it wrote.</p>"
    return f'{note}<div class="cards">{"".join(cards)}</div>'


def _overlay(frame: np.ndarray, look: np.ndarray, most: float) -> np.ndarray:
    """The frame with attention tinted over it. frame: (side, side, 3) uint8; look: (grid, grid)."""
    shares = Image.fromarray((255 * look / max(most, 1e-9)).astype(np.uint8))
    heat = np.asarray(shares.resize(frame.shape[1::-1], Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    tint = np.array([214, 40, 120], dtype=np.float32)
    return (frame * (1 - 0.65 * heat) + tint * 0.65 * heat).clip(0, 255).astype(np.uint8)


def _data_url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _curves(out: Path) -> str:
    figures = []
    for name in ("pretraining", "answering"):
        rows = read_metrics(out / "seed-0" / name / "metrics.jsonl")
        names = [key for key in ("contrast", "match", "masked", "generate") if key in rows[0]] or ["loss"]
        lines = {key: [[(row["step"], row[key]) for row in rows if key in row]] for key in names}
        figures.append(
            f"<figure class='panel'><figcaption><b>{name}</b> {len(rows):,} steps</figcaption>"
            f"{line_chart(lines, 'steps')}</figure>"
        )
    return f'<div class="panels">{"".join(figures)}</div>'
