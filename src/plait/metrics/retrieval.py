"""Retrieval metrics: similarities and right answers in, plain numbers out.

    similarity (q, g) + targets (q, g) -> ranks (q,) -> recall@k, median rank, each beside its exact chance

A rank is 1-based and counts ties against the model, so a model that answers everything with one constant score gets
no credit. Chance is hypergeometric: a random order of the gallery, of which several items may be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Array = npt.NDArray[np.generic]


def ranks(similarity: Array, targets: Array) -> npt.NDArray[np.int64]:
    """Rank of the best right item of every query: 1 + the wrong items that score at least as much.

    Args:
        similarity: (q, g), larger is closer.
        targets: boolean (q, g), True where the item is a right answer.

    Returns:
        int64 (q,), 1-based; ties count against the model.

    Raises:
        ValueError: if shapes differ, a similarity is NaN or infinite, or a query has no right
            item.

    Example:
        >>> ranks(np.array([[0.9, 0.1]]), np.array([[False, True]]))
        array([2])
    """
    similarity, targets = np.asarray(similarity), np.asarray(targets, dtype=bool)
    if similarity.ndim != 2 or similarity.shape != targets.shape:
        raise ValueError(
            f"expected similarity and targets of one shape (q, g), got {similarity.shape} and {targets.shape}; "
            "give one row per query and one column per gallery item"
        )
    finite(similarity, "similarities", None)
    if not targets.any(axis=1).all():
        raise ValueError("expected at least one right item for every query, got a query without; leave it out")
    # wrong items count, not places: other right ones ahead of the best do not push it back
    best = np.where(targets, similarity, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((similarity >= best) & ~targets).sum(axis=1)


def hits_at_k(similarity: Array, targets: Array, k: int) -> npt.NDArray[np.bool_]:
    """Whether a right item is among the k best, for every query.

    Args:
        similarity, targets: as in `ranks`.
        k: at least 1.

    Returns:
        boolean (q,).

    Raises:
        ValueError: for k below 1, and as `ranks`.
    """
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}; use 1, 5 or 10")
    return ranks(similarity, targets) <= k


def recall_at_k(similarity: Array, targets: Array, k: int) -> float:
    """Share of queries that find a right item among their k best.

    Args:
        similarity, targets, k: as in `hits_at_k`.

    Returns:
        A fraction.

    Example:
        >>> recall_at_k(np.array([[0.9, 0.1]]), np.array([[True, False]]), k=1)
        1.0
    """
    return float(hits_at_k(similarity, targets, k).mean())


def class_means(values: Array, classes: Sequence[str]) -> dict[str, float]:
    """Mean value of every class, sorted by name.

    Args:
        values: (q,).
        classes: q names.

    Raises:
        ValueError: where a value has no class.
    """
    if len(values) != len(classes):
        raise ValueError(f"expected one class for each of {len(values)} values, got {len(classes)}; align the two")
    names, index = np.unique(np.asarray(classes, dtype=str), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64))
    return dict(zip(names.tolist(), (sums / np.bincount(index)).tolist()))


def class_balanced_recall(similarity: Array, targets: Array, k: int, classes: Sequence[str]) -> float:
    """Mean over query classes of the class's recall@k, so that a class with many queries counts once.

    Args:
        similarity, targets, k: as in `hits_at_k`.
        classes: q names.
    """
    return float(np.mean(list(class_means(hits_at_k(similarity, targets, k), classes).values())))


def median_rank(similarity: Array, targets: Array) -> float:
    """Median over queries of the rank of the best right item (mean of the middle two when even).

    Args:
        similarity, targets: as in `ranks`.
    """
    return float(np.median(ranks(similarity, targets)))


def chance_at_k(num_right: int, gallery: int, k: int) -> float:
    """Exact recall@k of a random order: 1 - C(gallery - num_right, k) / C(gallery, k).

    Args:
        num_right: how many of the `gallery` items are right.
        gallery: number of items.
        k: clipped to the gallery.

    Returns:
        A fraction.

    Raises:
        ValueError: for numbers that make no sense.

    Example:
        >>> chance_at_k(1, 10, 5)
        0.5
    """
    if not 0 <= num_right <= gallery or gallery < 1 or k < 1:
        raise ValueError(
            f"expected 0 <= num_right <= gallery, gallery >= 1 and k >= 1, got {num_right}, {gallery} and {k}"
        )
    k = min(k, gallery)
    return 1.0 - comb(gallery - num_right, k) / comb(gallery, k)


def expected_chance(targets: Array, k: int, classes: Sequence[str] | None = None) -> float:
    """Recall@k of a random order for these queries.

    Args:
        targets: boolean (q, g), as in `ranks`.
        k: as in `chance_at_k`.
        classes: q names; the mean is then over the means of classes.

    Returns:
        A fraction.
    """
    targets = np.asarray(targets, dtype=bool)
    gallery = targets.shape[1]
    counts = targets.sum(axis=1)
    table = {int(n): chance_at_k(int(n), gallery, k) for n in np.unique(counts)}
    chances = np.array([table[int(n)] for n in counts])
    return float(chances.mean() if classes is None else np.mean(list(class_means(chances, classes).values())))


def bootstrap_interval(
    values: Iterable[float] | Array,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    indices: npt.NDArray[np.int64] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean: resample values, take quantiles of the means.

    Args:
        values: (n,) independent units (queries, or classes when their queries hang together).
        level: share of resampled means inside the interval.
        resamples, seed: how often, and from where the draws start.
        indices: (resamples, n) draws from another generator; `seed` is then unused.

    Returns:
        Lower and upper end; quantiles interpolate linearly.

    Raises:
        ValueError: without values, or with one that is not finite.

    Source:
        Efron 1979.
    """
    data = finite(list(values), "values")
    if data.size == 0:
        raise ValueError("expected at least one value to resample, got none; evaluate on at least one query")
    if indices is None:
        indices = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    low, high = np.quantile(data[indices].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
