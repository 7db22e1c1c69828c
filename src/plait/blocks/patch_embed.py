"""Image patches to vectors: a convolution whose kernel equals its stride is a matrix product over patches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PatchMerge(nn.Conv2d):
    """Conv2d with kernel = stride on channels-last input: (batch, h, w, in) -> (batch, h/k, w/k, out).

    Weights and initialisation are those of the convolution; the product runs as one matrix multiplication.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=kernel_size, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """input: (batch, h, w, in), h and w multiples of the kernel -> (batch, h/k, w/k, out)."""
        k = self.kernel_size[0]
        patches = input.unflatten(2, (-1, k)).unflatten(1, (-1, k)).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias)


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
        """pixel_values: (batch, channels, height, width) -> (batch, height/16, width/16, dim)."""
        x = F.gelu(self.norm1(self.conv1(pixel_values.permute(0, 2, 3, 1))))
        return self.conv3(F.gelu(self.norm2(self.conv2(x))))


class LinearStem(nn.Module):
    """The plain ViT stem: one patch convolution without bias."""

    def __init__(self, dim: int, patch_size: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv = PatchMerge(in_channels, dim, patch_size, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (batch, channels, height, width) -> (batch, height/patch, width/patch, dim)."""
        return self.conv(pixel_values.permute(0, 2, 3, 1))
