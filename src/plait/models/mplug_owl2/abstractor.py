"""The visual abstractor: learned queries read the patches of an image and become positions of the language model.

queries -> [norm -> attention over (queries, patches) -> + -> gated MLP -> +] x layers -> projection -> + end vector

Fixed sine and cosine tables give queries a one-dimensional and patches a two-dimensional position. They are computed,
never stored, and stretch to another grid or another number of queries so that a resized checkpoint stays close.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.blocks.attention import AttentionFunction
from plait.models.mplug_owl2.config import AbstractorConfig


def sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    """positions: (n,) -> (n, dim) float32: [sin, cos] of m * 10000^(-j / (dim / 2))."""
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float32) / (dim / 2.0))
    angles = np.einsum("m,d->md", positions.reshape(-1), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def stretched(count: int, span: int) -> np.ndarray:
    """Centres of `count` equal cells laid over the cells 0 .. span-1; the integers where both agree."""
    if count == span:
        return np.arange(span, dtype=np.float32)
    return ((np.arange(count) + 0.5) * span / count - 0.5).astype(np.float32)


def sincos_2d(dim: int, grid: int, span: int | None = None, *, with_cls: bool = False) -> np.ndarray:
    """(grid * grid [+ 1], dim): the column in the first half of the width, the row in the second; CLS is a zero row."""
    line = stretched(grid, span or grid)
    columns, rows = np.meshgrid(line, line)  # row-major: the column runs fastest
    table = np.concatenate([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], axis=1)
    return np.concatenate([np.zeros((1, dim), np.float32), table]) if with_cls else table


@lru_cache(maxsize=8)
def position_tables(dim: int, sizes: tuple[int, int, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Query and key tables; sizes: (queries, query span, grid, grid span, with_cls)."""
    queries, query_span, grid, grid_span, with_cls = sizes
    first = sincos_1d(dim, stretched(queries, query_span))
    return first, sincos_2d(dim, grid, grid_span, with_cls=with_cls)


class NormedSwiGLU(nn.Module):
    """w2(norm(silu(w1 x) * w3 x)), everything with biases."""

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
    """One reading of the patches. The residual is the normalised query: nothing skips a layer unnormalised."""

    def __init__(self, dim: int, sizes: AbstractorConfig) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.query_norm, self.key_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)  # eps 1e-5, as published
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = NormedSwiGLU(dim, sizes.mlp_dim, sizes.eps)

    def attend_to(
        self, q: Tensor, features: Tensor, tables: tuple[Tensor, Tensor], attend: AttentionFunction
    ) -> Tensor:
        """q: (images, queries, dim) normalised -> merged heads before the output projection, the same shape."""
        query_positions, key_positions = tables
        both = torch.cat([q, self.key_norm(features)], dim=1)
        heads = (
            self.q_proj(q + query_positions),
            self.k_proj(both + torch.cat([query_positions, key_positions])),
            self.v_proj(both),
        )
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in heads)
        return attend(q, k, v, None, None).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, features: Tensor, tables: tuple[Tensor, Tensor], attend: AttentionFunction) -> Tensor:
        """x: (images, queries, dim), features: (images, positions, dim) -> like x."""
        q = self.query_norm(x)
        x = q + self.out_proj(self.attend_to(q, features, tables, attend))
        return x + self.mlp(self.mlp_norm(x))


class Abstractor(nn.Module):
    """Features of an image to `num_queries + 1` vectors of the language model's width.

    dim: width of the vision tower; out_dim: of the language model; with_cls: whether features start with a class
    position.
    """

    def __init__(self, dim: int, out_dim: int, sizes: AbstractorConfig, *, with_cls: bool) -> None:
        super().__init__()
        self.sizes, self.with_cls = sizes, with_cls
        self.queries = nn.Parameter(torch.randn(1, sizes.num_queries, dim))
        self.layers = nn.ModuleList(AbstractorLayer(dim, sizes) for _ in range(sizes.num_layers))
        self.proj = nn.Linear(dim, out_dim)
        self.end = nn.Parameter(torch.randn(1, 1, out_dim))

    @torch.compiler.disable
    def tables(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Position tables for so many features. Raises ValueError where they form no square grid."""
        patches = num_positions - self.with_cls
        grid = round(patches**0.5)
        if grid * grid != patches:
            raise ValueError(f"expected features of a square grid of patches, got {patches}; pass square images")
        sizes = self.sizes
        span = sizes.query_span or sizes.num_queries
        made = position_tables(self.queries.shape[-1], (sizes.num_queries, span, grid, sizes.grid_size, self.with_cls))
        queries, keys = (torch.from_numpy(table).to(self.queries) for table in made)
        return queries, keys

    def forward(self, features: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None) -> Tensor:
        """features: (images, positions, dim) -> (images, num_queries + 1, out_dim).

        hidden: a list to which the queries after every layer are appended.
        """
        tables = self.tables(features.shape[1])
        x = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, features, tables, attend)
            if hidden is not None:
                hidden.append(x)
        return torch.cat([self.proj(x), self.end.expand(len(x), -1, -1)], dim=1)
