"""summary.json of a quickstart: every number over its seeds, each beside its chance, with the bars it is held to.

evaluation.json per seed (+ the shuffled control's) -> {"seeds", "metrics", "bars", "seconds", "about"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.metrics.bootstrap import bootstrap_mean
from plait.places import atomic_write
from plait.report.about import about

SHUFFLED = {f"shuffled_{name}": name for name in ("audio_to_text_r1", "audio_to_image_r1", "audio_to_image_r5")}
"""Names of the control (audio trained with shuffled labels) and the score each repeats."""


@dataclass(frozen=True)
class Bar:
    """What a score must reach, in one of three ways.

    Args:
        metric: its name.
        least: at least this share.
        times, than: at least so many times the best of these other metrics.
        around_chance: no further from chance than this, as a control must be.
    """

    metric: str
    least: float | None = None
    times: float | None = None
    than: tuple[str, ...] = ()
    around_chance: float | None = None

    def check(self, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """{"bar": words, "met": bool}, or None where a number it needs was not measured."""
        found = metrics.get(self.metric, {})
        value = found.get("value")
        measured = [metrics.get(name, {}).get("value") for name in self.than]
        rivals = [float(rival) for rival in measured if rival is not None]
        if value is None or len(rivals) < len(measured):
            return None
        if self.around_chance is not None:
            met = abs(value - found["chance"]) <= self.around_chance
            return {"bar": f"within {100 * self.around_chance:g} points of chance", "met": met}
        if self.times is not None:
            words = f"at least {self.times:g} x the better of {' and '.join(self.than)}"
            return {"bar": words, "met": value >= self.times * max(rivals)}
        assert self.least is not None
        return {"bar": f"at least {100 * self.least:g} %", "met": value >= self.least}


BARS = (
    Bar("image_to_text_r1", least=0.35),
    Bar("text_to_image_r1", least=0.33),
    Bar("audio_to_text_r1", least=0.70),
    Bar("audio_to_image_r1", least=0.40),
    Bar("audio_to_image_r5", least=0.75),
    Bar("fused_to_image_r5", times=1.1, than=("audio_only_to_image_r5", "text_only_to_image_r5")),
    Bar("shuffled_audio_to_image_r1", around_chance=0.03),
)
"""The bars of the demonstration on the shipped data set."""


def summarise(
    evaluations: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]] = (),
    *,
    bars: Sequence[Bar] = BARS,
) -> dict[str, Any]:
    """Combine stored evaluations (one per seed) and controls: {"seeds", "metrics", "bars"}.

    A metric is {"value": mean over seeds, "chance", "per_seed", "interval", "queries", "gallery"}; value and chance are
    None where nothing was measured. The interval is a bootstrap over units (queries or classes) whose rate is first
    averaged over seeds: it tells how much depends on the choice of things, `per_seed` how much on the seed.
    """
    if not evaluations:
        raise ValueError("expected the evaluation of at least one seed, got none; run plait eval first")
    metrics = {
        name: _over_seeds([evaluation["metrics"].get(name) for evaluation in evaluations])
        for name in evaluations[0]["metrics"]
    }
    for name, source in SHUFFLED.items():
        metrics[name] = _over_seeds([control["metrics"].get(source) for control in controls])
    checks = {bar.metric: bar.check(metrics) for bar in bars}
    return {
        "seeds": len(evaluations),
        "metrics": metrics,
        "bars": {name: check for name, check in checks.items() if check is not None},
    }


def _over_seeds(given: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """One metric of all seeds; those that did not measure it do not count."""
    scores = [score for score in given if score is not None]
    if not scores:
        return {"value": None, "chance": None, "per_seed": []}
    # Only what every seed was asked: a mean over seeds of different questions has no interval.
    shared = [unit for unit in scores[0]["units"] if all(unit in score["units"] for score in scores)]
    found = bootstrap_mean([float(np.mean([score["units"][unit] for score in scores])) for unit in shared])
    return {
        "value": round(float(np.mean([score["value"] for score in scores])), 4),
        "chance": round(float(np.mean([score["chance"] for score in scores])), 4),
        "per_seed": [round(score["value"], 4) for score in scores],
        "interval": [round(found.lower, 4), round(found.upper, 4)],
        "queries": scores[0]["queries"],
        "gallery": scores[0]["gallery"],
    }


def write_summary(path: Path, summary: Mapping[str, Any], seconds: Mapping[str, float]) -> Path:
    """Write summary.json: what `summarise` gave, seconds per phase, and what it was measured with."""
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    return write_json(path, {**summary, "seconds": rounded, "about": about()})


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """A JSON file, whole or not at all: a run that is killed goes on from what is there."""
    return atomic_write(path, json.dumps(value, indent=1) + "\n")
