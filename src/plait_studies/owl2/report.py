"""The table of `plait study owl2`: results.json of every arm and seed -> summary -> text.

The page of `plait study owl2`: the table, where both decoders look, how they learnt, and what this is not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from plait.report.charts import line_chart
from plait.report.page import section, write_page
from plait.report.tables import format_table, meter, percent
from plait.training.logging import read_metrics
from plait_studies.drawings import Drawings
from plait_studies.owl2 import training as small
from plait_studies.owl2.measures import (
    CHOICE_TASKS,
    CONDITIONS,
    COUNT,
    TASK,
    attention_of,
    draw_attention,
    majority,
    perplexity,
)
from plait_studies.owl2.training import TASKS

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


TITLE = "Own norms, keys and values for pictures, or shared ones"
COMPARED = ("adaptive", "adaptive all ways", "shared", "abstractor only")
LEAD = (
    "A small language model became an mPLUG-Owl2. Every arm began with the same weights and the same tower and saw the "
    "same batches: questions about drawings and about sentences. Accuracy is on drawings of a style that was never "
    "trained on; whiskers are 95 % bootstrap intervals over questions, the red tick is the most frequent answer."
)
HONEST = (
    "The language model has 135 M weights in 4-bit precision, the tower a few million that never saw photographs, and "
    "tuning is minutes, not days. The base stays frozen unless an arm says otherwise, so that the shared arm can move "
    "its text only through the norms, keys and values that the adaptive arm copies. This tests the mechanism, not the "
    "published model."
)


def attention(out: Path, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Shares per layer of the compared arms that are trained; writes attention.json and attention.png under `out`."""
    from plait.models.auto import load

    found = {}
    for arm in (name for name in COMPARED if name in folders):
        model, processor = load(folders[arm] / "model")
        examples = small.drawings(model.config.image_size).examples(TASK, "test", COUNT)
        found[arm] = attention_of(model, processor, examples)
    if not found:
        return {}
    draw_attention(found, out / "attention.png")
    shares = {arm: {name: one[name] for name in ("visual", "text", "first")} for arm, one in found.items()}
    (out / "attention.json").write_text(json.dumps(shares) + "\n", encoding="utf-8")
    return shares


def report(out: Path, summary: Mapping[str, Any], curves: Mapping[str, Path]) -> Path:
    """Write `out`/report.html. curves: arm -> its run directory of the first seed."""
    rows, guessing = summary["rows"], summary["majority"]["all"]
    seconds = f"{summary['seconds'] // 60} min {summary['seconds'] % 60} s for this command"
    sections = [
        f'<header class="hero"><h1>{TITLE}</h1><p class="lead">{LEAD}</p></header>',
        section("Questions about drawings of an unseen style", seconds, _accuracy(rows, guessing), "numbers"),
        section("Text", "perplexity, and whether a movie snippet is positive", _text(rows), "text"),
        section("Where the answer looks", f"{COUNT} questions, mean over heads", _picture(out), "attention"),
        section("How they learnt", "", _curves(curves), "curves"),
        section("What this is, and what not", "", f"<p>{HONEST}</p>", "honest"),
    ]
    return write_page(out / "report.html", TITLE, sections)


def _accuracy(rows: Sequence[Mapping[str, Any]], guessing: float) -> str:
    body = []
    for row in rows:
        seen = row["vqa"]["image"]
        found = {"value": seen["value"], "interval": seen["interval"], "chance": guessing}
        without, other = (percent(row["vqa"][name]["value"]) for name in ("removed", "shuffled"))
        likeliest = percent(row["likeliest"]["value"])
        body.append(
            f'<tr><td class="what">{escape(row["arm"])}<br><small>no picture {without}, another picture {other}; right '
            f'choice likeliest {likeliest}{_gap(row)}</small></td><td class="value">{percent(seen["value"])}</td>'
            f'<td class="meter">{meter(found)}</td><td class="chance">{percent(guessing)}</td></tr>'
        )
    return f'<table class="metrics"><tbody>{"".join(body)}</tbody></table>'


def _gap(row: Mapping[str, Any]) -> str:
    gap = row.get("minus_adaptive")
    if gap is None:
        return ""
    low, high = (f"{100 * bound:+.1f}" for bound in gap["interval"])
    return f"; minus {REFERENCE} {100 * gap['value']:+.1f} points ({low} to {high})"


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for row in rows:
        found = {"value": row["feeling"]["value"], "interval": row["feeling"]["interval"], "chance": 0.5}
        snippets, news = (f"{row['perplexity'][kind]:.2f}" for kind in ("snippets", "news"))
        body.append(
            f'<tr><td class="what">{escape(row["arm"])}<br><small>perplexity {snippets} on snippets, {news} on news'
            f'</small></td><td class="value">{percent(row["feeling"]["value"])}</td>'
            f'<td class="meter">{meter(found)}</td><td class="chance">{percent(0.5)}</td></tr>'
        )
    return f'<table class="metrics"><tbody>{"".join(body)}</tbody></table>'


def _picture(out: Path) -> str:
    path = out / "attention.png"
    if not path.exists():
        return "<p>None of the compared arms is trained.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    alt = "share of attention on the picture per layer, and attention maps"
    return f'<figure><img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{data}"></figure>'


def _curves(curves: Mapping[str, Path]) -> str:
    lines = {}
    for arm, place in curves.items():
        rows = read_metrics(place / "metrics.jsonl")
        lines[arm] = [[(row["step"], row["loss"]) for row in rows]]
    return f"<div class='panels'><figure class='panel'>{line_chart(lines, 'steps')}</figure></div>"
