"""Which samples share a step: weighted mixtures of tasks, a task per step; batches by length under a token budget.

Both are pure functions of (seed, step), so every process and every resumed run computes the same batches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from plait.data.order import permuted

CYCLE = 1000
"""Steps in which a mixture keeps its weights exactly, at most."""


class BatchSource(Protocol):
    """What a step's batch comes from; see `plait.training.stages.Source`."""

    def __len__(self) -> int: ...
    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]: ...
    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any: ...
    def names(self, rows: Sequence[int]) -> list[str]: ...


class Mixture:
    """Several tasks or modalities in one stage: every step has the batch of one, in all processes the same.

    sources: name -> source. weights: how often each has its turn, by default as its number of samples. A batch is a
    dict and gets its name under "task". Turns come in cycles in which every source has its exact share, in an order
    drawn for each cycle; a source goes on at its own pace, so a small one is repeated more often, never reshuffled
    early.
    """

    def __init__(self, sources: Mapping[str, BatchSource], weights: Mapping[str, float] | None = None) -> None:
        if not sources:
            raise ValueError("expected at least one source to mix, got none")
        given = {name: float(len(source)) for name, source in sources.items()} if weights is None else dict(weights)
        if set(given) != set(sources) or min(given.values()) <= 0:
            raise ValueError(f"expected a weight above 0 for each of {', '.join(sources)}, got {given}")
        self.sources = dict(sources)
        self.shares = shares_of([given[name] for name in sources])
        self.cycle = np.repeat(np.arange(len(self.shares)), self.shares)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def turn(self, seed: int, step: int) -> tuple[int, int]:
        """Whose step it is, and how many turns that source has had before."""
        cycle, place = divmod(step, len(self.cycle))
        order = self.cycle[permuted(len(self.cycle), np.arange(place + 1), seed, cycle, 2)]
        number = int(order[-1])
        return number, cycle * self.shares[number] + int((order[:-1] == number).sum())

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Row numbers of the source whose turn it is, each times the number of sources plus the number of its own."""
        number, own = self.turn(seed, step)
        source = list(self.sources.values())[number]
        return [int(row) * len(self.sources) + number for row in source.rows(seed, own, batch_size)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        """The batch of the source that these rows belong to, with its name under "task"."""
        name, source, own = self._found(rows)
        return {"task": name, **source.load(own, rng)}

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these rows."""
        _, source, own = self._found(rows)
        return source.names(own)

    @property
    def bad(self) -> list[str]:
        """What the sources had to skip, one line each."""
        return [line for source in self.sources.values() for line in bad_of(source)]

    def _found(self, rows: Sequence[int]) -> tuple[str, BatchSource, list[int]]:
        count = len(self.sources)
        name, source = list(self.sources.items())[rows[0] % count]
        return name, source, [row // count for row in rows]


def shares_of(weights: Sequence[float]) -> list[int]:
    """Whole turns in the shortest cycle, of at most `CYCLE`, that has these weights (within 1 %, else to rounding)."""
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


class Budgeted:
    """Batches of samples of nearly one length, as many as a budget of tokens (frames, samples of sound) allows.

    source: of whose samples the batches are. lengths: of each sample, in tokens. budget: largest padded size of a
        global batch, `rows * longest`. unit: the stage's batch_size; a batch has a multiple of it, so a number of
        processes that divides the unit divides every batch.
    Samples are ordered by length and cut into batches, which come in a new order every epoch, each of other samples of
    the same lengths.
    Raises ValueError where `unit` samples of the longest do not fit the budget.
    """

    def __init__(self, source: BatchSource, lengths: Sequence[int], budget: int, unit: int) -> None:
        if len(lengths) != len(source) or unit < 1 or len(source) < unit:
            raise ValueError(
                f"expected a length of each of {len(source)} samples and at least {unit} of them, got {len(lengths)}"
            )
        self.source, self.unit = source, unit
        self.lengths = np.asarray(lengths, np.int64)
        longest = int(self.lengths.max())
        if longest * unit > budget:
            raise ValueError(
                f"expected a budget of at least {unit} x {longest} for the longest sample, got {budget}; "
                "raise it, lower batch_size, or leave long samples out"
            )
        self.order = np.argsort(self.lengths, kind="stable")
        self.cuts = self._cut(budget)
        changes = np.flatnonzero(np.diff(self.lengths[self.order])) + 1
        self.ends = [*changes.tolist(), len(self.order)]
        self.ties = list(zip([0, *self.ends[:-1]], self.ends, strict=True))

    def _cut(self, budget: int) -> list[tuple[int, int]]:
        """(start, stop) of batches in the order of lengths, from the longest down; fewer than a unit are left out."""
        cuts, stop = [], len(self.order)
        while stop >= self.unit:
            fitting = budget // max(1, int(self.lengths[self.order[stop - 1]]))
            count = min(fitting, stop) // self.unit * self.unit
            cuts.append((stop - count, stop))
            stop -= count
        return cuts

    def __len__(self) -> int:
        return len(self.cuts) * self.unit  # so many steps an epoch, counted as the loop counts

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Sample numbers of batch `step`, a multiple of `batch_size`, which is the unit."""
        if batch_size != self.unit:
            raise ValueError(f"expected the batch_size {self.unit} that the budget was made for, got {batch_size}")
        epoch, place = divmod(step, len(self.cuts))
        number = int(permuted(len(self.cuts), np.array([place]), seed, epoch, 3)[0])
        start, stop = self.cuts[number]
        return [int(row) for row in self.order[self._ranks(start, stop, seed, epoch)]]

    def _ranks(self, start: int, stop: int, seed: int, epoch: int) -> np.ndarray:
        """Places start .. stop, each taken by another sample of the same length every epoch, in another order."""
        ranks = []
        for low, high in self.ties[bisect_right(self.ends, start) :]:
            if low >= stop:
                break
            places = np.arange(max(low, start), min(high, stop)) - low
            ranks.append(low + permuted(high - low, places, seed, epoch, low, 4))
        return np.concatenate(ranks)[permuted(stop - start, np.arange(stop - start), seed, epoch, start, 5)]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The batch of these samples."""
        return self.source.load(rows, rng)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these samples."""
        return self.source.names(rows)

    @property
    def bad(self) -> list[str]:
        """What the source had to skip."""
        return bad_of(self.source)
