"""The vision tower: patches -> positions -> norm -> pre-norm layers (CLIP ViT-L/14 in Owl2, a ViT-bigG in Owl2.1).

pixel_values -> patches -> (+ class position) + position table -> norm -> layers -> (final norm) -> all positions
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from plait.models.mplug_owl2.config import VisionConfig
from plait.nn.attention import AttentionFunction
from plait.nn.vit import VisionLayer

TABLE_WIDTH = 16
"""Side of the position table of towers without class position, whatever their image size."""


class VisionTower(nn.Module):
    """Images to features of every position, the class position first where there is one.

    official: cut the position table for smaller images, which the released tower does without a word.
    """

    def __init__(self, sizes: VisionConfig, *, official: bool = False) -> None:
        super().__init__()
        self.sizes, self.official = sizes, official
        rows = sizes.grid**2 + 1 if sizes.use_cls_token else TABLE_WIDTH**2
        self.patch_embedding = nn.Conv2d(3, sizes.dim, sizes.patch_size, stride=sizes.patch_size, bias=False)
        if sizes.use_cls_token:
            self.cls_embedding = nn.Parameter(torch.randn(1, 1, sizes.dim))
        shape = (1, rows, sizes.dim) if sizes.use_cls_token else (rows, sizes.dim)  # as in the files
        self.position_embedding = nn.Parameter(torch.randn(shape))
        self.pre_norm = nn.LayerNorm(sizes.dim, sizes.eps)
        self.layers = nn.ModuleList(
            VisionLayer(sizes.dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps, activation=sizes.activation)
            for _ in range(sizes.num_layers)
        )
        self.post_norm = nn.LayerNorm(sizes.dim, sizes.eps) if sizes.use_post_norm else None
        self.gradient_checkpointing = False

    def embed(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (images, 3, height, width) -> (images, positions, dim), positions added and normalised.

        Raises ValueError where the image does not fit the position table (towers with a class position).
        """
        x = self.patch_embedding(pixel_values)
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        if self.sizes.use_cls_token:
            side, rows = self.sizes.image_size, self.position_embedding.shape[1]
            fits = tuple(grid) == (self.sizes.grid,) * 2 or (self.official and grid.numel() < rows)
            if not fits:
                raise ValueError(
                    f"expected images of {side} x {side} pixels, got {tuple(pixel_values.shape[-2:])}; "
                    "resize them, or the checkpoint with plait.models.mplug_owl2.resize"
                )
            x = torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], dim=1)
        return self.pre_norm(x + self.positions(grid))

    def positions(self, grid: tuple[int, int] | torch.Size) -> Tensor:
        """The table for a grid of patches, (..., positions, dim): bicubic from 16 x 16 without class position."""
        table = self.position_embedding
        if self.sizes.use_cls_token and self.official:
            return table[:, : grid[0] * grid[1] + 1]
        if self.sizes.use_cls_token or tuple(grid) == (TABLE_WIDTH, TABLE_WIDTH):
            return table
        square = table.float().reshape(1, TABLE_WIDTH, TABLE_WIDTH, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=tuple(grid), mode="bicubic", align_corners=False)
        return square.flatten(2)[0].T.to(table.dtype)

    def forward(self, pixel_values: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None) -> Tensor:
        """pixel_values: (images, 3, height, width) -> (images, positions, dim).

        hidden: a list to which the states before every layer and after the last are appended.
        """
        x = self.embed(pixel_values)
        for layer in self.layers:
            if hidden is not None:
                hidden.append(x)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, attend, use_reentrant=False)
            else:
                x = layer(x, attend)
        if hidden is not None:
            hidden.append(x)
        return x if self.post_norm is None else self.post_norm(x)
