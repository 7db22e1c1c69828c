"""ONE-PEACE's vision branch for dense prediction in windows: the backbone of its detector (specification 8.4).

pixels -> stem + positions, no CLS -> layers (attention in windows, in some over the whole picture) -> map at stride 16

Attention scores carry the shared relative table, resized to the grid, and decomposed positions per axis (ViTDet,
arXiv 2203.16527; MViTv2, arXiv 2112.01526).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.weights import vision_key_map
from plait.nn.attention import SelfAttention, attention_function
from plait.nn.encoder import RoutedEncoder, RoutedEncoderLayer
from plait.nn.layers import HierarchicalStem
from plait.nn.positions import gather_bias, image_bucket_index, image_table_rows, resize_absolute
from plait.routing import Route
from plait.weights.keymap import Drop, KeyMap, Rename, prefixed

CLS_ROWS = 3
PRETRAIN_WIDTH = 16


class AxisPositions(nn.Module):
    """Vectors per vertical and horizontal distance, met by the unscaled query: (q . rel_h) + (q . rel_w)."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.zeros(2 * width - 1, head_dim))
        self.width = nn.Parameter(torch.zeros(2 * width - 1, head_dim))

    def forward(self, q: Tensor, width: int) -> Tensor:
        """q: (batch, heads, width * width, head_dim) -> bias (batch, heads, width**2, width**2)."""
        place = torch.arange(width, device=q.device)
        distance = place[:, None] - place[None, :] + width - 1  # (query, key)
        grid = q.unflatten(2, (width, width))
        rows = torch.einsum("bnyxc,ykc->bnyxk", grid, self.height[distance])
        columns = torch.einsum("bnyxc,xkc->bnyxk", grid, self.width[distance])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class DetectionBackbone(nn.Module):
    """Pictures of one size -> a map at stride 16.

    config: sizes; `image_rel_bucket_size` is the picture's side in patches; window: side of a window in patches;
    windowed: indices of the layers that attend inside windows; axis_positions: whether layers have `AxisPositions`.
    """

    def __init__(
        self, config: OnePeaceConfig, *, window: int, windowed: Collection[int], axis_positions: bool = True
    ) -> None:
        super().__init__()
        self.config, self.side, self.window = config, config.image_rel_bucket_size, window
        self.windowed = frozenset(windowed)
        self.stem = HierarchicalStem(config.dim)
        self.position_embedding = nn.Parameter(torch.zeros(config.image_bucket_size**2 + 1, config.dim))
        self.bias_table = nn.Parameter(torch.zeros(image_table_rows(PRETRAIN_WIDTH), config.num_heads))
        self.trunk = RoutedEncoder(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            config.num_layers,
            mlp_ways={"image": ["image"]},
            norm_ways={},
            layer_scale=config.layer_scale,
            drop_path_rate=config.drop_path_rate,
        )
        head_dim = config.dim // config.num_heads
        sides = [window if i in self.windowed else self.side for i in range(config.num_layers)]
        self.axes = nn.ModuleList(AxisPositions(side, head_dim) for side in sides) if axis_positions else None

    def embed(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (batch, 3, 16 * side, 16 * side) -> (batch, side, side, dim)."""
        grid = resize_absolute(self.position_embedding, self.side)[1:].unflatten(0, (self.side, self.side))
        x = self.stem(pixel_values)
        if x.shape[1:3] != grid.shape[:2]:
            side = 16 * self.side
            raise ValueError(f"expected pictures of {side} x {side} pixels, got {tuple(pixel_values.shape[-2:])}")
        return x + grid

    def bias(self, width: int) -> Tensor:
        """The shared table read for a grid of `width` x `width`: (heads, width**2, width**2)."""
        old, new = 2 * PRETRAIN_WIDTH - 1, 2 * width - 1
        grid = self.bias_table[:-CLS_ROWS].T.unflatten(1, (old, old))[None]
        if new != old:
            grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False).to(grid)
        return gather_bias(grid[0].flatten(1).T, image_bucket_index(width, device=grid.device)[1:, 1:])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (batch, 3, 16 * side, 16 * side) -> (batch, dim, side, side)."""
        x = self.embed(pixel_values)
        biases = {width: self.bias(width) for width in {self.window, self.side}}
        for i, layer in enumerate(self.trunk.layers):
            assert isinstance(layer, RoutedEncoderLayer)
            width = self.window if i in self.windowed else self.side
            axes = None if self.axes is None else self.axes[i]
            x = self._layer(x, layer, biases[width], axes, width if i in self.windowed else None)
        return x.permute(0, 3, 1, 2)

    def _layer(
        self, x: Tensor, layer: RoutedEncoderLayer, bias: Tensor, axes: nn.Module | None, window: int | None
    ) -> Tensor:
        normed = layer.attn_norm(x)
        cells = normed if window is None else cut_windows(normed, window)
        y = self._attend(cells.flatten(1, 2), layer.attn, bias, axes, cells.shape[1]).unflatten(1, cells.shape[1:3])
        y = y if window is None else join_windows(y, window, x.shape[1:3])
        x = x + layer.dropped(layer.attn_scale(y))
        y = layer.mlp(layer.mlp_norm(x).flatten(1, 2), Route.only("image")).view_as(x)
        return x + layer.dropped(layer.mlp_scale(y))

    def _attend(self, x: Tensor, attn: SelfAttention, bias: Tensor, axes: nn.Module | None, width: int) -> Tensor:
        full = bias[None]
        if axes is not None:
            q = attn.q_proj(x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            full = full + axes(q, width)
        return attn(x, full, None, attention_function(self.config._attn_implementation or "sdpa"))

    def key_map(self) -> KeyMap:
        """Official backbone (prefix `backbone.net.`) <-> this module."""
        layer, reason = "encoder.layers.{i}.self_attn.", "an index buffer that the configuration determines"
        branch = [rule for rule in vision_key_map().rules if rule.official[0].startswith("encoder.")]
        own = [
            Rename("image_adapter.pos_embed", "position_embedding"),
            Rename("image_adapter.rel_pos_table.weight", "bias_table"),
            *(
                Rename(f"image_adapter.embed_images.{source}.{{p:weight|bias}}", f"stem.{target}.{{p}}")
                for source, target in (
                    ("0", "conv1"),
                    ("1.layer_norm", "norm1"),
                    ("3", "conv2"),
                    ("4.layer_norm", "norm2"),
                    ("6", "conv3"),
                )
            ),
            Rename(f"{layer}rel_pos_h", "axes.{i}.height"),
            Rename(f"{layer}rel_pos_w", "axes.{i}.width"),
            Drop("image_adapter.rp_bucket", reason, restore=None),
            Drop("image_adapter.rp_bucket_window", reason, restore=None),
        ]
        return KeyMap(prefixed([*own, *branch], official="backbone.net."))


def cut_windows(x: Tensor, window: int) -> Tensor:
    """x: (batch, height, width, dim) -> (batch * windows, window, window, dim), zeros beyond the right and low edge."""
    down, right = (-x.shape[1]) % window, (-x.shape[2]) % window
    x = F.pad(x, (0, 0, 0, right, 0, down))
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(0, 2)


def join_windows(x: Tensor, window: int, size: tuple[int, ...]) -> Tensor:
    """The inverse of `cut_windows`; size: (height, width) before padding."""
    rows, columns = -(-size[0] // window), -(-size[1] // window)
    x = x.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : size[0], : size[1]].contiguous()
