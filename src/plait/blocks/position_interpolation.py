"""Position tables for another image size: absolute ones resized bicubically, relative ones on a geometric grid.

Sources: BEiT's geometric-sequence interpolation as used by ONE-PEACE (section 4 of its released layout). The spline
is the interpolating tensor-product cubic spline with not-a-knot ends: what FITPACK computes without smoothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize_absolute(table: Tensor, width: int, num_special: int = 1, mode: str = "bicubic") -> Tensor:
    """Resize a grid of position vectors to `width` x `width`; the leading special rows (CLS) stay.

    table: (num_special + old * old, dim). Returns (num_special + width * width, dim), computed in float32.
    Raises ValueError where the rows form no square grid.
    """
    old = math.isqrt(len(table) - num_special)
    if old * old != len(table) - num_special:
        raise ValueError(
            f"expected {num_special} special rows and a square grid, got {len(table)} rows; pass the right num_special"
        )
    if old == width:
        return table
    special, grid = table[:num_special], table[num_special:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(width, width), mode=mode, align_corners=False)
    return torch.cat([special, grid.flatten(2).squeeze(0).T.to(table.dtype)])


def resize_relative(table: Tensor, old_width: int, new_width: int, num_special: int = 3) -> Tensor:
    """Resize a relative-position table of `old_width` x `old_width` patches to `new_width`; the last special rows stay.

    Distances of the old table are stretched to a geometric sequence that reaches as far as the new grid, so that near
    offsets keep their spacing; a cubic spline per head is read at the new integer offsets.

    table: ((2 * old_width - 1) ** 2 + num_special, heads). Returns ((2 * new_width - 1) ** 2 + num_special, heads).
    Raises ValueError on a table of another size or a smaller target.
    """
    source, target = 2 * old_width - 1, 2 * new_width - 1
    if len(table) != source * source + num_special or new_width < old_width:
        raise ValueError(
            f"expected {source * source + num_special} rows and new_width >= {old_width}, got {len(table)} rows and "
            f"new_width {new_width}; pass the width the table was trained with"
        )
    if source == target:
        return table
    x = geometric_offsets(source, target)
    at = np.clip(np.arange(-(target // 2), target // 2 + 1, dtype=np.float64), x[0], x[-1])
    weights = cubic_spline_weights(x, at)  # (target, source)
    grid = table[: source * source].double().reshape(source, source, -1).cpu().numpy()
    grid = np.einsum("ap,pqh,bq->abh", weights, grid, weights, optimize=True)
    resized = torch.from_numpy(grid.reshape(target * target, -1)).to(table)
    return torch.cat([resized, table[source * source :]])


def geometric_offsets(source: int, target: int) -> np.ndarray:
    """Offsets -d_n .. 0 .. d_n with d_1 = 1 and steps growing by a ratio q, chosen so that d_n reaches `target // 2`.

    source, target: side lengths (odd) of the old and the new table. Returns float64 (source,).
    """
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1.0 - ratio ** (source // 2)) / (1.0 - ratio)
        low, high = (low, ratio) if reach > target // 2 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(source // 2, dtype=np.float64))
    return np.concatenate([-distances[::-1], [0.0], distances])


def cubic_spline_weights(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Matrix that reads the interpolating cubic spline through any values at `x` (increasing, at least 4) at `at`.

    The knots are x[0] and x[-1] four times each and x[2..n-3] between them. Returns float64 (len(at), len(x)).
    """
    if len(x) < 4:
        raise ValueError(f"expected at least 4 points for a cubic spline, got {len(x)}; use a larger table")
    knots = np.concatenate([np.repeat(x[0], 4), x[2:-2], np.repeat(x[-1], 4)])
    return np.linalg.solve(_cubic_basis(knots, x).T, _cubic_basis(knots, at).T).T


def _cubic_basis(knots: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of all cubic B-splines at `at` by the Cox-de Boor recursion. Returns (len(at), len(knots) - 4)."""
    last = len(knots) - 5
    span = np.clip(np.searchsorted(knots, at, side="right") - 1, 3, last)
    basis = np.zeros((len(at), len(knots) - 1))
    basis[np.arange(len(at)), span] = 1.0
    for degree in (1, 2, 3):
        width = knots[degree:] - knots[:-degree]  # of the splines one degree lower, plus one
        inverse = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        rise = (at[:, None] - knots[None, : -degree - 1]) * inverse[:-1]
        fall = (knots[None, degree + 1 :] - at[:, None]) * inverse[1:]
        basis = rise * basis[:, :-1] + fall * basis[:, 1:]
    return basis
