"""Rotary positions (arXiv 2104.09864), the half-split layout of Llama, with Qwen's dynamic NTK base and log-n scale.

positions -> angles = position * inv_freq -> cos, sin -> x * cos + rotate_half(x) * sin
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float | Tensor, device: torch.device | None = None) -> Tensor:
    """theta^(-2j / head_dim) for j < head_dim / 2 in fp32; theta: a number, or (batch, 1) for one base per sample."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=device) / head_dim
    return 1.0 / (theta**exponents)


def rotary_tables(
    position_ids: Tensor, inv_freq: Tensor, dtype: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos and sin, both (batch, 1, seq, head_dim) in `dtype`.

    position_ids: (batch, seq); inv_freq: (head_dim / 2,) or (batch, head_dim / 2); scale: factor of both tables (YaRN).
    """
    angles = position_ids[..., None].float() * inv_freq.unsqueeze(-2)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (batch, heads, seq, head_dim) with the angles of `rotary_tables` -> like x."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def ntk_alpha(lengths: Tensor, trained_length: int) -> Tensor:
    """Qwen's factor for sequences longer than in training: max(2^ceil(log2(length / trained) + 1) - 1, 1).

    lengths: (batch,) -> (batch,) fp32: 1 up to trained_length, 3 up to twice that, then 7, 15 ...
    """
    octaves = torch.ceil(torch.log2(lengths.double() / trained_length) + 1)
    return (2**octaves - 1).clamp_min(1).float()


def ntk_theta(theta: float, alpha: Tensor, head_dim: int) -> Tensor:
    """The rotary base stretched by alpha: theta * alpha^(d / (d - 2)); alpha: (batch,) -> (batch, 1)."""
    return (theta * alpha ** (head_dim / (head_dim - 2)))[:, None]


def log_n_scale(position_ids: Tensor, trained_length: int) -> Tensor:
    """Factor of queries behind the trained length, log_trained(p + 1), else 1. (batch, seq) -> (batch, 1, seq, 1)."""
    ratio = torch.log((position_ids + 1).double()) / torch.log(torch.tensor(float(trained_length), dtype=torch.double))
    return ratio.clamp_min(1.0).float()[:, None, :, None]
