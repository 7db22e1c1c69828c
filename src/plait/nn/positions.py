"""Where a token is: biases by relative position, their tables for other sizes, and rotary angles.

positions -> row of a bias table -> (heads, query, key), added to attention scores
table of one image size -> table of another
positions -> angles = position * inv_freq -> cos, sin -> x * cos + rotate_half(x) * sin

Relative positions and their resizing: ONE-PEACE, sections 2.1, 2.2 and 4 of its released layout.
Both sequences start with a CLS vector, which has no position, so the last three rows of a table
belong to it: CLS as query, CLS as key, CLS to itself. Rotary positions (arXiv 2104.09864) in the
half-split layout of Llama, with Qwen's dynamic NTK base and log-n scale.

Fixed sine and cosine tables in one and two dimensions (mPLUG-Owl2's abstractor): computed, never
stored, and stretched to another grid or number of queries so that a resized checkpoint stays close.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """Attention bias of every head.

    Args:
        table: (rows, heads).
        index: (query, key) integer.

    Returns:
        (heads, query, key).
    """
    return F.embedding(index, table).permute(2, 0, 1).contiguous()


def token_table_rows(bucket_size: int) -> int:
    """Rows of a token table, the three CLS rows included."""
    return 2 * bucket_size + 2


def image_table_rows(width: int) -> int:
    """Rows of an image table for a grid of `width` x `width` patches, the three CLS rows included."""
    return (2 * width - 1) ** 2 + 3


def token_bucket_index(
    length: int, bucket_size: int, max_positions: int = 1024, device: torch.device | None = None
) -> Tensor:
    """Table rows for a sequence of tokens (or audio frames) behind a CLS vector.

    Distances up to `bucket_size // 2` have a row each, longer ones share rows on a logarithmic
    scale that ends at `max_positions - 1`; anything beyond shares the last row.

    Args:
        length: positions including CLS.
        bucket_size: 256 for text, 512 for audio.
        max_positions: where the scale ends; 1024 as published.
        device: of the result.

    Returns:
        int64 (length, length), rows of a table of `token_table_rows`.
    """
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    middle = bucket_size // 2
    # float32 on purpose: published bucket borders are those of single-precision logarithms.
    ratio = torch.log(distance.abs().clamp_min(1).float() / middle) / math.log((max_positions - 1) / middle)
    far = (torch.ceil(ratio * (middle - 1)).long() + middle).clamp_max(bucket_size - 1) * distance.sign()
    # shifted, so that the farthest backward distance is row 0
    index = torch.where(distance.abs() <= middle, distance, far) + bucket_size - 1
    return _with_cls_rows(index, first_row=2 * bucket_size - 1)


def image_bucket_index(width: int, device: torch.device | None = None) -> Tensor:
    """Table rows for `width` x `width` patches in row-major order behind a CLS vector.

    Args:
        width: patches per side.
        device: of the result.

    Returns:
        int64 (width**2 + 1, width**2 + 1), rows of a table of `image_table_rows`.
    """
    side = torch.arange(width, device=device)
    # row-major: the column runs fastest
    y, x = side.repeat_interleave(width), side.repeat(width)
    span = 2 * width - 1
    # offsets in both axes from -(width - 1), as one number
    rows = (y[:, None] - y[None, :] + width - 1) * span + (x[:, None] - x[None, :] + width - 1)
    return _with_cls_rows(F.pad(rows, (1, 0, 1, 0)), first_row=span * span)


def _with_cls_rows(index: Tensor, first_row: int) -> Tensor:
    """`index` (seq, seq), changed in place: first row, first column and corner are CLS's own rows."""
    # written in this order: the corner belongs to the last row alone
    index[0, :] = first_row
    index[:, 0] = first_row + 1
    index[0, 0] = first_row + 2
    return index


