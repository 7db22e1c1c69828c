"""The order of samples as a function: (seed, epoch, position) -> sample number, with no state to save.

A keyed Feistel network over the smallest even number of bits that holds `length` shuffles the positions; results past
the end are sent through again until they fall inside ("cycle walking"), which keeps it a permutation. Asking for one
batch of a billion samples costs the same as of a hundred, and any process computes any batch by itself.
"""

from __future__ import annotations

import numpy as np

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
