"""What happens to a branch before it joins the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth per sample (arXiv 1603.09382): rows of x (batch, ...) are 0 at `rate`, else scaled up."""
    if rate == 0.0 or not training:
        return x
    keep = torch.rand(x.shape[0], *(1 for _ in x.shape[1:]), device=x.device) >= rate
    return x * (keep.to(x.dtype) / (1.0 - rate))


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> (..., dim)."""
        return x * self.weight


def linear_drop_path_rates(rate: float, num_layers: int) -> list[float]:
    """Rates from 0 at the first layer to `rate` at the last."""
    return [rate * i / max(num_layers - 1, 1) for i in range(num_layers)]
