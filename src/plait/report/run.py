"""`run_page`: a run directory -> one page with the curves of its stages and, of a finetuned model, what it is worth.

metrics.jsonl, finetune.json -> sections -> report.html
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from plait.report import charts
from plait.report.page import hero, section, write_page
from plait.report.tables import plain_table

Curve = list[list[dict[str, Any]]]
"""Of one stage: for every seed, its rows of metrics.jsonl."""

_LOSSES = ("loss", "contrast", "denoise")


def run_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a training run.

    Args:
        run_dir: with metrics.jsonl, and finetune.json of a finetuned model.
        out: of the page; `run_dir`/report.html without it.

    Returns:
        Its path.

    Raises:
        ValueError: where the directory holds no metrics.jsonl.
    """
    directory = Path(run_dir)
    curves = read_curves([directory])
    if not curves:
        raise ValueError(f"expected a run with metrics.jsonl, got {directory}; train into it first")
    finetuned = directory / "finetune.json"
    worth = json.loads(finetuned.read_text(encoding="utf-8")) if finetuned.is_file() else {}
    title = f"Run {directory.name}"
    config = directory / "config.json"
    asked = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    # a section without figures is an empty text, so a run that trains still has its page
    sections = [hero(title), worth_section(worth), said_section(worth), curves_section(curves), asked_section(asked)]
    return write_page(directory / "report.html" if out is None else Path(out), title, sections)


def read_curves(directories: Iterable[Path]) -> dict[str, Curve]:
    """Rows of every metrics.jsonl below the directories, by stage; a last line torn by a kill is left out.

    Args:
        directories: of one run each, or of several seeds.

    Returns:
        Stage -> one list of rows per file.
    """
    curves: dict[str, Curve] = {}
    for file in (file for place in directories for file in sorted(place.rglob("metrics.jsonl"))):
        stages: dict[str, list[dict[str, Any]]] = {}
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            stages.setdefault(str(row.get("stage", "training")), []).append(row)
        for stage, rows in stages.items():
            curves.setdefault(stage, []).append(rows)
    return curves


def curves_section(curves: Mapping[str, Curve]) -> str:
    """How losses went, stage by stage: one chart each, with steps, speed and memory.

    Args:
        curves: from `read_curves`; the notes are those of the first seed.

    Returns:
        HTML, empty without curves.
    """
    figures = []
    for stage, seeds in curves.items():
        names = list(dict.fromkeys(name for row in seeds[0] for name in row if name.startswith(_LOSSES)))
        if "contrast" in names:
            # the sum jumps at every k-th step, when the denoising losses join it
            names.remove("loss")
        lines = {name: [[(row["step"], row[name]) for row in rows if name in row] for rows in seeds] for name in names}
        notes = [f"{seeds[0][-1]['step'] - seeds[0][0]['step'] + 1:,} steps"]
        # the median: the first steps warm up and a checkpoint slows others
        rates = sorted(row["samples_per_second"] for row in seeds[0] if "samples_per_second" in row)
        if rates:
            notes.append(f"{rates[len(rates) // 2]:,.0f} samples per second")
        last = seeds[0][-1]
        for name, words in {
            "mfu": "{:.0%} MFU",
            "memory_gib": "{:.2g} GiB",
            "data_wait": "{:.0%} waiting for data",
        }.items():
            notes += [words.format(last[name])] if name in last else []
        if len(seeds) > 1:
            notes.append(f"{len(seeds)} seeds, the first drawn strong")
        figures.append(charts.panel(stage, notes, charts.line_chart(lines, "steps")))
    return section("How it learnt", "", f'<div class="panels">{"".join(figures)}</div>', "curves") if figures else ""


SHOWN = 12
"""Examples of each kind that a page shows."""
SHOWN_LABELS = 30
"""Labels whose table is shown whole: a wider one can be read by nobody."""


