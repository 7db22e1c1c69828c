"""The page of `plait study mplug2`: every arm beside its baselines, and what the decoder saw, wrote and looked at."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.inspect.report import section, write_page
from plait.inspect.report.charts import line_chart
from plait.inspect.report.tables import meter, percent
from plait.training.logging import read_metrics

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
