"""The order of samples as a function: (seed, epoch, position) -> sample number, with no state to save.

A keyed Feistel network over the smallest even number of bits that holds `length` shuffles the positions; results past
the end are sent through again until they fall inside ("cycle walking"), which keeps it a permutation. Asking for one
batch of a billion samples costs the same as of a hundred, and any process computes any batch by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from plait.training.stages import Source

T = TypeVar("T")

_NUM_ROUNDS = 6


def permuted(length: int, positions: np.ndarray, *key: int) -> np.ndarray:
    """Sample numbers at `positions` of the shuffled order of range(length) that `key` names; both int64 (n,)."""
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


def step_loader(
    source: Source,
    key: tuple[int, int],
    *,
    batch_size: int,
    accumulation: int = 1,
    rank: int = 0,
    world_size: int = 1,
    finish: Callable[[Any], Any] | None = None,
) -> Callable[[int], tuple[Sequence[int], list[tuple[int, Any]]]]:
    """step -> (rows of the global batch, the micro batches of process `rank`, each after its place in the batch).

    key: (seed, stage). finish: applied to every batch after loading, in the loading thread.
    Raises ValueError when processes and micro batches do not divide the batch.
    """
    size, left = divmod(batch_size, world_size * accumulation)
    if left:
        raise ValueError(
            f"expected a batch_size that {world_size} processes x {accumulation} micro batches divide, got {batch_size}"
        )

    def load(step: int) -> tuple[Sequence[int], list[tuple[int, Any]]]:
        rows = source.rows(key[0], step, batch_size)
        parts = []
        for start in range(rank * size * accumulation, (rank + 1) * size * accumulation, size):
            rng = np.random.default_rng([*key, step, start, 1])
            batch = source.load([int(row) for row in rows[start : start + size]], rng)
            parts.append((start, batch if finish is None else finish(batch)))
        return rows, parts

    return load


@contextmanager
def ahead(load: Callable[[int], T], steps: Iterable[int], depth: int) -> Generator[Iterator[T]]:
    """Iterate over `load(step)` in order, loaded by one background thread up to `depth` steps before it is needed."""
    pool = ThreadPoolExecutor(1, "plait-batches")
    _keep_to_one_core(pool)

    def results() -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _keep_to_one_core(pool: ThreadPoolExecutor) -> None:
    """Let torch use one core in the pool's thread: a second team of OpenMP threads fights the training for cores.

    `set_num_threads` binds the calling thread and what later threads begin with; the latter is put back.
    """
    import torch

    def keep() -> None:
        torch.get_num_threads()  # a thread's first question binds it to the number of the others
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    pool.submit(keep).result()
    torch.set_num_threads(threads)


class Shuffled:
    """A source over samples in memory: every epoch a new order, `collate(samples, rng)` makes the batch.

    samples: anything with `[number]` and `len`; their `id` names them in messages, their number where they have none.
    """

    def __init__(self, samples: Sequence[Any], collate: Callable[[list[Any], np.random.Generator], Any]) -> None:
        self.samples = samples
        self.collate = collate

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, seed: int, step: int, batch_size: int) -> Sequence[int]:
        """Sample numbers of global batch `step`."""
        return rows_of_step(len(self), batch_size, seed, step).tolist()

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """The collated batch of these samples."""
        return self.collate([self.samples[row] for row in rows], rng)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these samples."""
        return [str(getattr(self.samples[row], "id", row)) for row in rows]


def _feistel(values: np.ndarray, round_keys: np.ndarray, half: int) -> np.ndarray:
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
