"""ViT-Adapter around ONE-PEACE's vision branch: four maps for segmentation (specification 8.5; arXiv 2205.08534).

pixels -> spatial prior (strides 4, 8, 16, 32) = c        pixels -> image adapter = x
[x <- attends to c, a group of layers, c <- attends to x] x groups -> maps of c + maps of x -> batch norms
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.models.one_peace.vision import branch_rules
from plait.nn.attention import attention_function
from plait.routing import Route
from plait.weights.keymap import KeyMap, Rename, prefixed

EPS = 1e-6
Size = tuple[int, int]


@dataclass(frozen=True)
class AdapterSizes:
    """stem_channels: of the spatial prior; num_points, num_heads, value_ratio: of the sampling attention;
    mlp_ratio: width of the convolutional network; groups: first and last layer between two exchanges."""

    stem_channels: int = 64
    num_points: int = 4
    num_heads: int = 24
    value_ratio: float = 0.5
    mlp_ratio: float = 0.25
    groups: Sequence[Sequence[int]] = ((0, 9), (10, 19), (20, 29), (30, 39))


def conv_norm(channels: int, out: int, stride: int) -> nn.Sequential:
    """3 x 3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


class SpatialPrior(nn.Module):
    """A small convolutional pyramid."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels, 4 * channels)
        stem = (conv_norm(3, channels, 2), conv_norm(channels, channels, 1), conv_norm(channels, channels, 1))
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList(conv_norm(a, b, 2) for a, b in pairwise(widths))
        self.projections = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values: (batch, 3, height, width) -> maps (batch, dim, ...) at strides 4, 8, 16, 32."""
        maps = [self.stem(pixel_values)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [project(x) for project, x in zip(self.projections, maps, strict=True)]


def cell_centres(sizes: Sequence[Size], like: Tensor) -> Tensor:
    """Centres (x, y) in [0, 1] of the cells of grids, row by row: (cells, 2)."""
    grids = []
    for height, width in sizes:
        y, x = (((torch.arange(n, device=like.device) + 0.5) / n).to(like) for n in (height, width))
        grids.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1))
    return torch.cat(grids)


