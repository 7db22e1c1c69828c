"""Two results on the same items: paired bootstrap of the difference.

result.json A and B -> values of the units both have -> mean difference, interval, two-sided p-value
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.scoring.base import group_sums

RESAMPLES = 2_000


def compare(first: str | Path, second: str | Path, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Difference (first - second) of the primary score with a 95 % interval and p-value over resampled units.

    The p-value counts the observed draw as one more, so that it is never 0.

    Raises ValueError where the results are of different tasks, splits or rules, or measured on different items.
    """
    a, b = _read(first), _read(second)
    for name in ("task", "split", "rule", "primary"):
        if a.get(name) != b.get(name):
            raise ValueError(f"expected two results with the same {name}, got {a.get(name)!r} and {b.get(name)!r}")
    if not a["units"] or not b["units"]:
        raise ValueError(f"expected results whose score is a mean over items, got {a['primary']} without such items")
    if a["units"].keys() != b["units"].keys():
        apart = len(a["units"].keys() ^ b["units"].keys())
        raise ValueError(f"expected results on the same items, got {apart} that only one of them has")
    difference = {unit: a["units"][unit] - b["units"][unit] for unit in a["units"]}
    sums, counts = group_sums(difference, a.get("groups", {}))
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
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
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"expected a result.json of plait eval, got {path}: no such file")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "units" not in found:
        raise ValueError(f"expected a result.json of plait eval, got {path} without 'units'")
    return found


def as_lines(found: dict[str, Any]) -> str:
    """The comparison for people."""
    (name_a, name_b), (score_a, score_b) = found["models"], found["scores"]
    low, high = found["interval"]
    return (
        f"{found['task']} {found['primary']}: {name_a} {score_a:.2f}, {name_b} {score_b:.2f}\n"
        f"difference {found['difference']:+.2f}, 95 % {low:+.2f} to {high:+.2f}, "
        f"p {found['p_value']:.4f} (paired bootstrap over {found['units']} units)"
    )
