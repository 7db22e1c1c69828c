"""Ranks of both directions -> recall and median rank."""

from __future__ import annotations

import numpy as np

from plait.evaluation.scoring.base import Scored, Scoring, scorer


@scorer("retrieval")
def retrieval(scoring: Scoring) -> Scored:
    """R@1/5/10 in percent, median and mean rank of both directions; mean_recall = the mean of the six recalls.

    Units are items: the mean over the item's own query and its captions' queries, each direction weighted alike.
    An item without its medium is found by nothing and finds nothing: its rank and its captions' lie behind everything.
    """
    known = {item.id: item for item in scoring.items}
    missing = [known[row["id"]] for row in scoring.rows if row.get("failed") and row["id"] in known]
    ranks: dict[str, dict[str, int]] = {}
    for row in (row for row in scoring.rows if not row.get("failed")):
        direction, _, name = row["id"].partition(":")
        if name.partition("#")[0] not in known or ">" not in direction:
            raise ValueError(f"expected ids such as image>text:ITEM of this split, got {row['id']!r}")
        ranks.setdefault(direction, {})[name] = int(row["prediction"])
    if not ranks:
        raise ValueError("expected ranks to score, got none; was every medium missing?")
    behind = 1 + max(10, len(known), sum(len(item.captions or []) for item in known.values()))
    for direction, found in ranks.items():
        asks_in_text = direction.startswith("text>")
        for item in missing:
            names = [f"{item.id}#gone{i}" for i in range(len(item.captions or []))] if asks_in_text else [item.id]
            found |= dict.fromkeys(names, behind)
    scores: dict[str, float] = {}
    for direction, found in ranks.items():
        values = np.array(list(found.values()))
        scores |= {f"{direction} R@{k}": float(100 * (values <= k).mean()) for k in (1, 5, 10)}
        scores |= {
            f"{direction} median_rank": float(np.median(values)),
            f"{direction} mean_rank": float(values.mean()),
        }
    recalls = [value for name, value in scores.items() if "R@" in name]
    scores["mean_recall"] = float(np.mean(recalls))
    return Scored(scores, units=_units(ranks), notes=_notes(len(missing), behind))


def _units(ranks: dict[str, dict[str, int]]) -> dict[str, float]:
    """By item, values whose mean is mean_recall: a query weighs one over the number of queries of its direction."""
    units: dict[str, float] = {}
    items = {name.partition("#")[0] for found in ranks.values() for name in found}
    for found in ranks.values():
        for name, rank in found.items():
            recall = float(np.mean([100.0 * (rank <= k) for k in (1, 5, 10)]))
            share = len(items) / (len(found) * len(ranks))
            units[name.partition("#")[0]] = units.get(name.partition("#")[0], 0.0) + recall * share
    return units


def _notes(missing: int, behind: int) -> list[str]:
    return [f"{missing} items without media count as rank {behind} in both directions"] if missing else []
