"""The vision tower: a CLIP ViT whose layers, in the video variant, first exchange information between frames.

pixel_values -> patches, class position -> + positions -> norm -> [temporal -> attention -> MLP] x layers -> norm

Frames have no position of their own: only the temporal modules see their order (specification mPLUG-Owl, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plait.models.mplug_owl.config import VisionConfig
from plait.nn.attention import AttentionFunction
from plait.nn.positions import resize_absolute
from plait.nn.temporal import LocalTemporal
from plait.nn.vit import VisionLayer


class OwlVisionLayer(VisionLayer):
    """A pre-norm layer with, where `temporal`, a local temporal module before it."""

    def __init__(self, sizes: VisionConfig, *, temporal: bool) -> None:
        super().__init__(sizes.dim, sizes.num_heads, sizes.mlp_dim, eps=sizes.eps)
        self.temporal = LocalTemporal(sizes.dim) if temporal else None

    def forward(self, x: Tensor, attend: AttentionFunction, frames: int | None = None) -> Tensor:
        """x: (clips * frames, 1 + positions, dim) -> the same; frames: of a clip, None for images."""
        if frames is not None:
            x = self.add_temporal(x, frames)
        return super().forward(x, attend)

    def add_temporal(self, x: Tensor, frames: int) -> Tensor:
        """Add what neighbouring frames hold. The class position passes the module unchanged, so the sum doubles it."""
        assert self.temporal is not None
        patches = x[:, 1:].unflatten(0, (-1, frames))
        return torch.cat([2 * x[:, :1], (patches + self.temporal(patches)).flatten(0, 1)], dim=1)


class VisionTower(nn.Module):
    """Images or clips to features of every position, the class position first.

    temporal: whether it takes clips; official: cut the position table for smaller images instead of resizing it.
    """

    def __init__(self, sizes: VisionConfig, *, temporal: bool = False, official: bool = False) -> None:
        super().__init__()
        self.sizes, self.has_temporal, self.official = sizes, temporal, official
        self.patch_embedding = nn.Conv2d(3, sizes.dim, sizes.patch_size, stride=sizes.patch_size, bias=False)
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, sizes.dim))
        self.position_embedding = nn.Parameter(torch.zeros(1, sizes.grid**2 + 1, sizes.dim))
        self.pre_norm = nn.LayerNorm(sizes.dim, sizes.eps)
        self.layers = nn.ModuleList(OwlVisionLayer(sizes, temporal=temporal) for _ in range(sizes.num_layers))
        self.post_norm = nn.LayerNorm(sizes.dim, sizes.eps)
        self.gradient_checkpointing = False

    def embed(self, images: Tensor) -> Tensor:
        """images: (images, 3, height, width) -> (images, 1 + positions, dim), positions added and normalised.

        Raises ValueError for images that are not square or, where `official`, need more rows than the table has.
        """
        x = self.patch_embedding(images)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], dim=1)
        return self.pre_norm(x + self.positions(height, width))

    def positions(self, height: int, width: int) -> Tensor:
        """The table for a grid of patches, (1, 1 + height * width, dim)."""
        side, rows = self.sizes.image_size, height * width + 1
        if height == width == self.sizes.grid:
            return self.position_embedding
        if rows > self.position_embedding.shape[1] if self.official else height != width:
            raise ValueError(f"expected images of {side} x {side} pixels, got {height} x {width} patches; resize them")
        if self.official:
            return self.position_embedding[:, :rows]
        return resize_absolute(self.position_embedding[0], width)[None]

    def forward(self, pixel_values: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None) -> Tensor:
        """(images, 3, height, width) -> (images, positions, dim); clips (clips, 3, frames, height, width) -> (clips,
        frames, positions, dim).

        hidden: a list to which the states before every layer and after the last are appended, frames in one batch. A
        clip of one frame is an image. Raises ValueError for clips where the tower has no temporal modules.
        """
        frames = pixel_values.shape[2] if pixel_values.dim() == 5 else None
        if frames is not None and frames > 1 and not self.has_temporal:
            raise ValueError("expected images, got clips: this checkpoint reads a video as images, one per frame")
        x = self.embed(pixel_values if frames is None else pixel_values.transpose(1, 2).flatten(0, 1))
        through = frames if frames != 1 else None
        for layer in self.layers:
            if hidden is not None:
                hidden.append(x)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, attend, through, use_reentrant=False)
            else:
                x = layer(x, attend, through)
        if hidden is not None:
            hidden.append(x)
        x = self.post_norm(x)
        return x if frames is None else x.unflatten(0, (-1, frames))
