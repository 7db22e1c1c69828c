"""The table of `plait study owl`: results.json of every stage and seed -> summary -> text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.inspect.table import format_table
from plait.recipes.mplug_owl2_measures import perplexity
from plait.recipes.mplug_owl2_table import resampled
from plait.recipes.mplug_owl_sights import Sights

CONDITIONS = ("shown", "removed", "shuffled", "one frame")


def summarise(out: Path, seen: Sights, count: int) -> dict[str, Any]:
    """Means over seeds, with bootstrap intervals over questions, and what giving the commonest answer scores."""
    rows = []
    for stage in ("stage1", "stage2"):
        files = sorted(out.glob(f"seed-*/{stage}/results.json"))
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        vqa = {}
        for condition in CONDITIONS:
            hits = {task: hits_of(found, task, condition) for task in seen.tasks if condition in found[0]["vqa"][task]}
            if hits:
                tasks = {task: resampled(values) for task, values in hits.items()}
                vqa[condition] = {"tasks": tasks, **resampled(np.concatenate(list(hits.values())))}
        gain = [np.subtract(*(hits_of(found, task, name) for name in ("shown", "shuffled"))) for task in seen.tasks]
        texts = {k: float(np.mean([perplexity(one["text"][k]) for one in found])) for k in ("snippets", "news")}
        feeling = resampled(np.mean([one["text"]["feeling"] for one in found], axis=0))
        rows.append({"stage": stage, "seeds": len(found), "vqa": vqa, "perplexity": texts, "feeling": feeling,
                     "minus_shuffled": resampled(np.concatenate(gain))})  # fmt: skip
    answers = {task: Counter(e.answer for e in seen.examples(task, "test", count)) for task in seen.tasks}
    questions = {task: counts.total() for task, counts in answers.items()}
    most = {task: counts.most_common(1)[0][1] for task, counts in answers.items()}
    return {
        "rows": rows,
        "questions": questions,
        "majority": {task: most[task] / questions[task] for task in answers}
        | {"all": sum(most.values()) / sum(questions.values())},
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """Accuracy in percent per stage, condition and task, then text. Perplexity after stage 1 is that of the source."""
    tasks = list(summary["questions"])
    lines = []
    for row in summary["rows"]:
        feeling = row["feeling"]
        text = [f"{row['perplexity'][kind]:.1f}" for kind in ("snippets", "news")] + [_percent(feeling)]
        for condition, found in row["vqa"].items():
            shares = [f"{100 * found['tasks'][task]['value']:.1f}" if task in found["tasks"] else "" for task in tasks]
            overall = _percent(found) if len(found["tasks"]) == len(tasks) else ""
            lines.append([row["stage"], condition, *shares, overall, *(text if condition == "shown" else [""] * 3)])
    guess = [f"{100 * summary['majority'][task]:.1f}" for task in (*tasks, "all")]
    lines.append(["", "commonest answer", *guess, "", "", ""])
    lines.append(["", "questions", *(str(summary["questions"][task]) for task in tasks), "", "", "", ""])
    head = ["after", "picture or clip", *tasks, "all (95 %)", "ppl snippets", "ppl news", "feeling (95 %)"]
    gains = [(row["stage"], *(100 * x for x in (row["minus_shuffled"]["value"], *row["minus_shuffled"]["interval"])))
             for row in summary["rows"]]  # fmt: skip
    below = [f"{stage}: shown minus shuffled {value:+.1f} points ({low:+.1f} to {high:+.1f})"
             for stage, value, low, high in gains]  # fmt: skip
    return "\n".join([format_table(head, lines), *below])


def hits_of(found: Sequence[Mapping[str, Any]], task: str, condition: str) -> np.ndarray:
    """Share of seeds that are right, for every question."""
    return np.mean([one["vqa"][task][condition] for one in found], axis=0)


def _percent(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
