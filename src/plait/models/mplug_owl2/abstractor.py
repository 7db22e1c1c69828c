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

from plait.models.mplug_owl2.config import AbstractorConfig
from plait.nn.abstractor import AbstractorLayer
from plait.nn.attention import AttentionFunction


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


class Abstractor(nn.Module):
    """Features of an image to `num_queries + 1` vectors of the language model's width.

    dim: width of the vision tower; out_dim: of the language model; with_cls: whether features start with a class
    position.
    """

    def __init__(self, dim: int, out_dim: int, sizes: AbstractorConfig, *, with_cls: bool) -> None:
        super().__init__()
        self.sizes, self.with_cls = sizes, with_cls
        self.queries = nn.Parameter(torch.randn(1, sizes.num_queries, dim))
        self.layers = nn.ModuleList(
            AbstractorLayer(dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps) for _ in range(sizes.num_layers)
        )
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
            x = layer(x, features, attend, tables)
            if hidden is not None:
                hidden.append(x)
        return torch.cat([self.proj(x), self.end.expand(len(x), -1, -1)], dim=1)
