"""Classes: scores or logits + right class -> accuracies, as fractions.

The first index wins ties everywhere, as arg-max does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.checks import finite

Array = npt.NDArray[Any] | Sequence[Any]
Floats = npt.NDArray[np.float64]


def predictions(scores: Array) -> npt.NDArray[np.int64]:
    """Class with the highest score; the first of equals.

    Args:
        scores: (n, classes), finite.

    Returns:
        int64 (n,).
    """
    return finite(scores).argmax(axis=1).astype(np.int64)


def top_k_hits(scores: Array, labels: Array, k: int) -> npt.NDArray[np.bool_]:
    """Whether the right class is among the k best.

    Args:
        scores: (n, classes).
        labels: (n,) integers.
        k: clipped to the number of classes.

    Returns:
        boolean (n,).

    Raises:
        ValueError: for shapes that do not fit.
    """
    values, right = finite(scores), np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or right.shape != values.shape[:1]:
        raise ValueError(f"expected scores (n, classes) and labels (n,), got {values.shape} and {right.shape}")
    # counted instead of sorted: one pass, and no order among classes is needed
    own = np.take_along_axis(values, right[:, None], axis=1)
    # equal scores rank by index, so that k = 1 is what arg-max says
    before = (values > own) | ((values == own) & (np.arange(values.shape[1]) < right[:, None]))
    return before.sum(axis=1) < k


def top_k_accuracy(scores: Array, labels: Array, k: int = 1) -> float:
    """Share of items whose class is among the k best: ImageNet, Kinetics, Something-Something.

    Args:
        scores, labels, k: as in `top_k_hits`.

    Example:
        >>> top_k_accuracy([[0.1, 0.7, 0.2]], [2], k=2)
        1.0
    """
    return float(top_k_hits(scores, labels, k).mean())


def mean_per_class_accuracy(predicted: Array, labels: Array) -> float:
    """Mean over the classes that occur of the share of their items that are right.

    Args:
        predicted, labels: (n,) classes. Transfer sets such as Flowers report it.

    Returns:
        A fraction.
    """
    said, right = np.asarray(predicted), np.asarray(labels)
    return float(np.mean([(said[right == label] == label).mean() for label in np.unique(right)]))


def average_views(view_logits: Array) -> Floats:
    """Class probabilities of a video: mean over its views (clips x crops) of the softmax.

    Args:
        view_logits: (n, views, classes).

    Returns:
        float64 (n, classes). Probabilities are averaged, not logits (ONE-PEACE, section 8.3).
    """
    logits = finite(view_logits, "logits")
    # the largest logit taken off first: exp would overflow above 709
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=1)


def closed_vocabulary_accuracy(logits: Array, targets: Array) -> float:
    """Mean target value of the predicted class: VQA with a list of answers (ONE-PEACE, 3,129).

    Args:
        logits: (n, classes).
        targets: (n, classes) of soft scores, such as min(1, 0.3 * annotators), or labels (n,).

    Returns:
        A fraction.
    """
    said, values = predictions(logits), finite(targets, "targets")
    if values.ndim == 1:
        return float((said == values).mean())
    return float(np.take_along_axis(values, said[:, None], axis=1).mean())
