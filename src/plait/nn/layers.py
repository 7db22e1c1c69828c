"""The small parts that blocks are built of: feed-forward networks, norms, what happens to a branch, patch stems.

x -> norm -> attention | GeGLU | SwiGLU -> LayerScale -> drop_path -> + x
pixels -> HierarchicalStem | LinearStem -> (batch, height / patch, width / patch, dim)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GeGLU(nn.Module):
    """Gated feed-forward network of ONE-PEACE: down(norm(gelu(gate(x)) * up(x))).

    Args:
        dim: width in and out.
        mlp_dim: inner width.
        inner_norm: LayerNorm on the hidden units (sub-LayerNorm, Magneto, arXiv 2210.06423).
        eps: of that norm.

    Source:
        GEGLU (arXiv 2002.05202) with the exact GELU.
    """

    def __init__(self, dim: int, mlp_dim: int, *, inner_norm: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=False)
        self.norm = nn.LayerNorm(mlp_dim, eps=eps) if inner_norm else None
        self.down_proj = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        hidden = F.gelu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(hidden if self.norm is None else self.norm(hidden))


class SwiGLU(nn.Module):
    """Gated feed-forward network of Llama: down(silu(gate(x)) * up(x)) (arXiv 2002.05202).

    dim: width in and out; mlp_dim: inner width; bias: of all three, none in Llama.
    """

    def __init__(self, dim: int, mlp_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, mlp_dim, bias=bias)
        self.up_proj = nn.Linear(dim, mlp_dim, bias=bias)
        self.down_proj = nn.Linear(mlp_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467): computed in fp32, cast back, then weighted.

    dim: width; eps: read it from the file, LLaMA-2 and Owl2's class default differ (1e-5, 1e-6).
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        wide = x.float()  # a sum of squares in bf16 loses the small ones
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        # cast before the weight, as Llama does: the order shows in bf16
        return self.weight * wide.to(x.dtype)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth per sample: rows of x are 0 at `rate`, else scaled up.

    Args:
        x: (batch, ...), what a branch adds.
        rate: probability of 0, below 1.
        training: without it x comes back as it is.

    Source:
        arXiv 1603.09382.
    """
    if rate == 0.0 or not training:
        return x
    # divided by the share that stays, so that the branch keeps its expectation and evaluation needs no factor
    keep = torch.rand(x.shape[0], *(1 for _ in x.shape[1:]), device=x.device) >= rate
    return x * (keep.to(x.dtype) / (1.0 - rate))


def linear_drop_path_rates(rate: float, num_layers: int) -> list[float]:
    """Rates of stochastic depth from 0 at the first layer to `rate` at the last.

    Returns:
        num_layers numbers; a single layer has 0.
    """
    return [rate * i / max(num_layers - 1, 1) for i in range(num_layers)]


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239).

    dim: channels; init: first value of all, 1e-6 in ONE-PEACE, so that fresh branches hardly speak.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        # kept: a model that draws its weights anew reads it
        self.init = init
        self.weight = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        return x * self.weight


class HierarchicalStem(nn.Module):
    """hMLP stem (arXiv 2203.09795): patches of 16 in steps of 4, 2, 2; patches never see each other.

    Convolutions with LayerNorm over channels and GELU between them, widths dim/4, dim/4, dim.
    """

    patch_size = 16

    def __init__(self, dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = PatchMerge(in_channels, dim // 4, 4)
        self.norm1 = nn.LayerNorm(dim // 4)
        self.conv2 = PatchMerge(dim // 4, dim // 4, 2)
        self.norm2 = nn.LayerNorm(dim // 4)
        self.conv3 = PatchMerge(dim // 4, dim, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels to patches.

        pixel_values: (batch, channels, height, width) -> (batch, height/16, width/16, dim).
        """
        x = F.gelu(self.norm1(self.conv1(pixel_values.permute(0, 2, 3, 1))))
        return self.conv3(F.gelu(self.norm2(self.conv2(x))))


class LinearStem(nn.Module):
    """The plain ViT stem: one patch convolution without bias."""

    def __init__(self, dim: int, patch_size: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv = PatchMerge(in_channels, dim, patch_size, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels to patches.

        pixel_values: (batch, channels, height, width) -> (batch, height/patch, width/patch, dim).
        """
        return self.conv(pixel_values.permute(0, 2, 3, 1))


class PatchMerge(nn.Conv2d):
    """Conv2d with kernel = stride on channels-last input: (batch, h, w, in) -> (batch, h/k, w/k, out).

    Weights and initialisation are those of the convolution; the product runs as one matrix multiplication.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=kernel_size, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution.

        input: (batch, h, w, in), h and w multiples of the kernel -> (batch, h/k, w/k, out).
        """
        k = self.kernel_size[0]
        # (batch, rows, k, columns, k, in) -> (batch, rows, columns, in * k * k), channels first as in the kernel
        patches = input.unflatten(2, (-1, k)).unflatten(1, (-1, k)).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias)
