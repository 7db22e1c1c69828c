"""Intervals and paired tests by resampling items: values -> percentile bootstrap (Efron 1979).

values of items (or of groups of items drawn whole) -> R statistics -> interval, standard error, p-value
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
_MULTIPLIER, _INCREMENT, _MASK = 6364136223846793005, 1442695040888963407, (1 << 64) - 1


@dataclass(frozen=True)
class Interval:
    """Statistic of the data, its percentile interval, and the spread of the resampled statistics.

    estimate: of the data as they are. lower, upper: quantiles of the resampled statistics.
    standard_error: their standard deviation (ddof 1). p_value: two-sided, set for paired
    differences only.
    """

    estimate: float
    lower: float
    upper: float
    standard_error: float
    p_value: float | None = None


def lcg64_indices(count: int, resamples: int, seed: int) -> Indices:
    """Draws with replacement from a 64-bit linear congruential generator, the same in any language.

        s = (6364136223846793005 s + 1442695040888963407) mod 2^64
        index = floor((s >> 32) * count / 2^32)

    Args:
        count: items to draw from.
        resamples: rows of draws.
        seed: first state.

    Returns:
        int64 (resamples, count), drawn row by row.
    """
    drawn = np.empty(resamples * count, dtype=np.int64)
    state = seed & _MASK
    for i in range(drawn.size):
        state = (_MULTIPLIER * state + _INCREMENT) & _MASK
        # the upper half of the state: lower bits of such a generator have short periods
        drawn[i] = (state >> 32) * count >> 32
    return drawn.reshape(resamples, count)


def numpy_indices(count: int, resamples: int, seed: int) -> Indices:
    """Draws with replacement from numpy's default generator, int64 (resamples, count): fast."""
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))


GENERATORS: dict[str, Callable[[int, int, int], Indices]] = {"numpy": numpy_indices, "lcg64": lcg64_indices}


def bootstrap_mean(values: Sequence[float] | Floats, **options: Any) -> Interval:
    """Interval of the mean.

    Args:
        values: (n,) of independent items.
        options: as in `bootstrap`.

    Example:
        >>> interval = bootstrap_mean([1.0, 0.0, 1.0, 1.0])
        >>> interval.estimate
        0.75
    """
    data = finite(values, "values")
    return bootstrap(data.size, lambda drawn: data[drawn].mean(axis=1), **options)


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], **options: Any) -> Interval:
    """Interval of sum(numerators) / sum(denominators): precision over a corpus.

    Args:
        numerators, denominators: (n,), resampled together.
        options: as in `bootstrap`.
    """
    above, below = finite(numerators, "values"), finite(denominators, "values")
    return bootstrap(above.size, lambda drawn: above[drawn].sum(axis=1) / below[drawn].sum(axis=1), **options)


def bootstrap_clustered_mean(values: Sequence[float], groups: Sequence[Hashable], **options: Any) -> Interval:
    """Interval of the mean over items whose groups are drawn whole: an image with its questions.

    Items of one group hang together; drawing them one by one would make the interval too narrow.

    Args:
        values: (n,).
        groups: n names; they stand in order of first appearance, so that draws are repeatable.
        options: as in `bootstrap`.

    Raises:
        ValueError: where a value has no group.
    """
    if len(values) != len(groups):
        raise ValueError(f"expected one group for each of {len(values)} values, got {len(groups)}; align the two")
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    index = np.array([numbers[group] for group in groups])
    sums = np.bincount(index, weights=finite(values, "values"))
    # a ratio, since groups differ in size: an item counts as often as its group is drawn
    return bootstrap_ratio(sums.tolist(), np.bincount(index).tolist(), **options)


def paired_bootstrap(first: Sequence[float], second: Sequence[float], **options: Any) -> Interval:
    """Interval of mean(first - second) over the same items, and its two-sided p-value.

        p = 2 min(share of statistics <= 0, share >= 0), at most 1

    Args:
        first, second: (n,) values of two models on the same items in the same order.
        options: as in `bootstrap`.

    Raises:
        ValueError: where their numbers differ.
    """
    a, b = finite(first, "values"), finite(second, "values")
    if a.shape != b.shape:
        raise ValueError(f"expected values of the same items, got {a.size} and {b.size}; score one split twice")
    difference = a - b
    return bootstrap(a.size, lambda drawn: difference[drawn].mean(axis=1), tested=True, **options)


def bootstrap(
    count: int,
    statistic: Callable[[Indices], Floats],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    generator: str = "numpy",
    indices: Indices | None = None,
    tested: bool = False,
) -> Interval:
    """Percentile interval of any statistic of items.

    Args:
        count: number of items.
        statistic: maps draws (r, count) of item numbers to r values.
        level: share of resampled statistics inside the interval.
        resamples: how often `count` items are drawn.
        seed: of the generator.
        generator: `numpy`, or `lcg64`, which other languages can repeat.
        indices: (r, count) draws made elsewhere; seed and generator are then unused.
        tested: also give the two-sided p-value against 0.

    Returns:
        An `Interval`; quantiles interpolate linearly.

    Raises:
        ValueError: without items or for an unknown generator.

    Source:
        Efron 1979; specification evaluation, 4.11.
    """
    if count < 1:
        raise ValueError("expected at least one value to resample, got none; evaluate at least one item")
    if generator not in GENERATORS:
        raise ValueError(f"expected a generator of {', '.join(GENERATORS)}, got {generator!r}")
    # every item once, in order: the statistic of the data by the same code as the resampled ones
    estimate = float(statistic(np.arange(count)[None])[0])
    drawn = GENERATORS[generator](count, resamples, seed) if indices is None else indices
    found = np.sort(statistic(drawn))
    # numpy's default, linear between neighbours: the golden intervals fix this rule
    low, high = np.quantile(found, [(1 - level) / 2, 1 - (1 - level) / 2])
    # one resample has no spread, and ddof 1 would divide by 0
    error = float(found.std(ddof=1)) if found.size > 1 else 0.0
    # both sides count zeros, so two equal models have p = 1
    p_value = min(1.0, 2 * float(min((found <= 0).mean(), (found >= 0).mean()))) if tested else None
    return Interval(estimate, float(low), float(high), error, p_value)
