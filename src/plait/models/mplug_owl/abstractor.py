"""The visual abstractor: learned queries read an image or a clip and become positions of the language model.

queries (+ temporal queries for clips) -> layers over (queries, features) -> projection(s) -> + end vector
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.models.mplug_owl.config import AbstractorConfig
from plait.nn.abstractor import AbstractorLayer
from plait.nn.attention import AttentionFunction


class Abstractor(nn.Module):
    """Features of an image or a clip to `num_queries + 1` vectors of the language model's width.

    dim: width of the vision tower; out_dim: of the language model; temporal: whether clips bring queries and a
    projection of their own, whose result is added to that of the others.
    """

    def __init__(self, dim: int, out_dim: int, sizes: AbstractorConfig, *, temporal: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.queries = nn.Parameter(torch.zeros(1, sizes.num_queries, dim))
        self.temporal_queries = nn.Parameter(torch.zeros(1, sizes.num_queries, dim)) if temporal else None
        self.layers = nn.ModuleList(
            AbstractorLayer(dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps, dropout=sizes.dropout)
            for _ in range(sizes.num_layers)
        )
        self.proj = nn.Linear(dim, out_dim)
        self.temporal_proj = nn.Linear(dim, out_dim) if temporal else None
        self.end = nn.Parameter(torch.zeros(1, 1, out_dim))

    def forward(
        self,
        features: Tensor,
        attend: AttentionFunction,
        feature_mask: Tensor | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Images (batch, positions, dim) or clips (batch, frames, positions, dim) -> (batch, num_queries + 1, out_dim).

        feature_mask: (batch, positions, or frames * positions) bool, True = read; hidden: a list to which the queries
        after every layer are appended.
        """
        is_clip = features.dim() == 4 and features.shape[1] > 1
        x = self.queries
        if is_clip and self.temporal_queries is not None:
            x = torch.cat([x, self.temporal_queries], dim=1)
        if features.dim() == 4:
            features = features.flatten(1, 2)
        x = x.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, features, attend, None, feature_mask)
            if hidden is not None:
                hidden.append(x)
        count = self.sizes.num_queries
        out = self.proj(x[:, :count])
        if x.shape[1] > count and self.temporal_proj is not None:
            out = out + self.temporal_proj(x[:, count:])
        return torch.cat([out, self.end.expand(len(out), -1, -1)], dim=1)
