"""Feed-forward networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class GeGLU(nn.Module):
    """Gated feed-forward network with optional LayerNorm on the hidden units: down(norm(gelu(gate(x)) * up(x))).

    GEGLU (arXiv 2002.05202) with the exact GELU; `inner_norm` is the sub-LayerNorm of Magneto (arXiv 2210.06423).
    """

    def __init__(self, dim: int, mlp_dim: int, *, inner_norm: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.norm = nn.LayerNorm(mlp_dim, eps=eps) if inner_norm else None
        self.down_proj = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        hidden = F.gelu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(hidden if self.norm is None else self.norm(hidden))


class SwiGLU(nn.Module):
    """Gated feed-forward network of Llama: down(silu(gate(x)) * up(x)) (arXiv 2002.05202, without biases there)."""

    def __init__(self, dim: int, mlp_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=bias)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=bias)
        self.down_proj = nn.Linear(mlp_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
