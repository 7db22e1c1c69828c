"""The page of `plait study owl2`: the table, where both decoders look, how they learnt, and what this is not."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from plait.inspect.report import section, write_page
from plait.inspect.report.charts import line_chart
from plait.inspect.report.tables import meter, percent
from plait.recipes import mplug_owl2_small as small
from plait.recipes.mplug_owl2_attention import COUNT, TASK, attention_of, draw_attention
from plait.recipes.mplug_owl2_table import REFERENCE
from plait.training.logging import read_metrics

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
