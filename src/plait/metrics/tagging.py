"""Several labels per item: scores + right labels -> average precisions (FSD50K, AudioSet).

Scores (n, classes) need no threshold: only their order counts. A class without positives and an
item without labels are undefined: NaN by themselves, left out of means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Array = npt.NDArray[Any] | Sequence[Any]
Floats = npt.NDArray[np.float64]


def average_precision(scores: Array, targets: Array) -> float:
    """Area under precision over recall as steps: sum of (R_n - R_(n-1)) P_n.

    Args:
        scores: (n,).
        targets: (n,) of 0 and 1.

    Returns:
        A fraction; NaN without a positive. Equal scores form one threshold, so that their order
        does not matter.
    """
    values, right = finite(scores), np.asarray(targets, dtype=bool)
    if not right.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(right[order])
    # last place of every run of equal scores
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def average_precisions(scores: Array, targets: Array) -> Floats:
    """`average_precision` of every class.

    Args:
        scores, targets: (n, classes).

    Returns:
        float64 (classes,); NaN for one without positives.
    """
    values, right = _pair(scores, targets)
    return np.array([average_precision(values[:, c], right[:, c]) for c in range(values.shape[1])])


def mean_average_precision(scores: Array, targets: Array) -> float:
    """Macro mAP: mean over the classes that have positives; the others are left out (report them).

    Args:
        scores, targets: (n, classes).

    Returns:
        A fraction; NaN where no class has positives.

    Source:
        ONE-PEACE reports FSD50K by it (specification evaluation, 3.10).
    """
    found = average_precisions(scores, targets)
    return float("nan") if np.isnan(found).all() else float(np.nanmean(found))


def micro_average_precision(scores: Array, targets: Array) -> float:
    """`average_precision` over all pairs of item and class at once: frequent classes weigh more.

    Args:
        scores, targets: (n, classes).
    """
    values, right = _pair(scores, targets)
    return average_precision(values.ravel(), right.ravel())


def label_ranking_precisions(scores: Array, targets: Array) -> Floats:
    """Per item: mean over its right labels of the share of right ones ranked at or above it.

    Args:
        scores, targets: (n, classes).

    Returns:
        float64 (n,); NaN for an item without labels.
    """
    values, right = _pair(scores, targets)
    at_or_above = values[:, None, :] >= values[:, :, None]  # (n, label, other)
    share = (at_or_above & right[:, None, :]).sum(axis=2) / at_or_above.sum(axis=2)
    # 0 / 0 for an item without labels: NaN is what is meant
    with np.errstate(invalid="ignore"):
        return (share * right).sum(axis=1) / right.sum(axis=1)


def label_ranking_average_precision(scores: Array, targets: Array) -> float:
    """LRAP: mean over the items that have labels; others say nothing and are left out.

    Args:
        scores, targets: (n, classes).
    """
    return float(np.nanmean(label_ranking_precisions(scores, targets)))


def label_weighted_ranking_precision(scores: Array, targets: Array) -> float:
    """lwlrap (DCASE 2019): LRAP weighted by the number of labels.

    That is the mean over all right labels of all items.

    Args:
        scores, targets: (n, classes).
    """
    counts = _pair(scores, targets)[1].sum(axis=1)
    kept = counts > 0
    return float(np.average(label_ranking_precisions(scores, targets)[kept], weights=counts[kept]))


def sigmoid(logits: Array) -> Floats:
    """1 / (1 + exp(-x)) in double precision, without overflow.

    Args:
        logits: any shape, finite.
    """
    values = finite(logits, "logits")
    # of a negative number always: exp never overflows, and each sign has its own form
    powers = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + powers), powers / (1 + powers))


def _pair(scores: Array, targets: Array) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Finite scores and boolean targets of one shape (n, classes). Raises ValueError for others."""
    values, right = finite(scores), np.asarray(targets, dtype=bool)
    if values.ndim != 2 or values.shape != right.shape:
        raise ValueError(f"expected scores and targets of one shape (n, classes), got {values.shape}, {right.shape}")
    return values, right
