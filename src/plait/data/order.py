"""The order of samples as a function: (seed, epoch, position) -> sample number, with no state to save.

A keyed Feistel network over the smallest even number of bits that holds `length` shuffles the positions; results past
the end are sent through again until they fall inside ("cycle walking"), which keeps it a permutation. Asking for one
batch of a billion samples costs the same as of a hundred, and any process computes any batch by itself.

The order of training samples: neighbours of one modality and of similar length (specification, section 10.3).

lengths (negative: text only) -> shuffled -> megabatches sorted by length -> even chunks per process -> interleaved
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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


def length_grouped(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """A shuffled order; global batches of world_size * batch_size hold what was shuffled together, longest first."""
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

    lengths: positive with an image, negative without. Raises ValueError for a length of 0.
    """
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
        full, last = full + megas[:-1], last + megas[-1]
    mixed = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    return [i for mega in [*mixed, sorted(last)] for i in mega]


def even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal sorted indices to chunks of equal size and nearly equal length; every n-th where sizes cannot agree."""
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
            totals[shortest] = float("inf")
    return chunks


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
