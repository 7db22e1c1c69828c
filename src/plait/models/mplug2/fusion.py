"""The fusion module: text reads vision by cross-attention; now and then both meet in one self-attention.

text, vision -> [text + self-attention + cross-attention + MLP | joint layer over [vision ; text]] x layers -> both

Source: mPLUG (arXiv 2205.12005), section 3.2; specification mPLUG-2, section 5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plait.nn.attention import AttentionFunction
from plait.nn.bert import BertLayer


def is_connected(index: int, stride: int) -> bool:
    """Whether layer `index`, counted from the first that runs, joins both streams."""
    return index > 0 and index % stride == 0


class FusionModule(nn.Module):
    """`num_layers` layers, every `stride`-th but the first connected; those have no cross-attention."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, num_layers: int, *, stride: int = 1000, **rates: Any
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"expected a fusion stride of at least 1, got {stride}")
        self.stride = stride
        self.layers = nn.ModuleList(
            BertLayer(dim, num_heads, mlp_dim, cross=not is_connected(i, stride), **rates) for i in range(num_layers)
        )

    def forward(
        self, text: Tensor, text_mask: Tensor | None, vision: Tensor, attend: AttentionFunction
    ) -> tuple[Tensor, Tensor]:
        """text: (batch, tokens, dim), text_mask: (batch, tokens) bool, vision: (batch, patches, dim), unpadded.

        Returns vision and text, like what was given.
        """
        patches = vision.shape[1]
        for layer in self.layers:
            assert isinstance(layer, BertLayer)
            if layer.cross_attn is not None:
                text = layer(text, attend, key_mask=text_mask, other=vision)
                continue
            joint = torch.cat([vision, text], dim=1)
            seen = None if text_mask is None else nn.functional.pad(text_mask, (patches, 0), value=True)
            joint = layer(joint, attend, key_mask=seen)
            vision, text = vision + joint[:, :patches], joint[:, patches:]
        return vision, text
