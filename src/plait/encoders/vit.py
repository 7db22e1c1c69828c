"""Layers of the CLIP-like vision towers of mPLUG-Owl and mPLUG-Owl2.

x -> norm -> attention with one fused projection -> + -> norm -> fc1, activation, fc2 -> +
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from plait.blocks.attention import AttentionFunction
from plait.encoders.temporal import quick_gelu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class FusedAttention(nn.Module):
    """Self-attention whose fused projection holds q, k, v of a head side by side: rows are (heads, 3, head_dim)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: AttentionFunction) -> Tensor:
        """x: (batch, positions, dim) -> the same."""
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.out_proj(attend(q, k, v, None, None).transpose(1, 2).flatten(2))


class VisionLayer(nn.Module):
    """Pre-norm transformer layer. activation: a name of `ACTIVATIONS`, ValueError for any other."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, eps: float, activation: str = "quick_gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected activation among {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.attn_norm = nn.LayerNorm(dim, eps)
        self.attn = FusedAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, attend: AttentionFunction) -> Tensor:
        """x: (batch, positions, dim) -> the same."""
        x = x + self.attn(self.attn_norm(x), attend)
        return x + self.fc2(self.activation(self.fc1(self.mlp_norm(x))))
