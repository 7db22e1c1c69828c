"""Which samples share a step: orders of rows, each a pure function (seed, step) -> rows with no state to save.

Shuffled    every row once an epoch, in a new order each       Spread      rows of different concepts in a batch
Grouped     rows of one modality and similar length            Budgeted    as many rows as a budget of tokens allows

A keyed Feistel network over the smallest even number of bits that holds `length` shuffles the positions; results past
the end are sent through again until they fall inside ("cycle walking"), which keeps it a permutation. Asking for one
batch of a billion samples costs the same as of a hundred, and any process computes any batch by itself.

`length_grouped` and `modality_grouped` are the released order of mPLUG-Owl2 (specification, section 10.3):
lengths (negative: text only) -> shuffled -> megabatches sorted by length -> even chunks per process -> interleaved
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

# Luby and Rackoff (1988) need four for an order that passes as random; two more cost little.
_NUM_ROUNDS = 6


class Order(Protocol):
    """Which rows a step has."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """The row numbers of global batch `step`, from 0 and counted on through all epochs."""
        ...


class Shuffled:
    """Every row once an epoch, each epoch in a new order; rows that do not fill a batch are left out of it.

    Args:
        length: number of rows.

    Example:
        >>> sorted(Shuffled(4).rows(seed=0, step=0, batch_size=4))
        [0, 1, 2, 3]
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """Row numbers of global batch `step`. Raises ValueError for fewer rows than one batch holds."""
        return rows_of_step(self.length, batch_size, seed, step).tolist()


