"""Universal layers: the same layer objects called once for text and once for vision (mPLUG-2, section 3.3).

text   (batch, tokens, dim) -> self-attention, MLP of every layer
vision (batch, patches, dim) -> latents read the patches, layer by layer; in the last layer the roles swap and the
       patches read the latents -> + residual -> norm

Shared, a layer holds one self-attention and one MLP for both; apart, each modality has its own, with MLPs narrowed so
that the number of parameters stays the same: the ablation of the paper in one switch.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from plait.blocks.attention import AttentionFunction
from plait.trunks.bert import BertLayer

Sharing = Literal["shared", "apart"]
Reader = Literal["text", "visual"]


def apart_mlp_dim(dim: int, mlp_dim: int) -> int:
    """Width of the two MLPs that cost as much as one of `mlp_dim` and one more self-attention.

    2 (4 d^2 + 2 d m') = 4 d^2 + 2 d m. Raises ValueError where the shared layer is too narrow for that.
    """
    if mlp_dim <= 2 * dim:
        raise ValueError(f"expected mlp_dim over {2 * dim} for layers apart at equal parameters, got {mlp_dim}")
    return mlp_dim // 2 - dim


class UniversalLayers(nn.Module):
    """A stack for text and vision.

    num_latents: length of the compressed stream; sharing: one stack for both, or one each at equal parameters;
    readers: who calls it: a text-only model builds neither cross-attention nor latents.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        num_layers: int,
        *,
        num_latents: int = 50,
        sharing: Sharing = "shared",
        readers: tuple[Reader, ...] = ("text", "visual"),
        eps: float = 1e-12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rates = {"eps": eps, "dropout": dropout, "attention_dropout": attention_dropout}
        make = partial(BertLayer, dim, num_heads, **rates)
        if sharing == "shared":
            cross = "visual" in readers
            stacks = {"shared": [make(mlp_dim, cross=cross) for _ in range(num_layers)]}
        else:
            width = apart_mlp_dim(dim, mlp_dim)
            stacks = {way: [make(width, cross=way == "visual") for _ in range(num_layers)] for way in readers}
        self.stacks = nn.ModuleDict({way: nn.ModuleList(layers) for way, layers in stacks.items()})
        self.latents = nn.Parameter(torch.randn(num_latents, dim)) if "visual" in readers else None
        self.norm = nn.LayerNorm(dim, eps) if "visual" in readers else None
        self.dropout = nn.Dropout(dropout)

    def layers(self, reader: Reader) -> list[BertLayer]:
        """The layers that a modality passes."""
        way = "shared" if "shared" in self.stacks else reader
        if way not in self.stacks or (reader == "visual" and self.latents is None):
            raise ValueError(f"expected universal layers for {reader}, got some without; load the model with it")
        return cast("list[BertLayer]", list(cast("nn.ModuleList", self.stacks[way])))

    def read(self, x: Tensor, key_mask: Tensor | None, attend: AttentionFunction) -> Tensor:
        """Text: x (batch, tokens, dim), key_mask (batch, tokens) bool -> like x."""
        for layer in self.layers("text"):
            x = layer(x, attend, key_mask=key_mask)
        return x

    def see(self, x: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None) -> Tensor:
        """Vision: x (batch, patches, dim) -> norm(x + what the layers make of it), like x.

        hidden: a list to which the output of every layer is appended.
        """
        layers = self.layers("visual")
        assert self.latents is not None and self.norm is not None
        latents = self.latents.expand(len(x), -1, -1)
        for layer in layers[:-1]:
            latents = layer(latents, attend, other=x)
            if hidden is not None:
                hidden.append(latents)
        out = layers[-1](x, attend, other=latents)
        if hidden is not None:
            hidden.append(out)
        return self.dropout(self.norm(x + out))
