"""The table and page of `plait study mplug2`: every arm beside its baselines; what the decoder saw, wrote, looked at.

hits of every arm and seed -> means, intervals, differences and bars -> text, report.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.report.charts import line_chart, panel
from plait.report.page import hero, picture_uri, section, write_page
from plait.report.tables import Measured, meters, percent
from plait.training.logging import read_metrics
from plait_studies.measures import in_points, interval
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

    Args:
        results: of one seed each, {"rows", "zero_shot", "gap", "examples", "cpu_seconds"}.

    Returns:
        What `as_text` and `report` show; examples are those of the first seed.
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
    """A row for the summary: value and interval in place of every example's hits."""
    told = {key: row[key] for key in ("task", "arm", "chance", "per_seed")}
    return told | {"n": len(row["hits"]), **interval(row["hits"])}


def bars(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is asked of every task, the difference that decides it, and whether it is held.

    The model has to be better than an arm, the 95 % interval of the paired difference above zero; a control may not be
    better than the better of chance and the most frequent answer. Questions (tasks with a language-only arm and
    choices) are also held to the question alone all together.

    Args:
        rows: with `hits` (examples,), in the same order in all arms of a task.
    """
    hits: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        hits.setdefault(row["task"], {})[row["arm"]] = np.asarray(row["hits"])
    chances = {row["task"]: row["chance"] for row in rows}
    found = []

    def ask(task: str, arm: str, against: str, gain: np.ndarray) -> None:
        """One bar. gain: per example, how much better the model (or the control) is than what it is held against."""
        told = interval(gain)
        held = told["interval"][0] <= 0 if arm == SHUFFLED else told["interval"][0] > 0
        found.append({"bar": BARS[arm], "task": task, "against": against, **told, "held": held})

    for arm in BARS:
        for task, arms in hits.items():
            if arm == SHUFFLED and arm in arms:
                most = float(arms[MAJORITY].mean()) if MAJORITY in arms else 0.0
                ask(task, arm, "chance or majority", arms[SHUFFLED] - max(chances[task] or 0.0, most))
            elif arm in arms:
                ask(task, arm, arm, arms[OURS] - arms[arm])
        questions = [arms for task, arms in hits.items() if LANGUAGE in arms and chances[task] is not None]
        if arm == LANGUAGE and questions:
            ask(POOLED, arm, arm, np.concatenate([arms[OURS] - arms[LANGUAGE] for arms in questions]))
    return found


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
    lines += ["", "what was asked of it (differences, 95 % intervals)"]
    for bar in dict.fromkeys(one["bar"] for one in summary["bars"]):
        own = [one for one in summary["bars"] if one["bar"] == bar]
        lines.append(f"  {bar}: held on {sum(one['held'] for one in own)} of {len(own)}")
        lines += [f"    {one['task']:<24}{in_points(one)} {'held' if one['held'] else 'NOT held'}" for one in own]
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
    gaps = ""
    for arm, figures in summary["gap"].items():
        name = f"universal layers {'apart' if arm.endswith('apart') else 'shared'}"
        gaps += (
            f"<p><b>{name}</b>: centroids of pictures and names {figures['centroid_distance']:.3f} apart, told apart "
        )
        gaps += f"by a line {percent(figures['separability'])} of the time</p>"
    seconds = f"{round(np.mean(summary['cpu_seconds']) / 60)} minutes of CPU time per seed, {summary['seeds']} seed(s)"
    asked = {}
    for one in summary["bars"]:
        own = [other for other in summary["bars"] if other["bar"] == one["bar"]]
        title = f"{one['bar']}: held on {sum(other['held'] for other in own)} of {len(own)}"
        cells = (WORDS.get(one["task"], one["task"]), in_points(one), "held" if one["held"] else "not held")
        asked.setdefault(title, []).append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    bars = "".join(f'<h3>{escape(t)}</h3><table class="plain">{"".join(rows)}</table>' for t, rows in asked.items())
    curves = []
    for name in ("pretraining", "answering"):
        rows = read_metrics(out / "seed-0" / name / "metrics.jsonl")
        names = [key for key in ("contrast", "match", "masked", "generate") if key in rows[0]] or ["loss"]
        lines = {key: [[(row["step"], row[key]) for row in rows if key in row]] for key in names}
        curves.append(panel(name, [f"{len(rows):,} steps"], line_chart(lines, "steps")))
    sections = [
        hero(TITLE, LEAD),
        section("What it saw and wrote", "", _examples(summary["examples"]), "examples"),
        section("Every task beside its baselines", seconds, _table(summary["rows"]), "numbers"),
        section("What was asked of it", "", bars, "bars"),
        section("Zero-shot, after pictures with names alone", "", _table(summary["zero_shot"]), "zero"),
        section("The gap between pictures and names", "", gaps, "gap"),
        section("How it learnt", "", f'<div class="panels">{"".join(curves)}</div>', "curves"),
        section("What this is, and what not", "", f"<p>{HONEST}</p>", "honest"),
    ]
    return write_page(out / "report.html", TITLE, sections)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    groups: dict[str, list[Measured]] = {}
    for row in rows:
        title = f"{WORDS.get(row['task'], row['task'])} ({row['n']} examples)"
        groups.setdefault(title, []).append(Measured(row["arm"], row))
    return meters(groups)


def _examples(shown: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for one in shown:
        frames, look = np.asarray(one["frames"], dtype=np.uint8), np.asarray(one["look"])
        seen = [_overlay(frame, share, look.max()) for frame, share in zip(frames, look, strict=True)]
        pages = seen if len(frames) > 1 else [frames[0], seen[0]]
        uris = [picture_uri(Image.fromarray(page), lossless=True) for page in pages]
        pictures = "".join(f'<figure><img alt="" src="{uri}"></figure>' for uri in uris)
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
