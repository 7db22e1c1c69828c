"""A leaderboard page from result JSONs: every row was measured, by the result file that it links.

results/*.json -> rows by task -> Markdown
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Leaderboard

Made by `plait eval leaderboard {source} --out {target}` from result files of `plait eval`; nothing is typed by hand.
Intervals are 95 % bootstrap intervals over items. Scores of different rules or numbers of items do not compare.
"""


def leaderboard(results: Path) -> list[Mapping[str, Any]]:
    """All results below a directory, by task and falling score. ValueError where there is none, or one is malformed."""
    found = []
    for path in sorted(results.rglob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stored, dict) and {"task", "model", "score", "primary"} <= stored.keys():
            found.append(stored | {"file": path.relative_to(results).as_posix()})
    if not found:
        raise ValueError(f"expected result.json files of plait eval below {results}, got none")
    return sorted(found, key=lambda one: (one["task"], one["rule"] or "", -(one["score"] or 0.0)))


def as_markdown(results: Sequence[Mapping[str, Any]], source: str, target: str) -> str:
    """The page: one table per task, split and rule."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in results:
        groups[one["task"], one["split"], one["rule"] or ""].append(one)
    parts = [HEAD.format(source=source, target=target)]
    for (task, split, rule), rows in groups.items():
        title = f"## {task} ({split}{', rule ' + rule if rule else ''})"
        head = f"| model | family | {rows[0]['primary']} | interval | chance | items | failures | way | date | file |"
        lines = [_line(row) for row in rows]
        parts.append("\n".join([title, "", f"{rows[0]['about']}.", "", head, "|" + "---|" * 10, *lines, ""]))
    return "\n".join(parts)


def _line(row: Mapping[str, Any]) -> str:
    score = "not scored" if row["score"] is None else f"{row['score']:.2f}"
    interval = f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}" if row["interval"] else ""
    chance = row["scores"].get(f"chance_{row['primary']}")
    items = row["items"] if row["limit"] is None else f"{row['items']} of {row['items_in_split']}"
    failed = sum(found["count"] for found in row["failures"].values())
    model, commit = row["model"], row["environment"].get("commit") or "no commit"
    cells = (
        model.get("name", "unknown"), model.get("family", ""), score, interval,
        "" if chance is None else f"{chance:.2f}", items, failed, model.get("way", ""),
        f"{row['date']}, {commit}", f"`{row['file']}`",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def write_leaderboard(results: Path, target: Path) -> Path:
    """Write the page for the results below a directory."""
    page = as_markdown(leaderboard(results), results.as_posix(), target.as_posix())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target
