"""Boolean masks (True = attend) and the additive biases made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """lengths: (batch,) -> (batch, size) bool, True on the first `lengths` positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """mask: (batch, keys) bool -> (batch, 1, 1, keys): 0 where attended, the lowest finite number elsewhere."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return bias[:, None, None]


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Biases (batch or 1, heads, n_i, n_i) along the diagonal of one (batch or 1, heads, sum n, sum n), 0 across."""
    if len(blocks) == 1:
        return blocks[0]
    size = sum(block.shape[-1] for block in blocks)
    batch = max(block.shape[0] for block in blocks)
    out = blocks[0].new_zeros(batch, blocks[0].shape[1], size, size)
    start = 0
    for block in blocks:
        stop = start + block.shape[-1]
        out[:, :, start:stop, start:stop] = block
        start = stop
    return out
