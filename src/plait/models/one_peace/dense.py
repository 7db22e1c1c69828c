"""ONE-PEACE's vision branch for dense prediction: backbones of its detector and its segmenter, and what follows heads.

detection:    pixels -> stem + positions, no CLS -> layers (attention in windows, in some over all) -> map at 1/16
segmentation: pixels -> spatial prior (strides 4, 8, 16, 32) = c      pixels -> image adapter = x
              [x <- attends to c, a group of layers, c <- attends to x] x groups -> maps of c + maps of x -> norms
afterwards:   heads and what follows them are in `plait.nn.detection` and `regions`

Sources: ViTDet (arXiv 2203.16527), MViTv2 (arXiv 2112.01526), ViT-Adapter (arXiv 2205.08534), Mask2Former (arXiv
2112.01527); specification ONE-PEACE, 8.4 and 8.5.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.models.one_peace.config import AdapterSizes, OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.models.one_peace.vision import branch_rules
from plait.models.one_peace.weights import vision_key_map
from plait.nn.attention import attention_function
from plait.nn.encoder import RoutedEncoder, RoutedEncoderLayer
from plait.nn.layers import HierarchicalStem
from plait.nn.positions import gather_bias, image_bucket_index, image_table_rows, resize_absolute
from plait.routing import Route
from plait.weights.keymap import Drop, KeyMap, Rename, prefixed

CLS_ROWS = 3
"""Last rows of a relative table, for CLS as query, as key, and itself: the detector has no CLS and leaves them out."""
PRETRAIN_WIDTH = 16
"""Side of the grid that the shared relative table was trained for."""


class AxisPositions(nn.Module):
    """Vectors per vertical and horizontal distance, met by the unscaled query: (q . rel_h) + (q . rel_w).

    Zero when fresh, so that a detector begins with the pretrained bias alone.

    Args:
        width: side of the grid, in patches.
        head_dim: width of a head.

    Source: MViTv2 (arXiv 2112.01526), decomposed relative positions.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.zeros(2 * width - 1, head_dim))
        self.width = nn.Parameter(torch.zeros(2 * width - 1, head_dim))

    def forward(self, q: Tensor, width: int) -> Tensor:
        """Bias of every pair of patches, another one for every query.

        Args:
            q: (batch, heads, width * width, head_dim), not yet scaled.
            width: side of the grid, in patches.

        Returns:
            (batch, heads, width**2, width**2).
        """
        place = torch.arange(width, device=q.device)
        # Shifted by width - 1, since tables begin at the most negative distance.
        distance = place[:, None] - place[None, :] + width - 1  # (query, key)
        grid = q.unflatten(2, (width, width))
        rows = torch.einsum("bnyxc,ykc->bnyxk", grid, self.height[distance])
        columns = torch.einsum("bnyxc,xkc->bnyxk", grid, self.width[distance])
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


