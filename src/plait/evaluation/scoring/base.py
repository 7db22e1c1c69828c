"""What a scorer gets and gives, and the registry of scorers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.media_files import MediaFiles
from plait.evaluation.readers import Item


@dataclass
class Scored:
    """Scores by name. units: values by item whose mean is the primary score (empty where it is no such mean). groups:
    item -> what it shares with others (a picture, a concept), so that intervals draw groups whole. categories: the
    primary score of parts. unreadable: ids of replies without an answer. notes: what a reader must know."""

    scores: dict[str, float]
    units: dict[str, float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    categories: dict[str, float] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resampled: tuple[float, float] | None = None

    def interval(self) -> list[float] | None:
        """95 % bootstrap interval of the primary score, or None where there is nothing to resample."""
        if self.resampled is not None:
            return list(self.resampled)
        return list(clustered_interval(self.units, self.groups)) if self.units else None


@dataclass
class Scoring:
    """Items and prediction rows of one run, with the rule of the metric and the judge, where one is needed."""

    items: Sequence[Item]
    rows: Sequence[Mapping[str, Any]]
    rule: str | None = None
    judge: str | None = None
    files: MediaFiles | None = None
    out: Path | None = None

    def check_ids(self) -> None:
        """Raise ValueError unless every item has exactly one prediction."""
        known, seen = {item.id for item in self.items}, set[str]()
        for row in self.rows:
            if row["id"] not in known:
                raise ValueError(f"expected predictions of the items of this split, got the id {row['id']!r}")
            if row["id"] in seen:
                raise ValueError(f"expected one prediction per item, got two for {row['id']!r}")
            seen.add(row["id"])
        if missing := [item.id for item in self.items if item.id not in seen]:
            shown = ", ".join(missing[:5])
            raise ValueError(f"expected a prediction for every item, got none for {len(missing)}: {shown}")

    @property
    def predictions(self) -> dict[str, Any]:
        """Prediction by id; None where it failed."""
        return {row["id"]: row["prediction"] for row in self.rows}

    def replies(self) -> list[str]:
        """The replies in the order of the items; a failed one is the empty reply, which is wrong everywhere."""
        found = self.predictions
        return [str(found[item.id] or "") for item in self.items]

    def keep(self, has: Callable[[Item], bool], what: str) -> None:
        """Raise ValueError unless all items have what the score compares with."""
        if bare := next((item.id for item in self.items if not has(item)), None):
            raise NoAnswersError(f"{what} of item {bare}")


class NoAnswersError(ValueError):
    """The split holds no answers: predictions can be submitted, not scored."""


def clustered_interval(
    units: Mapping[str, float], groups: Mapping[str, str], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over units, in which groups of units are drawn whole.

    A unit without a group is a group of its own. The mean is over all units of the drawn groups.
    """
    sums, counts = group_sums(units, groups)
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def group_sums(units: Mapping[str, float], groups: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of units per group, groups in order of first appearance: (groups,), (groups,)."""
    totals: dict[str, list[float]] = {}
    for name, value in units.items():
        totals.setdefault(groups.get(name, name), []).append(value)
    return np.array([sum(one) for one in totals.values()]), np.array([len(one) for one in totals.values()])


Scorer = Callable[[Scoring], Scored]
SCORERS: dict[str, Scorer] = {}
"""Every scorer by name."""


def scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Register the decorated function. A split without answers gives no score and says so."""

    def register(function: Scorer) -> Scorer:
        def safe(scoring: Scoring) -> Scored:
            try:
                return function(scoring)
            except NoAnswersError as absent:
                return Scored({}, notes=[f"submitted, not scored: this split has no {absent}"])

        SCORERS[name] = safe
        return safe

    return register


def accuracy(hits: Mapping[str, float], items: Sequence[Item]) -> Scored:
    """Mean of hits by item id, in percent, over items; units are groups of items where they hang together."""
    values = {item.id: 100.0 * hits[item.id] for item in items}
    by_category = means((item.category, values[item.id]) for item in items if item.category)
    score = float(np.mean(list(values.values())))
    return Scored({"accuracy": score}, units=values, groups=groups_of(items), categories=by_category)


def groups_of(items: Sequence[Item]) -> dict[str, str]:
    """Item -> group, for the items that have one."""
    return {item.id: item.group for item in items if item.group is not None}


def means(pairs: Iterable[tuple[Any, float]]) -> dict[str, float]:
    """Mean by name, sorted by name."""
    groups: dict[str, list[float]] = {}
    for name, value in pairs:
        groups.setdefault(str(name), []).append(value)
    return {name: float(np.mean(groups[name])) for name in sorted(groups)}