class SamplingAttention(nn.Module):
    """Every query reads a few points of every level, where and how much it says itself (arXiv 2010.04159)."""

    def __init__(self, dim: int, num_levels: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.heads, self.levels, self.points = sizes.num_heads, num_levels, sizes.num_points
        inner = int(dim * sizes.value_ratio)
        self.offsets = nn.Linear(dim, 2 * self.heads * num_levels * self.points)
        self.weights = nn.Linear(dim, self.heads * num_levels * self.points)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, query: Tensor, centres: Tensor, features: Tensor, sizes: Sequence[Size]) -> Tensor:
        """query: (batch, n, dim); centres: (n, 2); features: (batch, cells, dim) of levels `sizes` -> like query."""
        shape = (self.heads, self.levels, self.points)
        scale = torch.tensor([[width, height] for height, width in sizes]).to(query)  # (levels, 2)
        places = centres[:, None, None, None] + self.offsets(query).unflatten(-1, (*shape, 2)) / scale[:, None]
        weights = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(dim=-1).unflatten(-1, shape[1:])
        values = self.v_proj(features).split([h * w for h, w in sizes], dim=1)
        total = torch.zeros((), device=query.device, dtype=query.dtype)
        for level, (size, value) in enumerate(zip(sizes, values, strict=True)):
            grid = value.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
            where = (2 * places[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (batch * heads, n, points, 2)
            read = F.grid_sample(grid, where, mode="bilinear", padding_mode="zeros", align_corners=False)
            share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # (batch * heads, 1, n, points)
            total = total + (read * share).sum(dim=-1)
        joined = total.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2)  # (batch, n, inner)
        return self.out_proj(joined)


class PyramidMlp(nn.Module):
    """Feed-forward network with a depth-wise 3 x 3 convolution per level between its two layers."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.down = nn.Linear(inner, dim)

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """x: (batch, cells, dim) of the levels `sizes` -> like x."""
        maps = self.up(x).transpose(1, 2).split([h * w for h, w in sizes], dim=-1)
        mixed = [self.depthwise(part.unflatten(-1, size)).flatten(2) for part, size in zip(maps, sizes, strict=True)]
        return self.down(F.gelu(torch.cat(mixed, dim=-1).transpose(1, 2)))


class Injector(nn.Module):
    """Patches read the pyramid; 0 at first."""

    def __init__(self, dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.query_norm, self.feature_norm = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = SamplingAttention(dim, 3, sizes)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, patches: Size, c: Tensor, pyramid: Sequence[Size]) -> Tensor:
        """x: (batch, patches, dim); c: (batch, cells, dim) -> like x."""
        read = self.attn(self.query_norm(x), cell_centres([patches], x), self.feature_norm(c), pyramid)
        return x + self.gamma * read


class Extractor(nn.Module):
    """The pyramid reads the patches."""

    def __init__(self, dim: int, sizes: AdapterSizes) -> None:
        super().__init__()
        self.query_norm, self.feature_norm = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = SamplingAttention(dim, 1, sizes)
        self.mlp_norm = nn.LayerNorm(dim, eps=EPS)
        self.mlp = PyramidMlp(dim, int(dim * sizes.mlp_ratio))

    def forward(self, x: Tensor, patches: Size, c: Tensor, pyramid: Sequence[Size]) -> Tensor:
        """x: (batch, patches, dim); c: (batch, cells, dim) -> like c."""
        c = c + self.attn(self.query_norm(c), cell_centres(pyramid, c), self.feature_norm(x), [patches])
        return c + self.mlp(self.mlp_norm(c), pyramid)


class SegmentationBackbone(nn.Module):
    """Pictures -> four maps (batch, dim, ...) at strides 4, 8, 16, 32.

    config: the branch, `image_rel_bucket_size` the picture's side in patches (even); sizes: of the adapter.
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
        self.last_extractors = nn.ModuleList(Extractor(dim, sizes) for _ in range(2))
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(4))

    @property
    def pyramid(self) -> list[Size]:
        """Sizes of the levels that the exchanges see, at strides 8, 16, 32."""
        return [(side, side) for side in (2 * self.side, self.side, self.side // 2)]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """pixel_values: (batch, 3, 16 * side, 16 * side) -> maps at strides 4, 8, 16, 32."""
        adapted = self.vision.adapters["image"](pixel_values)
        first, *levels = self.prior(pixel_values)
        tokens = [x.flatten(2).transpose(1, 2) + y for x, y in zip(levels, self.level_embedding, strict=True)]
        c, patches, pyramid = torch.cat(tokens, dim=1), (self.side, self.side), self.pyramid
        cls, x = adapted.x.split([1, adapted.x.shape[1] - 1], dim=1)
        passed = []
        for group, inject, extract in zip(self.groups, self.injectors, self.extractors, strict=True):
            x = inject(x, patches, c, pyramid)
            cls, x = self._layers(group, torch.cat([cls, x], dim=1), adapted.biases).split([1, x.shape[1]], dim=1)
            c = extract(x, patches, c, pyramid)
            passed.append(x.transpose(1, 2).unflatten(-1, patches))
        for extract in self.last_extractors:
            c = extract(x, patches, c, pyramid)
        sizes = [h * w for h, w in pyramid]
        maps = [part.transpose(1, 2).unflatten(-1, s) for part, s in zip(c.split(sizes, dim=1), pyramid, strict=True)]
        maps = [self.up(maps[0]) + first, *maps]
        seen = [x if x.shape == y.shape else _resized(x, y.shape[-2:]) for x, y in zip(passed, maps, strict=True)]
        return [norm(x + y) for norm, x, y in zip(self.norms, maps, seen, strict=True)]

    def _layers(self, group: tuple[int, ...], x: Tensor, biases: Sequence[Tensor]) -> Tensor:
        attend, route = attention_function(self.vision.config._attn_implementation), Route.only("image")
        for i in range(group[0], group[1] + 1):
            x = self.vision.trunk.layers[i](x, route, biases[i % len(biases)], None, attend)
        return x

    def key_map(self) -> KeyMap:
        """Official backbone (prefix `backbone.`) <-> this module."""
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
        return KeyMap([*prefixed(own, official="backbone."), *branch_rules("backbone.")])


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, scale_factor=size[0] / x.shape[-2], mode="bilinear", align_corners=False)


def _exchange(source: str, target: str) -> list[Rename]:
    names = {
        "query_norm": "query_norm", "feat_norm": "feature_norm", "attn.sampling_offsets": "attn.offsets",
        "attn.attention_weights": "attn.weights", "attn.value_proj": "attn.v_proj", "attn.output_proj": "attn.out_proj",
        "ffn_norm": "mlp_norm", "ffn.fc1": "mlp.up", "ffn.dwconv.dwconv": "mlp.depthwise", "ffn.fc2": "mlp.down",
    }  # fmt: skip
    rules = [Rename(f"{source}{old}.{{p:weight|bias}}", f"{target}{new}.{{p}}") for old, new in names.items()]
    return [*rules, Rename(f"{source}gamma", f"{target}gamma")]
