"""A score: one retrieval number that remembers what it is the mean of, so that chance and interval come with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.metrics.retrieval import bootstrap_interval, class_means, expected_chance, hits_at_k

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """Recall@k as the mean over units (queries, or classes of queries that hang together).

    units: hit rate of every unit. chance: what a random order of the gallery reaches on the same queries.
    """

    units: Mapping[str, float]
    chance: float
    k: int
    queries: int
    gallery: int

    @property
    def value(self) -> float:
        """The mean over units, between 0 and 1."""
        return float(np.mean(list(self.units.values())))

    def to_json(self) -> dict[str, Any]:
        """Value, chance, 95 % bootstrap interval over units, and the units themselves."""
        low, high = bootstrap_interval(self.units.values())
        return {
            "value": round(self.value, 6),
            "chance": round(self.chance, 6),
            "interval": [round(low, 6), round(high, 6)],
            "k": self.k,
            "queries": self.queries,
            "gallery": self.gallery,
            "units": {name: round(rate, 6) for name, rate in self.units.items()},
        }


def score(queries: Array, gallery: Array, targets: Array, k: int, units: Sequence[str]) -> Score:
    """Recall@k of cosine search.

    queries: (q, dim) and gallery: (g, dim) unit vectors, targets: bool (q, g), units: q names.

    Queries that share a unit name count as one unit, so a class with many clips weighs as much as one with few.
    """
    hits = hits_at_k(queries @ gallery.T, targets, k)
    chance = expected_chance(targets, k, units)
    return Score(class_means(hits, units), chance, k, queries=len(queries), gallery=len(gallery))


def equal(left: Sequence[str], right: Sequence[str]) -> Array:
    """Boolean (len(left), len(right)): where the names are the same."""
    return np.asarray(left, dtype=str)[:, None] == np.asarray(right, dtype=str)[None, :]


def fuse(*parts: Array) -> Array:
    """Several (n, dim) unit vectors per query -> their sum brought back to unit length (n, dim)."""
    total = np.sum(parts, axis=0)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