class DetectionBackbone(nn.Module):
    """Images of one size -> a map at stride 16.

    Args:
        config: sizes; `image_rel_bucket_size` is the side of images in patches (80 for 1280
            pixels).
        window: side of a window in patches, 16 as published.
        windowed: indices of the layers that attend inside windows; published are all but 3, 7, ...,
            39.
        axis_positions: whether layers have `AxisPositions`.
        table_width: side of the grid that the shared relative table was trained for.

    Example:
        >>> import torch
        >>> config = OnePeaceConfig.preset("nano", modalities=["image"])
        >>> DetectionBackbone(config, window=2, windowed=(0, 2))(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 128, 4, 4])

    Source: ViTDet (arXiv 2203.16527); specification ONE-PEACE, 8.4.
    """

    def __init__(
        self,
        config: OnePeaceConfig,
        *,
        window: int,
        windowed: Collection[int],
        axis_positions: bool = True,
        table_width: int = PRETRAIN_WIDTH,
    ) -> None:
        super().__init__()
        self.config, self.side, self.window = config, config.image_rel_bucket_size, window
        self.windowed, self.table_width = frozenset(windowed), table_width
        self.stem = HierarchicalStem(config.dim)
        self.position_embedding = nn.Parameter(torch.zeros(config.image_bucket_size**2 + 1, config.dim))
        self.bias_table = nn.Parameter(torch.zeros(image_table_rows(table_width), config.num_heads))
        self.trunk = RoutedEncoder(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            config.num_layers,
            mlp_ways={"image": ["image"]},
            # The branch ends without a norm: extraction throws the final one away (specification 3.4).
            norm_ways={},
            layer_scale=config.layer_scale,
            drop_path_rate=config.drop_path_rate,
        )
        head_dim = config.dim // config.num_heads
        sides = [window if i in self.windowed else self.side for i in range(config.num_layers)]
        self.axes = nn.ModuleList(AxisPositions(side, head_dim) for side in sides) if axis_positions else None

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Patches with their positions; CLS and its row of the table are left out.

        Args:
            pixel_values: (batch, 3, 16 * side, 16 * side).

        Returns:
            (batch, side, side, dim).

        Raises:
            ValueError: for images of another size.
        """
        grid = resize_absolute(self.position_embedding, self.side)[1:].unflatten(0, (self.side, self.side))
        x = self.stem(pixel_values)
        if x.shape[1:3] != grid.shape[:2]:
            side = 16 * self.side
            raise ValueError(f"expected pictures of {side} x {side} pixels, got {tuple(pixel_values.shape[-2:])}")
        return x + grid

    def bias(self, width: int) -> Tensor:
        """The shared table read for a grid of another width.

        Args:
            width: in patches; a table of another size is resized, plainly bicubic as in the
                detector.

        Returns:
            (heads, width**2, width**2).
        """
        old, new = 2 * self.table_width - 1, 2 * width - 1
        grid = self.bias_table[:-CLS_ROWS].T.unflatten(1, (old, old))[None]
        if new != old:
            # At run time and bicubic; the other tasks use a spline on a geometric sequence (specification 4.2, 8.4).
            grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False).to(grid)
        return gather_bias(grid[0].flatten(1).T, image_bucket_index(width, device=grid.device)[1:, 1:])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The map that a feature pyramid is built on.

        Args:
            pixel_values: (batch, 3, 16 * side, 16 * side).

        Returns:
            (batch, dim, side, side), at stride 16 and not normalised.

        Raises:
            ValueError: for images of another size.
        """
        x = self.embed(pixel_values)
        # Two widths at most, windows and the whole, so each bias is made once for all layers.
        biases = {width: self.bias(width) for width in {self.window, self.side}}
        # No transformers model set it here: the configuration may come without an implementation.
        attend = attention_function(self.config._attn_implementation or "sdpa")
        for i, layer in enumerate(self.trunk.layers):
            assert isinstance(layer, RoutedEncoderLayer)
            width = self.window if i in self.windowed else self.side
            axes = None if self.axes is None else self.axes[i]
            normed = layer.attn_norm(x)
            # Windows are padded with zeros behind the norm, as ViTDet does: their padding attends and is attended to.
            cells = cut_windows(normed, width) if i in self.windowed else normed
            inside, bias = cells.flatten(1, 2), biases[width][None]
            if axes is not None:  # decomposed positions meet the query before it is scaled
                q = layer.attn.q_proj(inside).unflatten(-1, (layer.attn.num_heads, -1)).transpose(1, 2)
                bias = bias + axes(q, width)
            y = layer.attn(inside, bias, None, attend).unflatten(1, cells.shape[1:3])
            if i in self.windowed:
                y = join_windows(y, width, x.shape[1:3])
            x = x + layer.dropped(layer.attn_scale(y))
            y = layer.mlp(layer.mlp_norm(x).flatten(1, 2), Route.only("image")).view_as(x)
            x = x + layer.dropped(layer.mlp_scale(y))
        return x.permute(0, 3, 1, 2)

    def key_map(self) -> KeyMap:
        """Rules between the official backbone (prefix `backbone.net.`) and this module.

        The stem is named here; layers are those of the extracted vision branch.
        """
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
    """A grid into square windows, with zeros beyond the right and the lower edge.

    Args:
        x: (batch, height, width, dim).
        window: side in patches.

    Returns:
        (batch * windows, window, window, dim), windows row by row.
    """
    down, right = (-x.shape[1]) % window, (-x.shape[2]) % window
    x = F.pad(x, (0, 0, 0, right, 0, down))
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(0, 2)


def join_windows(x: Tensor, window: int, size: tuple[int, ...]) -> Tensor:
    """The inverse of `cut_windows`; what lies beyond the edges is dropped.

    Args:
        x: (batch * windows, window, window, dim).
        window: side in patches.
        size: (height, width) before padding.

    Returns:
        (batch, height, width, dim), contiguous.
    """
    # Divided and rounded up.
    rows, columns = -(-size[0] // window), -(-size[1] // window)
    x = x.unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : size[0], : size[1]].contiguous()


EPS = 1e-6
"""Of the norms inside ViT-Adapter; the branch's own have 1e-5."""
Size = tuple[int, int]


