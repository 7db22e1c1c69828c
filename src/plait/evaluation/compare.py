"""Results beside one another: two on the same items, or all of a directory.

result.json A and B -> values of the units both have -> paired bootstrap: difference, interval, two-sided p-value
results/*.json -> rows by task -> a leaderboard in Markdown, every row with the file that it was measured in
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.result import RESULT
from plait.places import atomic_write, check_replaceable
from plait.report.tables import markdown, markdown_row

RESAMPLES = 2_000


def compare(first: str | Path, second: str | Path, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Difference (first - second) of the primary scores of two results, with a 95 % interval and a p-value.

    Both come from one paired bootstrap over groups of items. The p-value counts the observed draw as one more,
    so that it is never 0.

    Args:
        first, second: result.json files of `plait eval`, or their directories.
        resamples, seed: of the bootstrap.

    Returns:
        task, primary, rule, models, scores, difference, interval (low, high), p_value (two-sided) and units.

    Raises:
        ValueError: where the results are of different tasks, splits or rules, or measured on different items.
    """
    a, b = _read(first), _read(second)
    # numbers of other rules or splits do not compare, however alike they look
    for name in ("task", "split", "rule", "primary"):
        if a.get(name) != b.get(name):
            raise ValueError(f"expected two results with the same {name}, got {a.get(name)!r} and {b.get(name)!r}")
    if not a["units"] or not b["units"]:
        raise ValueError(f"expected results whose score is a mean over items, got {a['primary']} without such items")
    if a["units"].keys() != b["units"].keys():
        apart = len(a["units"].keys() ^ b["units"].keys())
        raise ValueError(f"expected results on the same items, got {apart} that only one of them has")
    difference = {unit: a["units"][unit] - b["units"][unit] for unit in a["units"]}
    groups = a.get("groups", {})
    # items of one group hang together, so a draw takes or leaves them whole
    totals: dict[str, list[float]] = defaultdict(list)
    for unit, value in difference.items():
        totals[groups.get(unit, unit)].append(value)
    sums, counts = (np.array([measure(one) for one in totals.values()]) for measure in (sum, len))
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    # groups differ in size: mean of items, not of groups
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "task": a["task"],
        "primary": a["primary"],
        "rule": a["rule"],
        "models": [a["model"].get("name"), b["model"].get("name")],
        "scores": [a["score"], b["score"]],
        "difference": float(sums.sum() / counts.sum()),
        "interval": [float(low), float(high)],
        "p_value": float(min(1.0, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + resamples))),
        "units": len(sums),
    }


def _read(path: str | Path) -> dict[str, Any]:
    """A result.json, or the one in a directory. Raises ValueError for anything else."""
    path = Path(path)
    path = path / RESULT if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"expected a result.json of plait eval, got {path}: no such file")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "units" not in found:
        raise ValueError(f"expected a result.json of plait eval, got {path} without 'units'")
    return found


def as_lines(found: dict[str, Any]) -> str:
    """The comparison as three lines for people."""
    (name_a, name_b), (score_a, score_b) = found["models"], found["scores"]
    low, high = found["interval"]
    return (
        f"{found['task']} {found['primary']}: {name_a} {score_a:.2f}, {name_b} {score_b:.2f}\n"
        f"difference {found['difference']:+.2f}, 95 % {low:+.2f} to {high:+.2f}, "
        f"p {found['p_value']:.4f} (paired bootstrap over {found['units']} units)"
    )


SIGN = "Made by `plait eval leaderboard "
"""In every leaderboard: a file with it may be replaced by the next one."""
HEAD = f"""# Leaderboard

{SIGN}{{source}} --out {{target}}` from result files of `plait eval`; nothing is typed by hand.
Intervals are 95 % bootstrap intervals over items. Scores of different rules or numbers of items do not compare.
"""


def leaderboard(results: Path) -> list[Mapping[str, Any]]:
    """All results below a directory, by task and falling score.

    Args:
        results: searched for .json files at any depth; others than results are passed over.

    Returns:
        What result.json holds, with its place as "file".

    Raises:
        ValueError: where there is none, or one is malformed.
    """
    found = []
    for path in sorted(results.rglob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stored, dict) and {"task", "model", "score", "primary"} <= stored.keys():
            found.append(stored | {"file": path.relative_to(results).as_posix()})
    if not found:
        raise ValueError(f"expected result.json files of plait eval below {results}, got none")
    # a result without a score counts as 0 here, so it goes last
    return sorted(found, key=lambda one: (one["task"], one["rule"] or "", -(one["score"] or 0.0)))


def as_markdown(results: Sequence[Mapping[str, Any]], source: str, target: str) -> str:
    """The leaderboard as Markdown: one table per task, split and rule.

    Args:
        results: from `leaderboard`.
        source, target: directory and page, for the command in its head.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in results:
        groups[one["task"], one["split"], one["rule"] or ""].append(one)
    parts = [HEAD.format(source=source, target=target)]
    for (task, split, rule), rows in groups.items():
        title = f"## {markdown(task)} ({markdown(split)}{', rule ' + markdown(rule) if rule else ''})"
        names = ("interval", "chance", "items", "failures", "method", "date", "file")
        head = markdown_row(("model", "family", rows[0]["primary"], *names))
        lines = []
        for row in rows:
            chance, model = row["scores"].get(f"chance_{row['primary']}"), row["model"]
            cells = (
                model.get("name", "unknown"),
                model.get("family", ""),
                "not scored" if row["score"] is None else f"{row['score']:.2f}",
                f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}" if row["interval"] else "",
                "" if chance is None else f"{chance:.2f}",
                row["items"] if row["limit"] is None else f"{row['items']} of {row['items_in_split']}",
                sum(found["count"] for found in row["failures"].values()),
                model.get("method", model.get("way", "")),  # results of earlier versions call it so
                f"{row['date']}, {row['environment'].get('commit') or 'no commit'}",
                row["file"],
            )
            lines.append(markdown_row(cells))
        parts.append("\n".join([title, "", f"{markdown(rows[0]['about'])}.", "", head, "|" + "---|" * 10, *lines, ""]))
    return "\n".join(parts)


def write_leaderboard(results: Path, target: Path) -> Path:
    """Write the page for the results below a directory; returns its path.

    Raises ValueError where there is none, UsageError where `target` is a file that Plait did not write.
    """
    check_replaceable(target, SIGN)
    page = as_markdown(leaderboard(results), results.as_posix(), target.as_posix())
    return atomic_write(target, page)
