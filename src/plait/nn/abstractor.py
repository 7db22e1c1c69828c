"""The layer of the visual abstractors of mPLUG-Owl and mPLUG-Owl2: queries read themselves and the patches.

queries -> norm -> attention over (queries, patches) -> + normalised queries -> norm -> gated MLP -> +
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.nn.attention import AttentionFunction


class NormedSwiGLU(nn.Module):
    """Gated feed-forward network with a norm inside: w2(norm(silu(w1 x) * w3 x)), all with biases.

    dim: width in and out; mlp_dim: inner width; eps: of the inner norm, 1e-6 in published files. The
    norm is in the code alone, no figure of the papers shows it (specification mPLUG-Owl2, 13).
    """

    def __init__(self, dim: int, mlp_dim: int, eps: float) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, mlp_dim)
        self.up_proj = nn.Linear(dim, mlp_dim)
        self.norm = nn.LayerNorm(mlp_dim, eps)
        self.down_proj = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> the same."""
        return self.down_proj(self.norm(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class AbstractorLayer(nn.Module):
    """One reading of the patches by the queries.

        q = norm(x);  kv = [q ; norm(features)]
        x = q + out(attention(q + Pq, kv + P, kv));  x = x + mlp(norm(x))

    The residual is the normalised query: nothing skips a layer unnormalised.

    Args:
        dim: width of queries and features, which must agree since they share norms.
        num_heads, mlp_dim: sizes.
        eps: of the norm inside the MLP; all others have torch's 1e-5, as published.
        dropout: of attention weights, in training; 0.1 in mPLUG-Owl.

    Source:
        Specifications mPLUG-Owl, 3, and mPLUG-Owl2, 4.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, eps: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        # eps 1e-5, as published
        self.query_norm, self.key_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = NormedSwiGLU(dim, mlp_dim, eps)

    def attend_to(
        self,
        q: Tensor,
        features: Tensor,
        attend: AttentionFunction,
        tables: tuple[Tensor, Tensor] | None = None,
        feature_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention of the queries to themselves and the features, before the output projection.

        Args:
            q: (images, queries, dim), normalised.
            features: (images, positions, dim), the same for every layer.
            attend: the attention function.
            tables: positions of queries (queries, dim) and of features (positions, dim), mPLUG-Owl2's.
            feature_mask: (images, positions) boolean, True = read.

        Returns:
            (images, queries, dim).
        """
        both = torch.cat([q, self.key_norm(features)], dim=1)
        # mPLUG-Owl has no positions at all here; mPLUG-Owl2 adds the same tables in every layer
        query, key = (q, both) if tables is None else (q + tables[0], both + torch.cat(tables))
        # positions go into queries and keys only, never into what is read
        heads = self.q_proj(query), self.k_proj(key), self.v_proj(both)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in heads)
        # queries stand in front and are always read
        mask = None if feature_mask is None else F.pad(feature_mask, (q.shape[2], 0), value=True)
        # of the functions that can be chosen only torch's own takes a dropout rate
        if self.training and self.dropout:
            keep = None if mask is None else mask[:, None, None]
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=self.dropout)
        else:
            x = attend(q, k, v, None, mask)
        return x.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        features: Tensor,
        attend: AttentionFunction,
        tables: tuple[Tensor, Tensor] | None = None,
        feature_mask: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: (images, queries, dim).
            features: (images, positions, dim).
            attend, tables, feature_mask: as in `attend_to`.

        Returns:
            Like x.
        """
        q = self.query_norm(x)
        # from q, not from x: the normalised query is the residual, as published
        x = q + self.out_proj(self.attend_to(q, features, attend, tables, feature_mask))
        return x + self.mlp(self.mlp_norm(x))