class Spread:
    """Rows of pairwise different concepts in a batch, so that no negative is a hidden positive.

    Concepts come equally often, whatever their number of rows. An epoch counts rows, but a row may come twice in it.

    Args:
        concepts: (rows,) a whole number that names the concept of each row, such as a digest of its label. A batch
            larger than the number of concepts repeats some, none more often than it must.
    """

    def __init__(self, concepts: np.ndarray) -> None:
        self.known, first, inverse = np.unique(concepts, return_index=True, return_inverse=True)
        self.rank = np.empty(len(first), np.int32)  # of a concept in the order of first appearance
        self.rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
        numbers = self.rank[inverse]
        self.by_concept = np.argsort(numbers, kind="stable").astype(np.int32)
        self.ends = np.cumsum(np.bincount(numbers))

    def __len__(self) -> int:
        return len(self.by_concept)

    def number(self, concept: int) -> int:
        """The number of a concept, counted in the order of first appearance."""
        return int(self.rank[np.searchsorted(self.known, concept)])

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Row numbers of `batch_size` concepts, one of each concept's rows drawn evenly."""
        rng, count = np.random.default_rng((seed, step)), len(self.ends)
        rounds = [rng.permutation(count) for _ in range(-(-batch_size // count))]
        chosen = np.concatenate(rounds)[:batch_size]
        starts = np.concatenate([[0], self.ends[:-1]])
        return [int(rng.choice(self.by_concept[starts[one] : self.ends[one]])) for one in chosen]


class Grouped:
    """Steps of rows of one modality and of similar length, as mPLUG-Owl2 was trained.

    Every epoch is a new order; its rows that do not fill a step are left out of it. The order of one epoch is kept, 4
    bytes a row, since the released rule cannot tell a batch without the others.

    Args:
        lengths: (rows,) positive with an image, negative without, never 0.
        micro: rows that go through the model together: steps are dealt into chunks of so many, of nearly equal length
            each, whatever the number of processes. 1 where it does not divide the batch.

    Source:
        Specification mPLUG-Owl2, 10.3.
    """

    def __init__(self, lengths: np.ndarray, micro: int = 1) -> None:
        self.lengths, self.micro = np.asarray(lengths, np.int32), micro
        self._epoch: tuple[tuple[int, int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Row numbers of global batch `step`.

        Raises:
            ValueError: for fewer rows than one batch holds, and for a length of 0.
        """
        if len(self) < batch_size:
            raise ValueError(f"expected at least {batch_size} samples for one batch, got {len(self)}; lower batch_size")
        epoch, place = divmod(step, len(self) // batch_size)
        key = (seed, epoch, batch_size)
        if self._epoch is None or self._epoch[0] != key:
            import torch  # late: a command reads its recipe before it loads torch

            micro = self.micro if batch_size % self.micro == 0 else 1
            drawn = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
            generator = torch.Generator().manual_seed(drawn)
            order = modality_grouped(self.lengths.tolist(), micro, batch_size // micro, generator)
            self._epoch = key, np.asarray(order, np.int32)
        return self._epoch[1][place * batch_size : (place + 1) * batch_size].tolist()


class Budgeted:
    """Batches of samples of nearly one length, as many as a budget of tokens (frames, samples of audio) allows.

    Samples are ordered by length and cut into batches, which come in a new order every epoch, each of other samples of
    the same lengths.

    Args:
        lengths: of each sample, in tokens.
        budget: largest padded size of a global batch, `rows * longest`.
        unit: the stage's batch_size; a batch has a multiple of it, so a number of processes that divides the unit
            divides every batch.

    Raises:
        ValueError: where `unit` samples of the longest do not fit the budget, or there are fewer samples.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, budget: int, unit: int) -> None:
        self.lengths, self.unit = np.asarray(lengths, np.int64), unit
        if unit < 1 or len(self.lengths) < unit:
            raise ValueError(f"expected lengths of at least {unit} samples, got {len(self.lengths)}")
        longest = int(self.lengths.max())
        if longest * unit > budget:
            raise ValueError(
                f"expected a budget of at least {unit} x {longest} for the longest sample, got {budget}; "
                "raise it, lower batch_size, or leave long samples out"
            )
        self.order = np.argsort(self.lengths, kind="stable")
        self.cuts: list[tuple[int, int]] = []  # (start, stop) in the order of lengths, from the longest down
        stop = len(self.order)
        while stop >= unit:  # fewer than a unit are left out
            fitting = budget // max(1, int(self.lengths[self.order[stop - 1]]))
            count = min(fitting, stop) // unit * unit
            self.cuts.append((stop - count, stop))
            stop -= count
        changes = np.flatnonzero(np.diff(self.lengths[self.order])) + 1
        self.ends = [*changes.tolist(), len(self.order)]
        self.ties = list(zip([0, *self.ends[:-1]], self.ends, strict=True))

    def __len__(self) -> int:
        return len(self.cuts) * self.unit  # so many steps an epoch, counted as the loop counts

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Sample numbers of batch `step`, a multiple of `batch_size`, which is the unit."""
        if batch_size != self.unit:
            raise ValueError(f"expected the batch_size {self.unit} that the budget was made for, got {batch_size}")
        epoch, place = divmod(step, len(self.cuts))
        number = int(permuted(len(self.cuts), np.array([place]), seed, epoch, 3)[0])
        start, stop = self.cuts[number]
        ranks = []  # each place is taken by another sample of the same length every epoch
        for low, high in self.ties[bisect_right(self.ends, start) :]:
            if low >= stop:
                break
            places = np.arange(max(low, start), min(high, stop)) - low
            ranks.append(low + permuted(high - low, places, seed, epoch, low, 4))
        shuffled = permuted(stop - start, np.arange(stop - start), seed, epoch, start, 5)
        return self.order[np.concatenate(ranks)[shuffled]].tolist()


def permuted(length: int, positions: np.ndarray, *key: int) -> np.ndarray:
    """Sample numbers at `positions` of the shuffled order of range(length) that `key` names.

    Args:
        length: of the order. positions: int64 (n,), each below length.
        key: whole numbers, such as seed and epoch; other numbers are other orders.

    Returns:
        int64 (n,), different for different positions.

    Example:
        >>> sorted(permuted(3, np.arange(3), 0, 0).tolist())
        [0, 1, 2]
    """
    # Both halves have as many bits; the domain is below four times the length, so few walks are long.
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    round_keys = np.random.SeedSequence(key).generate_state(_NUM_ROUNDS, np.uint64)
    values = _feistel(positions.astype(np.uint64), round_keys, half)
    outside = np.flatnonzero(values >= length)
    while outside.size:
        values[outside] = _feistel(values[outside], round_keys, half)
        outside = outside[values[outside] >= length]
    return values.astype(np.int64)


def rows_of_step(length: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Sample numbers (batch_size,) of global batch `step`: each epoch is a new order, its incomplete batch is left out.

    Raises ValueError when there are fewer samples than one batch holds.
    """
    if length < batch_size:
        raise ValueError(f"expected at least {batch_size} samples for one batch, got {length}; lower batch_size")
    epoch, batch = divmod(step, length // batch_size)
    return permuted(length, np.arange(batch * batch_size, (batch + 1) * batch_size), seed, epoch)


def _feistel(values: np.ndarray, round_keys: np.ndarray, half: int) -> np.ndarray:
    """Shuffle numbers of 2 * half bits, uint64 (n,): each round can be undone, so none meet."""
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in round_keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """Scramble all 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def length_grouped(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """A shuffled order; global batches of world_size * batch_size hold what was shuffled together, longest first.

    Args:
        lengths: (rows,) above 0. batch_size: rows of a process; world_size: processes times accumulation, as released.
        generator: of the shuffle.

    Returns:
        Every row number once; process after process within a global batch.

    Source:
        Specification mPLUG-Owl2, 10.3.
    """
    import torch  # late: a command plans its order before it loads torch

    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order = []
    for mega in _cut(shuffled, world_size * batch_size):
        mega = sorted(mega, key=lambda i: lengths[i], reverse=True)
        order += [i for chunk in even_chunks(mega, lengths, world_size) for i in chunk]
    return order


def modality_grouped(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """`length_grouped` for each modality, full global batches of both mixed at random, the two incomplete ones last.

    Args:
        lengths: (rows,) positive with an image, negative without.
        batch_size, world_size, generator: as in `length_grouped`.

    Raises:
        ValueError: for a length of 0, which would be of no modality.
    """
    import torch

    if not all(lengths):
        raise ValueError(f"expected lengths other than 0, got 0 at {list(lengths).index(0)}; drop empty samples")
    groups = [[i for i, n in enumerate(lengths) if (n > 0) is with_image] for with_image in (True, False)]
    if not all(groups):
        return length_grouped([abs(n) for n in lengths], batch_size, world_size, generator)
    full: list[list[int]] = []
    last: list[int] = []
    for group in groups:
        order = length_grouped([abs(lengths[i]) for i in group], batch_size, world_size, generator)
        megas = _cut([group[i] for i in order], world_size * batch_size)
        # The last of each counts as incomplete even when it is full: so the released sampler does.
        full, last = full + megas[:-1], last + megas[-1]
    mixed = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    # Sorted by row number, not by length: the released order, kept to the letter.
    return [i for mega in [*mixed, sorted(last)] for i in mega]


def even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal sorted indices to chunks of equal size and nearly equal length; every n-th where sizes cannot agree.

    Args:
        indices: row numbers, longest first. lengths: of all rows. num_chunks: number of chunks.
    """
    if len(indices) % num_chunks:
        return [list(indices[i::num_chunks]) for i in range(num_chunks)]
    size = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals: list[float] = [0.0] * num_chunks
    for index in indices:
        shortest = totals.index(min(totals))
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(chunks[shortest]) == size:
            # A full chunk takes no more.
            totals[shortest] = float("inf")
    return chunks


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    """`items` in slices of `size`, the last one shorter."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