def conv_norm(channels: int, out: int, stride: int) -> nn.Sequential:
    """3 x 3 convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


class SpatialPrior(nn.Module):
    """A small convolutional pyramid over the pixels, at strides 4, 8, 16 and 32.

    Args:
        dim: width of the maps.
        channels: of the stem; stages have two, four and four times as many.

    Source: ViT-Adapter (arXiv 2205.08534), section 3.2.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels, 4 * channels)
        stem = (conv_norm(3, channels, 2), conv_norm(channels, channels, 1), conv_norm(channels, channels, 1))
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList(conv_norm(a, b, 2) for a, b in pairwise(widths))
        self.projections = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps of one width at four strides.

        Args:
            pixel_values: (batch, 3, height, width).

        Returns:
            (batch, dim, ...) at strides 4, 8, 16, 32.
        """
        maps = [self.stem(pixel_values)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


def cell_centres(sizes: Sequence[Size], like: Tensor) -> Tensor:
    """Centres of the cells of grids, row by row, grid behind grid.

    Args:
        sizes: (height, width) of every grid.
        like: a tensor of the wanted type and device.

    Returns:
        (cells, 2) as (x, y) in [0, 1].
    """
    grids = []
    for height, width in sizes:
        y, x = (((torch.arange(n, device=like.device) + 0.5) / n).to(like) for n in (height, width))
        grids.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1))
    return torch.cat(grids)


class SamplingAttention(nn.Module):
    """Every query reads a few points of every level, where and how much it says itself.

    Args:
        dim: width of queries and features.
        num_levels: grids that are read.
        sizes: heads, points and width of the values.

    Source: Deformable DETR (arXiv 2010.04159), multi-scale deformable attention.
    """

    def __init__(self, dim: int, num_levels: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.heads, self.levels, self.points = sizes.num_heads, num_levels, sizes.num_points
        inner = int(dim * sizes.value_ratio)
        self.offsets = nn.Linear(dim, 2 * self.heads * num_levels * self.points)
        self.weights = nn.Linear(dim, self.heads * num_levels * self.points)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        # As its paper begins: every head looks in a direction of its own, its points one to n cells away, all alike.
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ways = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ways = (ways / ways.abs().amax(-1, keepdim=True))[:, None, None] * torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_(ways.expand(-1, num_levels, -1, -1).flatten())

    def forward(self, query: Tensor, centres: Tensor, features: Tensor, sizes: Sequence[Size]) -> Tensor:
        """What each query reads, weighted over levels and points and projected.

        Args:
            query: (batch, n, dim).
            centres: (n, 2) as (x, y) in [0, 1], where each query stands.
            features: (batch, cells, dim) of the levels, one behind the other.
            sizes: (height, width) of every level.

        Returns:
            (batch, n, dim).
        """
        shape = (self.heads, self.levels, self.points)
        scale = torch.tensor([[width, height] for height, width in sizes]).to(query)  # (levels, 2)
        # Offsets count cells of their level, so each axis is divided by the width or height of that level.
        places = centres[:, None, None, None] + self.offsets(query).unflatten(-1, (*shape, 2)) / scale[:, None]
        # One softmax over all levels and points of a head together.
        weights = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(dim=-1).unflatten(-1, shape[1:])
        values = self.v_proj(features).split([h * w for h, w in sizes], dim=1)
        total = torch.zeros((), device=query.device, dtype=query.dtype)
        for level, (size, value) in enumerate(zip(sizes, values, strict=True)):
            grid = value.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
            # grid_sample counts from -1 to 1; without aligned corners cell centres lie where
            # `cell_centres` puts them.
            where = (2 * places[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (batch * heads, n, points, 2)
            read = F.grid_sample(grid, where, mode="bilinear", padding_mode="zeros", align_corners=False)
            share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # (batch * heads, 1, n, points)
            total = total + (read * share).sum(dim=-1)
        joined = total.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2)  # (batch, n, inner)
        return self.out_proj(joined)


class PyramidMlp(nn.Module):
    """Feed-forward network with a depth-wise 3 x 3 convolution per level between its two layers.

    Args:
        dim: width of the features.
        inner: width between the layers.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.down = nn.Linear(inner, dim)

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Every cell sees its neighbours of the same level.

        Args:
            x: (batch, cells, dim) of the levels `sizes`, one behind the other.
            sizes: (height, width) of every level.

        Returns:
            (batch, cells, dim).
        """
        maps = self.up(x).transpose(1, 2).split([h * w for h, w in sizes], dim=-1)
        mixed = [self.depthwise(part.unflatten(-1, size)).flatten(2) for part, size in zip(maps, sizes, strict=True)]
        return self.down(F.gelu(torch.cat(mixed, dim=-1).transpose(1, 2)))


class Injector(nn.Module):
    """Patches read the pyramid: x + gamma * attention(norm(x), norm(c)).

    gamma is 0 at first, so that a fresh segmenter sees what the pretrained branch sees.

    Args:
        dim: width.
        sizes: of the sampling attention.
    """

    def __init__(self, dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.query_norm, self.feature_norm = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = SamplingAttention(dim, 3, sizes)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, patches: Size, c: Tensor, pyramid: Sequence[Size]) -> Tensor:
        """Patches with what they read.

        Args:
            x: (batch, patches, dim).
            patches: (height, width) of their grid.
            c: (batch, cells, dim) of the pyramid.
            pyramid: (height, width) of its three levels.

        Returns:
            (batch, patches, dim).
        """
        read = self.attn(self.query_norm(x), cell_centres([patches], x), self.feature_norm(c), pyramid)
        return x + self.gamma * read


class Extractor(nn.Module):
    """The pyramid reads the patches, then passes a convolutional network; both with a residual.

    Args:
        dim: width.
        sizes: of the sampling attention and the network.
    """

    def __init__(self, dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.query_norm, self.feature_norm = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = SamplingAttention(dim, 1, sizes)
        self.mlp_norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = PyramidMlp(dim, int(dim * sizes.mlp_ratio))

    def forward(self, x: Tensor, patches: Size, c: Tensor, pyramid: Sequence[Size]) -> Tensor:
        """The pyramid with what it read.

        Args:
            x: (batch, patches, dim).
            patches: (height, width) of their grid.
            c: (batch, cells, dim) of the pyramid.
            pyramid: (height, width) of its three levels.

        Returns:
            (batch, cells, dim).
        """
        c = c + self.attn(self.query_norm(c), cell_centres(pyramid, c), self.feature_norm(x), [patches])
        return c + self.mlp(self.mlp_norm(c), pyramid)


class SegmentationBackbone(nn.Module):
    """Images -> four maps (batch, dim, ...) at strides 4, 8, 16, 32.

    Args:
        config: the branch; `image_rel_bucket_size` is the side of images in patches, an even
            number.
        sizes: of what ViT-Adapter adds; its four groups cover the layers.

    Example:
        >>> import torch
        >>> config = OnePeaceConfig.preset("nano", modalities=["image"], norm_ways={}, use_projections=False)
        >>> sizes = AdapterSizes(num_heads=4, groups=((0, 0), (1, 1), (2, 2), (3, 3)))
        >>> [len(x[0, 0]) for x in SegmentationBackbone(config, sizes)(torch.rand(1, 3, 64, 64))]
        [16, 8, 4, 2]

    Source: ViT-Adapter (arXiv 2205.08534); specification ONE-PEACE, 8.5.
    """

    def __init__(self, config: OnePeaceConfig, sizes: AdapterSizes) -> None:
        super().__init__()
        dim, groups = config.dim, len(sizes.groups)
        self.groups = [tuple(group) for group in sizes.groups]
        self.side = config.image_rel_bucket_size
        self.vision = OnePeaceModel(config)
        self.prior = SpatialPrior(dim, sizes.stem_channels)
        self.level_embedding = nn.Parameter(torch.zeros(3, dim))
        self.injectors = nn.ModuleList(Injector(dim, sizes) for _ in range(groups))
        self.extractors = nn.ModuleList(Extractor(dim, sizes) for _ in range(groups))
        # Two more behind the last group, as published.
        self.last_extractors = nn.ModuleList(Extractor(dim, sizes) for _ in range(2))
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(4))

    @property
    def pyramid(self) -> list[Size]:
        """(height, width) of the levels that the exchanges see, at strides 8, 16, 32.

        The map at stride 4 joins them behind the last exchange only.
        """
        return [(side, side) for side in (2 * self.side, self.side, self.side // 2)]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """The four maps that a mask transformer reads.

        Args:
            pixel_values: (batch, 3, 16 * side, 16 * side).

        Returns:
            (batch, dim, ...) at strides 4, 8, 16, 32, behind a batch norm each.

        Raises:
            ValueError: for images of another size.
        """
        adapted = self.vision.adapters["image"](pixel_values)
        first, *levels = self.prior(pixel_values)
        tokens = [x.flatten(2).transpose(1, 2) + y for x, y in zip(levels, self.level_embedding, strict=True)]
        c, patches, pyramid = torch.cat(tokens, dim=1), (self.side, self.side), self.pyramid
        cls, x = adapted.x.split([1, adapted.x.shape[1] - 1], dim=1)
        passed, attend = [], attention_function(self.vision.config._attn_implementation)
        for group, inject, extract in zip(self.groups, self.injectors, self.extractors, strict=True):
            x = inject(x, patches, c, pyramid)
            # CLS passes the layers, whose biases count on it, and takes no part in the exchanges.
            joined = torch.cat([cls, x], dim=1)
            for i in range(group[0], group[1] + 1):
                # One table for all layers, or one for each.
                bias = adapted.biases[i % len(adapted.biases)]
                joined = self.vision.trunk.layers[i](joined, Route.only("image"), bias, None, attend)
            cls, x = joined.split([1, x.shape[1]], dim=1)
            c = extract(x, patches, c, pyramid)
            passed.append(x.transpose(1, 2).unflatten(-1, patches))
        for extract in self.last_extractors:
            c = extract(x, patches, c, pyramid)
        sizes = [h * w for h, w in pyramid]
        maps = [part.transpose(1, 2).unflatten(-1, s) for part, s in zip(c.split(sizes, dim=1), pyramid, strict=True)]
        maps = [self.up(maps[0]) + first, *maps]
        out = []
        for norm, y, x in zip(self.norms, maps, passed, strict=True):
            # Map i of the pyramid meets what group i made of the patches, brought to its stride.
            if x.shape != y.shape:
                scale = y.shape[-2] / x.shape[-2]
                x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            out.append(norm(y + x))
        return out

    def key_map(self) -> KeyMap:
        """Rules between the official backbone (prefix `backbone.`) and this module.

        Names inside sequences count convolution, norm and ReLU apart, hence the steps of three.
        """
        norm = "{p:weight|bias|running_mean|running_var|num_batches_tracked}"
        linear = "{p:weight|bias}"
        own = [
            Rename("encoder.layers.{i}.rel_pos_table.weight", "vision.adapters.image.bias.tables.{i}"),
            Rename("level_embed", "level_embedding"),
            Rename(f"up.{linear}", "up.{p}"),
        ]
        for i in range(4):
            own += [
                Rename(f"norm{i + 1}.{norm}", f"norms.{i}.{{p}}"),
                Rename(f"spm.fc{i + 1}.{linear}", f"prior.projections.{i}.{{p}}"),
            ]
        for i in range(3):
            own += [
                Rename(f"spm.stem.{3 * i}.weight", f"prior.stem.{i}.0.weight"),
                Rename(f"spm.stem.{3 * i + 1}.{norm}", f"prior.stem.{i}.1.{{p}}"),
                Rename(f"spm.conv{i + 2}.0.weight", f"prior.stages.{i}.0.weight"),
                Rename(f"spm.conv{i + 2}.1.{norm}", f"prior.stages.{i}.1.{{p}}"),
            ]
        last = f"interactions.{len(self.groups) - 1}.extra_extractors.{{j}}."
        own += _exchange("interactions.{i}.injector.", "injectors.{i}.")
        own += _exchange("interactions.{i}.extractor.", "extractors.{i}.")
        own += _exchange(last, "last_extractors.{j}.")
        # Published segmentation files repeat the index buffer in every layer.
        buffers = Drop("encoder.layers.{i}.rp_bucket", "an index buffer that the configuration determines")
        return KeyMap([*prefixed([*own, buffers], official="backbone."), *branch_rules("backbone.")])


def _exchange(source: str, target: str) -> list[Rename]:
    """Rules of an injector or extractor: names of the prefix `source` to those of `target`."""
    names = {
        "query_norm": "query_norm", "feat_norm": "feature_norm", "attn.sampling_offsets": "attn.offsets",
        "attn.attention_weights": "attn.weights", "attn.value_proj": "attn.v_proj", "attn.output_proj": "attn.out_proj",
        "ffn_norm": "mlp_norm", "ffn.fc1": "mlp.up", "ffn.dwconv.dwconv": "mlp.depthwise", "ffn.fc2": "mlp.down",
    }  # fmt: skip
    rules = [Rename(f"{source}{old}.{{p:weight|bias}}", f"{target}{new}.{{p}}") for old, new in names.items()]
    return [*rules, Rename(f"{source}gamma", f"{target}gamma")]