def said_section(worth: Mapping[str, Any]) -> str:
    """What a model says of held-out rows: wrong and right examples, and of labels which are taken for which.

    Args:
        worth: of finetune.json: task, and said, rows of id, right (what may be said) and said; is_right where something
            else than equality decides.

    Returns:
        HTML, empty where there are none.
    """
    rows = worth.get("said") or []
    if not rows:
        return ""
    body = ""
    if worth["task"] == "classify":
        body += _taken_for([(row["right"][0], row["said"]) for row in rows])
    for title, is_right in (("Wrong", False), ("Right", True)):
        these = [row for row in rows if row.get("is_right", row["said"] in row["right"]) == is_right]
        if these:
            table = [[row["id"], " / ".join(row["right"][:3]), row["said"]] for row in these[:SHOWN]]
            body += f"<h3>{title}: {min(len(these), SHOWN)} of {len(these)}</h3>"
            body += f'<div class="wide">{plain_table(["row", "is", "said"], table)}</div>'
    return section("What it says", "Rows that were held out.", body, "said")


def _taken_for(pairs: Sequence[tuple[str, str]]) -> str:
    """How often which label was said for which; of more than `SHOWN_LABELS` the commonest mistakes alone."""
    counts = Counter(pairs)
    labels = sorted({label for pair in pairs for label in pair})
    if len(labels) <= SHOWN_LABELS:
        table = plain_table(["is, said:", *labels], [[is_, *(counts[is_, x] or "" for x in labels)] for is_ in labels])
        return f'<h3>Which was taken for which</h3><div class="wide">{table}</div>'
    mistakes = [(is_, x, count) for (is_, x), count in counts.most_common() if is_ != x][:SHOWN_LABELS]
    table = plain_table(["is", "said", "times"], mistakes)
    return f'<h3>The commonest mistakes</h3><div class="wide">{table}</div>'


def asked_section(asked: Mapping[str, Any]) -> str:
    """The command and the settings of a run.

    Args:
        asked: of config.json: recipe, seed, dtype and arguments.

    Returns:
        HTML, empty where nothing is known.
    """
    if not asked:
        return ""
    settings = {name: value for name, value in asked.get("arguments", {}).items() if value is not None}
    written = (f"{name}={_as_typed(value)}" for name, value in settings.items() if name != "seed")
    words = ["plait", "train", asked["recipe"], *(word for one in written for word in ("--set", one))]
    words += ["--seed", str(asked.get("seed", 0)), "--dtype", str(asked.get("dtype", "float32"))]
    rows = [[name, _as_typed(value)] for name, value in {**settings, "plait": asked.get("plait", "")}.items()]
    body = f'<pre>{escape(shlex.join(words))}</pre><div class="wide">{plain_table([], rows)}</div>'
    return section("How it was made", "The command that makes it again, with every setting.", body, "asked")


def _as_typed(value: Any) -> str:
    """A setting as it is typed behind `--set name=`."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def worth_section(worth: Mapping[str, Any]) -> str:
    """What a finetuned model is worth: the trivial answer, the model as it came, the result, with intervals.

    Args:
        worth: of finetune.json: task, rows, and trivial, before and after, each with metric, value and
            interval.

    Returns:
        HTML, empty where nothing was measured.
    """
    names = {"trivial": "a trivial answer", "before": "the model as it came", "after": "after training"}
    rows = []
    for name, words in names.items():
        if (one := worth.get(name)) is not None:
            low, high = one["interval"]
            about = f" <span class='dim'>({escape(one['about'])})</span>" if one.get("about") else ""
            rows.append(f"<tr><td>{words}{about}</td><td>{one['value']:.3f}</td><td>{low:.3f} to {high:.3f}</td></tr>")
    if not rows:
        return ""
    metric = escape(str(worth["trivial"]["metric"]))
    table = (
        f'<table class="plain"><thead><tr><th scope="col"></th><th scope="col">{metric}</th>'
        f'<th scope="col">95&#8239;%</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    date = f" Measured on {escape(worth['date'])}." if worth.get("date") else ""
    lead = f"Task {escape(worth['task'])}, on {worth['rows']['test']:,} rows that were held out.{date}"
    return section("What it is worth", lead, table, "worth")
