"""Weighted mixtures of tasks, data sets or kinds of rows: a step has the batch of one of them.

sources, weights -> whose turn a step is (a function of seed and step) -> rows of that source -> its batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from plait.data.order import permuted
from plait.data.reader import Source

CYCLE = 1000
"""Steps in which a mixture keeps its weights exactly, at most."""


class Mixture:
    """Several sources in one stage: every step has the batch of one, in all processes the same.

    In a cycle every source has its exact share; a source goes on at its own pace, so a small one is repeated more
    often, never reshuffled early.

    Args:
        sources: name -> source.
        weights: how often each has its turn, by default as its number of samples.
        turns: "drawn" in an order drawn anew for each cycle, or "in order" of the sources, as mPLUG-2's pretraining
            repeats its kinds of rows.
        named: whether a batch, a dict, gets the name of its source under "task".

    Raises:
        ValueError: without sources, and where they do not have a weight above 0 each.

    Example:
        >>> from plait.data.reader import Reader, as_it_is
        >>> source = Reader([0, 1], lambda parts, rng: parts, as_it_is)
        >>> mixture = Mixture({"a": source, "b": source}, {"a": 1, "b": 1}, turns="in order")
        >>> [mixture.turn(seed=0, step=step) for step in range(3)]
        [(0, 0), (1, 0), (0, 1)]
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float] | None = None,
        *,
        turns: Literal["drawn", "in order"] = "drawn",
        named: bool = True,
    ) -> None:
        if not sources:
            raise ValueError("expected at least one source to mix, got none")
        given = {name: float(len(source)) for name, source in sources.items()} if weights is None else dict(weights)
        if set(given) != set(sources) or min(given.values()) <= 0:
            raise ValueError(f"expected a weight above 0 for each of {', '.join(sources)}, got {given}")
        self.sources, self.turns, self.named = dict(sources), turns, named
        self.shares = shares_of([given[name] for name in sources])
        self.cycle = np.repeat(np.arange(len(self.shares)), self.shares)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def turn(self, seed: int, step: int) -> tuple[int, int]:
        """Whose step it is, and how many turns that source has had before."""
        cycle, place = divmod(step, len(self.cycle))
        order = self.cycle[: place + 1]
        if self.turns == "drawn":
            # 2 keeps this order apart from those of the sources, which have the same seed.
            order = self.cycle[permuted(len(self.cycle), np.arange(place + 1), seed, cycle, 2)]
        number = int(order[-1])
        return number, cycle * self.shares[number] + int((order[:-1] == number).sum())

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Row numbers of the source whose turn it is, times the number of sources, plus the number of the source.

        A row number tells its source by itself, so `load` and `names` need no step. `own` counts the source's turns,
        not steps: each source sees its epochs as if it were alone.
        """
        number, own = self.turn(seed, step)
        source = list(self.sources.values())[number]
        return [int(row) * len(self.sources) + number for row in source.rows(seed, own, batch_size)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        """The batch of the source that these rows belong to."""
        name, source, own = self._found(rows)
        batch = source.load(own, rng)
        return {"task": name, **batch} if self.named else batch

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these rows."""
        _, source, own = self._found(rows)
        return source.names(own)

    @property
    def bad(self) -> list[str]:
        """What the sources had to skip, one line each."""
        return [line for source in self.sources.values() for line in bad_of(source)]

    def _found(self, rows: Sequence[int]) -> tuple[str, Source, list[int]]:
        """Name, source and its own row numbers of rows of one batch."""
        count = len(self.sources)
        name, source = list(self.sources.items())[rows[0] % count]
        return name, source, [row // count for row in rows]


def shares_of(weights: Sequence[float]) -> list[int]:
    """Whole turns in the shortest cycle, of at most `CYCLE`, that has these weights (within 1 %, else to rounding).

    Args:
        weights: above 0; only their ratios count.

    Returns:
        Turns of each source in a cycle, at least 1.

    Example:
        >>> shares_of([3, 1])
        [3, 1]
    """
    parts = np.asarray(weights, np.float64) / sum(weights)
    for length in range(len(parts), CYCLE + 1):
        shares = np.maximum(np.round(parts * length), 1)
        if (np.abs(shares / shares.sum() - parts) <= 0.01 * parts).all():
            return [int(share) for share in shares]
    return [int(share) for share in np.maximum(np.round(parts * CYCLE), 1)]


def bad_of(source: Any) -> list[str]:
    """What a source had to skip, one line each; nothing for sources that never skip."""
    found = getattr(source, "bad", ())
    return list(getattr(found, "messages", {}).values()) or list(found if isinstance(found, list) else ())