def resize_absolute(table: Tensor, width: int, num_special: int = 1, mode: str = "bicubic") -> Tensor:
    """Resize a grid of position vectors to `width` x `width`; the leading special rows stay.

    Args:
        table: (num_special + old * old, dim).
        width: of the new grid.
        num_special: leading rows that are no grid, 1 for CLS.
        mode: of the interpolation; none antialiases.

    Returns:
        (num_special + width * width, dim), computed in fp32; the same table for its own width.

    Raises:
        ValueError: where the rows form no square grid.
    """
    old = math.isqrt(len(table) - num_special)
    if old * old != len(table) - num_special:
        raise ValueError(
            f"expected {num_special} special rows and a square grid, got {len(table)} rows; pass the right num_special"
        )
    # its own grid: the table itself, not a copy
    if old == width:
        return table
    special, grid = table[:num_special], table[num_special:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    # without antialiasing, as every release does it
    grid = F.interpolate(grid, size=(width, width), mode=mode, align_corners=False)
    return torch.cat([special, grid.flatten(2).squeeze(0).T.to(table.dtype)])


def resize_relative(table: Tensor, old_width: int, new_width: int, num_special: int = 3) -> Tensor:
    """Resize a relative-position table to a larger image; the last special rows stay.

    Distances of the old table are stretched to a geometric sequence that reaches as far as the
    new grid, so that near offsets keep their spacing; a cubic spline per head is read at the new
    integer offsets.

    Args:
        table: ((2 * old_width - 1) ** 2 + num_special, heads).
        old_width, new_width: patches per side.
        num_special: last rows that are no offset, the three of CLS.

    Returns:
        ((2 * new_width - 1) ** 2 + num_special, heads).

    Raises:
        ValueError: on a table of another size or a smaller target.

    Source:
        BEiT's interpolation as ONE-PEACE uses it (4.2 of its released layout).
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
    # the last step of the sequence may fall short of the grid by the bisection's error: nothing is extrapolated
    at = np.clip(np.arange(-(target // 2), target // 2 + 1, dtype=np.float64), x[0], x[-1])
    weights = cubic_spline_weights(x, at)  # (target, source)
    grid = table[: source * source].double().reshape(source, source, -1).cpu().numpy()
    # the same spline along both axes: a tensor product
    grid = np.einsum("ap,pqh,bq->abh", weights, grid, weights, optimize=True)
    resized = torch.from_numpy(grid.reshape(target * target, -1)).to(table)
    return torch.cat([resized, table[source * source :]])


def geometric_offsets(source: int, target: int) -> np.ndarray:
    """Offsets -d_n .. 0 .. d_n with d_1 = 1 and steps growing by a ratio q.

    q is chosen so that d_n reaches `target // 2`.

    Args:
        source, target: side lengths (odd) of the old and the new table.

    Returns:
        float64 (source,).
    """
    # bisection between BEiT's bounds to BEiT's precision: published tables were made with exactly this ratio
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reach = (1.0 - ratio ** (source // 2)) / (1.0 - ratio)
        low, high = (low, ratio) if reach > target // 2 else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(source // 2, dtype=np.float64))
    return np.concatenate([-distances[::-1], [0.0], distances])


def cubic_spline_weights(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Matrix that reads the interpolating cubic spline through any values at `x` at the points `at`.

    Args:
        x: (n,) increasing, at least 4.
        at: (m,) within x's range.

    Returns:
        float64 (m, n): times values (n,) it gives the spline at `at`.

    Raises:
        ValueError: for fewer than 4 points.
    """
    if len(x) < 4:
        raise ValueError(f"expected at least 4 points for a cubic spline, got {len(x)}; use a larger table")
    # not-a-knot ends, as FITPACK's interpolating spline has them
    knots = np.concatenate([np.repeat(x[0], 4), x[2:-2], np.repeat(x[-1], 4)])
    return np.linalg.solve(_cubic_basis(knots, x).T, _cubic_basis(knots, at).T).T


def _cubic_basis(knots: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of all cubic B-splines at points, by the Cox-de Boor recursion.

    knots: (k,); at: (m,). Returns float64 (m, k - 4).
    """
    last = len(knots) - 5
    # the last point lies on the end knot: it belongs to the interval before it
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


def inverse_frequencies(head_dim: int, theta: float | Tensor, device: torch.device | None = None) -> Tensor:
    """Frequencies of rotary positions: theta^(-2j / head_dim) for j < head_dim / 2, in fp32.

    Args:
        head_dim: even.
        theta: a number, or (batch, 1) for one base per sample.
        device: of the result.

    Returns:
        (head_dim / 2,), or (batch, head_dim / 2).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=device) / head_dim
    return 1.0 / (theta**exponents)


def rotary_tables(
    position_ids: Tensor, inv_freq: Tensor, dtype: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos and sin of rotary positions.

    Args:
        position_ids: (batch, seq).
        inv_freq: (head_dim / 2,), or (batch, head_dim / 2) for one base per sample.
        dtype: of the result.
        scale: factor of both tables (YaRN).

    Returns:
        Both (batch, 1, seq, head_dim), halves alike.
    """
    # fp32 whatever the model's type: at position 4096 bf16 would round angles by whole turns
    angles = position_ids[..., None].float() * inv_freq.unsqueeze(-2)
    # both halves turn by the same angles, see `rotate`
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    # cast last, so that only cos and sin themselves are rounded
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned by its positions.

    Args:
        x: (batch, heads, seq, head_dim).
        cos, sin: of `rotary_tables`.

    Returns:
        Like x.
    """
    # halves, not neighbours: Llama pairs channel j with channel j + head_dim / 2
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def ntk_alpha(lengths: Tensor, trained_length: int) -> Tensor:
    """Qwen's factor for sequences longer than in training.

        max(2^ceil(log2(length / trained) + 1) - 1, 1)

    Args:
        lengths: (batch,).
        trained_length: of the model's training.

    Returns:
        fp32 (batch,): 1 up to trained_length, 3 up to twice that, then 7, 15 ...
    """
    # double precision, as Python's math.log in Qwen's code: a rounded logarithm could jump an octave
    octaves = torch.ceil(torch.log2(lengths.double() / trained_length) + 1)
    return (2**octaves - 1).clamp_min(1).float()


def ntk_theta(theta: float, alpha: Tensor, head_dim: int) -> Tensor:
    """The rotary base stretched by alpha: theta * alpha^(d / (d - 2)).

    Args:
        theta: base of training.
        alpha: (batch,) of `ntk_alpha`.
        head_dim: d.

    Returns:
        (batch, 1), for `inverse_frequencies`.
    """
    return (theta * alpha ** (head_dim / (head_dim - 2)))[:, None]


def log_n_scale(position_ids: Tensor, trained_length: int) -> Tensor:
    """Factor of queries behind the trained length: log_trained(p + 1), else 1.

    Args:
        position_ids: (batch, seq), from 0.
        trained_length: base of the logarithm.

    Returns:
        fp32 (batch, 1, seq, 1).
    """
    # positions count from 0, lengths from 1: position p has read p + 1 tokens
    ratio = torch.log((position_ids + 1).double()) / torch.log(torch.tensor(float(trained_length), dtype=torch.double))
    return ratio.clamp_min(1.0).float()[:, None, :, None]


def sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    """Fixed positions on a line: [sin, cos] of m * 10000^(-j / (dim / 2)).

    In fp32 as released; NumPy's power differs in the last bit between processors, so tables are
    equal on one only.

    Args:
        dim: width, even.
        positions: any shape, flattened to (n,).

    Returns:
        float32 (n, dim).
    """
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float32) / (dim / 2.0))
    angles = np.einsum("m,d->md", positions.reshape(-1), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def stretched(count: int, span: int) -> np.ndarray:
    """Centres of `count` equal cells laid over the cells 0 .. span-1; the integers where both agree.

    Returns float32 (count,): positions of a new grid in the units of the old one.
    """
    if count == span:
        return np.arange(span, dtype=np.float32)
    return ((np.arange(count) + 0.5) * span / count - 0.5).astype(np.float32)


def sincos_2d(dim: int, grid: int, span: int | None = None, *, with_cls: bool = False) -> np.ndarray:
    """Fixed positions of a grid: column in the first half of the width, row in the second.

    Args:
        dim: width, a multiple of 4.
        grid: side of the grid.
        span: side of the grid of training that it is laid over; None: its own.
        with_cls: put a zero row in front.

    Returns:
        float32 (grid * grid [+ 1], dim), row-major.
    """
    line = stretched(grid, span or grid)
    columns, rows = np.meshgrid(line, line)  # row-major: the column runs fastest
    table = np.concatenate([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], axis=1)
    return np.concatenate([np.zeros((1, dim), np.float32), table]) if with_cls else table


@lru_cache(maxsize=8)
def position_tables(dim: int, sizes: tuple[int, int, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Query and key tables of mPLUG-Owl2's abstractor.

    Args:
        dim: width.
        sizes: (queries, query span, grid, grid span, with_cls).

    Returns:
        float32 (queries, dim) and (grid * grid [+ 1], dim); cached, not to be changed.
    """
    queries, query_span, grid, grid_span, with_cls = sizes
    first = sincos_1d(dim, stretched(queries, query_span))
    return first, sincos_2d(dim, grid, grid_span, with_cls=with_cls)
