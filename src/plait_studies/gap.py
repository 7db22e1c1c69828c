"""The modality gap: how far apart the vectors of two modalities lie in a shared space (arXiv 2203.02053).

{modality: vectors} -> centroids and their distances, spread inside each modality, a picture in two dimensions
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def modality_gap(vectors: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Measure the gap between modalities and project everything onto two principal axes.

    Args:
        vectors: modality -> (count, dim); rows are scaled to unit length first.

    Returns:
        Plain numbers, ready for JSON:
        "gap": "image-audio" -> distance between the two centroids (0 = same place, 2 = opposite poles);
        "spread": modality -> mean distance of its vectors from its centroid;
        "points": modality -> list of (x, y), the two leading principal axes, every modality counted alike;
        "explained": share of the variance that each of the two axes carries.

    Raises:
        ValueError: for vectors of different widths, none at all, and rows that are zero or not finite.

    Source:
        arXiv 2203.02053, the distance of centroids.

    Example:
        >>> modality_gap({"image": [[1.0, 0.0]], "audio": [[-1.0, 0.0]]})["gap"]
        {'image-audio': 2.0}
    """
    units = {name: _unit_rows(name, rows) for name, rows in vectors.items()}
    widths = {name: rows.shape[1] for name, rows in units.items()}
    if len(set(widths.values())) != 1:
        raise ValueError(f"expected vectors of one width, got {widths or 'none'}; embed them with one model")
    centroids = {name: rows.mean(axis=0) for name, rows in units.items()}
    points, explained = _principal_plane(units)
    return {
        "gap": {f"{a}-{b}": float(np.linalg.norm(centroids[a] - centroids[b])) for a, b in combinations(units, 2)},
        "spread": {n: float(np.linalg.norm(rows - centroids[n], axis=1).mean()) for n, rows in units.items()},
        "points": {name: xy.round(5).tolist() for name, xy in points.items()},
        "explained": explained,
    }


def _unit_rows(name: str, rows: ArrayLike) -> NDArray[np.float64]:
    """(count, dim) vectors of length 1; `name` is the modality, for messages."""
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"expected {name} vectors of shape (count, dim), got {array.shape}")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ValueError(f"expected finite {name} vectors other than zero, got row {int(np.argmin(norms > 0))}")
    return array / norms


def _principal_plane(units: Mapping[str, NDArray[np.float64]]) -> tuple[dict[str, NDArray[np.float64]], list[float]]:
    """Coordinates in the plane of largest variance; a modality with more vectors weighs no more than another."""
    center = np.mean([rows.mean(axis=0) for rows in units.values()], axis=0)
    weighted = np.concatenate([(rows - center) / np.sqrt(len(rows)) for rows in units.values()])
    _, singular, axes = np.linalg.svd(weighted, full_matrices=False)
    axes = axes[:2] * np.where(axes[:2].sum(axis=1, keepdims=True) < 0, -1.0, 1.0)  # an axis has no sign of its own
    variance = singular**2
    share = (variance / variance.sum() if variance.sum() else variance)[:2]
    points = {name: (rows - center) @ axes.T for name, rows in units.items()}
    return {n: np.pad(xy, ((0, 0), (0, 2 - xy.shape[1]))) for n, xy in points.items()}, [float(s) for s in share]
