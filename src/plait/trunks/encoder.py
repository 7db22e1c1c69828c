"""Bidirectional routed trunk: shared attention, feed-forward networks per way (ONE-PEACE, arXiv 2305.11172, 3.1).

x, route, biases -> [norm -> attention -> scale -> +, norm -> feed-forward of the way -> scale -> +] x layers -> norm
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plait.blocks.attention import AttentionFunction, SelfAttention
from plait.blocks.mlp import GeGLU
from plait.blocks.residual import LayerScale, drop_path, linear_drop_path_rates
from plait.routing import PerModality, Route, Ways


class RoutedEncoderLayer(nn.Module):
    """Pre-norm layer: shared norms and attention, one feed-forward network per way of `mlp_ways`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        mlp_ways: Ways,
        *,
        inner_norms: Sequence[bool] = (True, True),
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads, key_bias=False, inner_norm=inner_norms[0])
        self.attn_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = PerModality(lambda: GeGLU(dim, mlp_dim, inner_norm=inner_norms[1]), mlp_ways)
        self.mlp_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self, x: Tensor, route: Route, bias: Tensor | None, key_mask: Tensor | None, attend: AttentionFunction
    ) -> Tensor:
        """x: (batch, seq, dim) -> (batch, seq, dim)."""
        y = self.attn_scale(self.attn(self.attn_norm(x), bias, key_mask, attend))
        x = x + self.dropped(y)
        return x + self.dropped(self.mlp_scale(self.mlp(self.mlp_norm(x), route)))

    def dropped(self, x: Tensor) -> Tensor:
        """A branch of this layer as it joins the residual stream: rows left out at `drop_path_rate` in training."""
        return drop_path(x, self.drop_path_rate, self.training)


class RoutedEncoder(nn.Module):
    """A stack of routed layers and a final norm per way of `norm_ways` (none where that is empty).

    dim, num_heads, mlp_dim, num_layers: sizes; mlp_ways, norm_ways: partitions of the modalities;
    inner_norms: sub-LayerNorm in attention and in the feed-forward networks; layer_scale: initial LayerScale or None;
    drop_path_rate: rate of the last layer, rising linearly from 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        num_layers: int,
        *,
        mlp_ways: Ways,
        norm_ways: Ways,
        inner_norms: Sequence[bool] = (True, True),
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            RoutedEncoderLayer(
                dim, num_heads, mlp_dim, mlp_ways, inner_norms=inner_norms, layer_scale=layer_scale, drop_path_rate=rate
            )
            for rate in linear_drop_path_rates(drop_path_rate, num_layers)
        )
        self.norm = PerModality(lambda: nn.LayerNorm(dim), norm_ways) if norm_ways else None
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        route: Route,
        biases: Sequence[Tensor],
        key_mask: Tensor | None,
        attend: AttentionFunction,
        *,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """x: (batch, seq, dim) -> (batch, seq, dim).

        biases: none, one for all layers, or one per layer, each (batch or 1, heads, seq, seq);
        key_mask: (batch, seq) bool, True = attend; hidden: a list to append the output of every layer to.
        """
        if len(biases) not in (0, 1, len(self.layers)):
            raise ValueError(f"expected 0, 1 or {len(self.layers)} attention biases, got {len(biases)}")
        for i, layer in enumerate(self.layers):
            bias = biases[i % len(biases)] if biases else None
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, route, bias, key_mask, attend, use_reentrant=False)
            else:
                x = layer(x, route, bias, key_mask, attend)
            if hidden is not None:
                hidden.append(x)
        return x if self.norm is None else self.norm(x, route)
