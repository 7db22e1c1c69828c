"""Waveforms to frames: strided convolutions with LayerNorm, convolutional positions (wav2vec 2.0, arXiv 2006.11477)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ConvSpec = tuple[int, int, int]
"""Channels, kernel, stride."""


def conv_output_lengths(lengths: Tensor, spec: Sequence[ConvSpec]) -> Tensor:
    """Frames that `lengths` (batch,) samples give: n -> 1 + floor((n - kernel) / stride) per layer, at least 0."""
    for _, kernel, stride in spec:
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp_min(0)


class FrameConv(nn.Conv1d):
    """Conv1d on channels-last input without padding: (batch, time, in) -> (batch, frames, out).

    Computed as a channels-last Conv2d of height 1, which needs no copies and is twice as fast on CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)

    def reset_parameters(self) -> None:
        """Kaiming normal, as published."""
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """input: (batch, time, in) -> (batch, 1 + (time - kernel) // stride, out)."""
        rows = input.transpose(1, 2).unsqueeze(2)  # (batch, in, 1, time), channels last in memory
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(rows, weight, self.bias, stride=(1, self.stride[0]))
        return out.squeeze(2).transpose(1, 2)


class WaveformEncoder(nn.Module):
    """Convolutions with LayerNorm over channels and GELU: (batch, samples) -> (batch, frames, channels)."""

    def __init__(self, spec: Sequence[ConvSpec], bias: bool = False) -> None:
        super().__init__()
        widths = [1, *(channels for channels, _, _ in spec)]
        self.spec = tuple(spec)
        self.convs = nn.ModuleList(
            FrameConv(width, channels, kernel, stride, bias) for width, (channels, kernel, stride) in zip(widths, spec)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in spec)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: (batch, samples) -> (batch, frames, channels)."""
        x = waveform.unsqueeze(-1)
        for conv, norm in zip(self.convs, self.norms):
            x = F.gelu(norm(conv(x)))
        return x


class ConvPositions(nn.Module):
    """Positions from content: blocks of grouped Conv1d, bare LayerNorm and GELU (data2vec, arXiv 2202.03555).

    width: total receptive field, spread over `depth` blocks of kernel max(3, width // depth).
    """

    def __init__(self, dim: int, depth: int, width: int, groups: int) -> None:
        super().__init__()
        kernel = max(3, width // depth)
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, frames, dim) -> like x.

        mask: (batch, frames) bool, True = real. With it padded frames are zero before every convolution, so a clip in
        a batch gets what it gets alone; without it they leak into their neighbours, as in the official code.
        """
        frames = x.shape[1]
        for conv in self.convs:
            if mask is not None:
                x = x * mask[..., None]
            x = conv(x.transpose(1, 2))[..., :frames].transpose(1, 2)
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x
