"""Bucket indices of learned relative-position biases: positions -> row of a bias table -> (heads, query, key).

Both sequences start with a CLS vector. It has no position, so the last three rows of a table belong to it:
CLS as query, CLS as key, CLS to itself (ONE-PEACE, sections 2.1 and 2.2 of its released layout).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """Attention bias of every head.

    table: (rows, heads); index: (query, key) integer. Returns (heads, query, key).
    """
    return torch.nn.functional.embedding(index, table).permute(2, 0, 1).contiguous()


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

    Distances up to `bucket_size // 2` have a row each, longer ones share rows on a logarithmic scale that ends at
    `max_positions - 1`; anything beyond shares the last row.

    length: positions including CLS. Returns int64 (length, length).
    """
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    middle = bucket_size // 2
    # float32 on purpose: published bucket borders are those of single-precision logarithms.
    ratio = torch.log(distance.abs().clamp_min(1).float() / middle) / math.log((max_positions - 1) / middle)
    far = (torch.ceil(ratio * (middle - 1)).long() + middle).clamp_max(bucket_size - 1) * distance.sign()
    index = torch.where(distance.abs() <= middle, distance, far) + bucket_size - 1
    return _with_cls_rows(index, first_row=2 * bucket_size - 1)


def image_bucket_index(width: int, device: torch.device | None = None) -> Tensor:
    """Table rows for `width` x `width` patches in row-major order behind a CLS vector.

    Returns int64 (width**2 + 1, width**2 + 1).
    """
    side = torch.arange(width, device=device)
    y, x = side.repeat_interleave(width), side.repeat(width)
    span = 2 * width - 1
    rows = (y[:, None] - y[None, :] + width - 1) * span + (x[:, None] - x[None, :] + width - 1)
    return _with_cls_rows(torch.nn.functional.pad(rows, (1, 0, 1, 0)), first_row=span * span)


def _with_cls_rows(index: Tensor, first_row: int) -> Tensor:
    index[0, :] = first_row
    index[:, 0] = first_row + 1
    index[0, 0] = first_row + 2
    return index
