"""GLUE: classes and scores of sentence pairs -> accuracy, F1, Matthews, Pearson, Spearman (Wang et al. 2019).

Fractions; degenerate inputs (a constant prediction, no positive one) give 0 as the usual tools do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Array = npt.NDArray[Any] | Sequence[Any]
Floats = npt.NDArray[np.float64]


def accuracy(predicted: Array, labels: Array) -> float:
    """Share of equal entries.

    Args:
        predicted, labels: (n,) classes.

    Returns:
        A fraction.

    Raises:
        ValueError: for none, or for other numbers of the two.
    """
    said, right = finite(predicted, "classes"), finite(labels, "classes")
    if said.shape != right.shape or not said.size:
        raise ValueError(f"expected as many predictions as labels, and some, got {said.shape} and {right.shape}")
    return float((said == right).mean())


def f1(predicted: Array, labels: Array, positive: int = 1) -> float:
    """F1 of one class: 2 TP / (2 TP + FP + FN), for MRPC and QQP.

    Args:
        predicted, labels: (n,) classes.
        positive: the class that counts.

    Returns:
        A fraction; 0 where the class neither occurs nor is said.
    """
    said, right = finite(predicted, "classes") == positive, finite(labels, "classes") == positive
    total = float(said.sum() + right.sum())
    return 2 * float((said & right).sum()) / total if total else 0.0


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews correlation of any number of classes: the correlation of class indicators (CoLA).

    Args:
        predicted, labels: (n,) classes.

    Returns:
        A number in [-1, 1]; 0 where one of the two is constant.

    Source:
        Gorodkin 2004.
    """
    said, right = finite(predicted, "classes"), finite(labels, "classes")
    classes = np.unique(np.concatenate([said, right]))
    a, b = (said[:, None] == classes).astype(np.float64), (right[:, None] == classes).astype(np.float64)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length else 0.0


def pearson(first: Array, second: Array) -> float:
    """Pearson correlation of two vectors, for STS-B.

    Args:
        first, second: (n,).

    Returns:
        A number in [-1, 1]; 0 where one of them is constant.
    """
    a, b = finite(first), finite(second)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length else 0.0


def spearman(first: Array, second: Array) -> float:
    """Pearson correlation of the ranks of two vectors; equal values share their mean rank.

    Args:
        first, second: (n,).

    Returns:
        A number in [-1, 1].
    """
    return pearson(mean_ranks(first), mean_ranks(second))


def mean_ranks(values: Array) -> Floats:
    """1-based ranks, equal values at their mean rank.

    Args:
        values: (n,).

    Returns:
        float64 (n,).

    Example:
        >>> mean_ranks([10, 30, 30]).tolist()
        [1.0, 2.5, 2.5]
    """
    _, inverse, counts = np.unique(finite(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
