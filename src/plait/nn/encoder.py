"""The two bidirectional trunks in which modalities meet.

RoutedEncoder (ONE-PEACE, arXiv 2305.11172, 3.1): shared attention, feed-forward networks per way.
x, route, biases -> [norm -> attention -> scale -> +, norm -> feed-forward of the way -> scale -> +] x layers -> norm

UniversalLayers (mPLUG-2, section 3.3): the same layer objects called once for text and once for vision.
text   (batch, tokens, dim) -> self-attention, MLP of every layer
vision (batch, patches, dim) -> latents read the patches, layer by layer; in the last layer the roles swap and the
       patches read the latents -> + residual -> norm
Shared, a layer holds one self-attention and one MLP for both; apart, each modality has its own, with MLPs narrowed so
that the number of parameters stays the same: the ablation of the paper in one switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plait.nn.attention import AttentionFunction, SelfAttention
from plait.nn.bert import BertLayer
from plait.nn.layers import GeGLU, LayerScale, drop_path, linear_drop_path_rates
from plait.routing import PerModality, Route, Ways


class RoutedEncoder(nn.Module):
    """ONE-PEACE's trunk: a stack of routed layers and a final norm per way.

    Args:
        dim, num_heads, mlp_dim, num_layers: sizes.
        mlp_ways: partition of the feed-forward networks.
        norm_ways: partition of the final norm; empty: none, as the vision branch has it.
        inner_norms: sub-LayerNorm in attention, and in the feed-forward networks.
        layer_scale: initial LayerScale, 1e-6 as published, or None.
        drop_path_rate: rate of the last layer, rising linearly from 0.

    Source:
        ONE-PEACE (arXiv 2305.11172), 3.1; 2.5 of its released layout.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        num_layers: int,
        *,
        mlp_ways: Ways,
        norm_ways: Ways,
        inner_norms: Sequence[bool] = (True, True),
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            RoutedEncoderLayer(
                dim, num_heads, mlp_dim, mlp_ways, inner_norms=inner_norms, layer_scale=layer_scale, drop_path_rate=rate
            )
            for rate in linear_drop_path_rates(drop_path_rate, num_layers)
        )
        self.norm = PerModality(lambda: nn.LayerNorm(dim), norm_ways) if norm_ways else None
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        route: Route,
        biases: Sequence[Tensor],
        key_mask: Tensor | None,
        attend: AttentionFunction,
        *,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """All layers and the final norm.

        Args:
            x: (batch, seq, dim), modalities one after another.
            route: their segments.
            biases: none, one for all layers, or one per layer, each (batch or 1, heads, seq, seq).
            key_mask: (batch, seq) boolean, True = attend.
            attend: the attention function.
            hidden: a list to append the output of every layer to.

        Returns:
            (batch, seq, dim).

        Raises:
            ValueError: for another number of biases.
        """
        if len(biases) not in (0, 1, len(self.layers)):
            raise ValueError(f"expected 0, 1 or {len(self.layers)} attention biases, got {len(biases)}")
        for i, layer in enumerate(self.layers):
            # one bias for all layers, or one each: the remainder picks either
            bias = biases[i % len(biases)] if biases else None
            # not without gradient: there is no backward pass for which anything would be kept
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, route, bias, key_mask, attend, use_reentrant=False)
            else:
                x = layer(x, route, bias, key_mask, attend)
            if hidden is not None:
                hidden.append(x)
        return x if self.norm is None else self.norm(x, route)


class RoutedEncoderLayer(nn.Module):
    """Pre-norm layer: shared norms and attention, one feed-forward network per way.

    Args:
        dim, num_heads, mlp_dim: sizes.
        mlp_ways: partition of the feed-forward networks.
        inner_norms, layer_scale: as in `RoutedEncoder`.
        drop_path_rate: of this layer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        mlp_ways: Ways,
        *,
        inner_norms: Sequence[bool] = (True, True),
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.attn_norm = nn.LayerNorm(dim)
        # a bias of keys adds the same to all scores of a query: softmax does not see it
        self.attn = SelfAttention(dim, num_heads, key_bias=False, inner_norm=inner_norms[0])
        self.attn_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = PerModality(lambda: GeGLU(dim, mlp_dim, inner_norm=inner_norms[1]), mlp_ways)
        self.mlp_scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self, x: Tensor, route: Route, bias: Tensor | None, key_mask: Tensor | None, attend: AttentionFunction
    ) -> Tensor:
        """One layer.

        Args:
            x: (batch, seq, dim).
            route: its segments.
            bias: of this layer, (batch or 1, heads, seq, seq), or None.
            key_mask: (batch, seq) boolean, True = attend.
            attend: the attention function.

        Returns:
            Like x.
        """
        y = self.attn_scale(self.attn(self.attn_norm(x), bias, key_mask, attend))
        x = x + self.dropped(y)
        return x + self.dropped(self.mlp_scale(self.mlp(self.mlp_norm(x), route)))

    def dropped(self, x: Tensor) -> Tensor:
        """x: (batch, seq, dim), a branch before it joins the rest: in training rows are dropped at `drop_path_rate`."""
        return drop_path(x, self.drop_path_rate, self.training)


Sharing = Literal["shared", "apart"]
Reader = Literal["text", "visual"]


class UniversalLayers(nn.Module):
    """mPLUG-2's universal layers: one stack for text and vision.

    Args:
        dim, num_heads, mlp_dim, num_layers: sizes; 2 layers as published.
        num_latents: length of the compressed stream, 50 as published.
        sharing: one stack for both modalities, or one each at equal parameters.
        readers: who calls it: a text-only model builds neither cross-attention nor latents.
        eps, dropout, attention_dropout: as in `BertLayer`.

    Raises:
        ValueError: for layers apart whose MLP is too narrow, see `apart_mlp_dim`.

    Source:
        mPLUG-2 (arXiv 2302.00402), 3.3; specification mPLUG-2, 4.
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
            # a model with two stacks would win by its size alone
            width = apart_mlp_dim(dim, mlp_dim)
            stacks = {way: [make(width, cross=way == "visual") for _ in range(num_layers)] for way in readers}
        self.stacks = nn.ModuleDict({way: nn.ModuleList(layers) for way, layers in stacks.items()})
        # N(0, 1), not the 0.02 of linear layers, as released
        self.latents = nn.Parameter(torch.randn(num_latents, dim)) if "visual" in readers else None
        self.norm = nn.LayerNorm(dim, eps) if "visual" in readers else None
        self.dropout = nn.Dropout(dropout)

    def layers(self, reader: Reader) -> list[BertLayer]:
        """The layers that a modality passes.

        Raises:
            ValueError: where the model was built without it.
        """
        way = "shared" if "shared" in self.stacks else reader
        if way not in self.stacks or (reader == "visual" and self.latents is None):
            raise ValueError(f"expected universal layers for {reader}, got some without; load the model with it")
        return cast("list[BertLayer]", list(cast("nn.ModuleList", self.stacks[way])))

    def read(self, x: Tensor, key_mask: Tensor | None, attend: AttentionFunction) -> Tensor:
        """Text through self-attention and MLP of every layer.

        Args:
            x: (batch, tokens, dim).
            key_mask: (batch, tokens) boolean, True = attend.
            attend: the attention function.

        Returns:
            Like x. There is no outer residual on this side: the paper draws one, the code has none.
        """
        for layer in self.layers("text"):
            x = layer(x, attend, key_mask=key_mask)
        return x

    def see(self, x: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None) -> Tensor:
        """Vision through the layers: norm(x + what the layers make of it).

        Args:
            x: (batch, patches, dim).
            attend: the attention function.
            hidden: a list to which the output of every layer is appended.

        Returns:
            Like x.
        """
        layers = self.layers("visual")
        # `layers` has refused a model without them; this tells the type checker
        assert self.latents is not None and self.norm is not None
        # learned latents take the place of the patches as the stream; patches are only read
        latents = self.latents.expand(x.shape[0], -1, -1)
        for layer in layers[:-1]:
            latents = layer(latents, attend, other=x)
            if hidden is not None:
                hidden.append(latents)
        # roles swap: self-attention over all patches (up to 4097), which then read the latents
        out = layers[-1](x, attend, other=latents)
        if hidden is not None:
            hidden.append(out)
        return self.dropout(self.norm(x + out))


def apart_mlp_dim(dim: int, mlp_dim: int) -> int:
    """Width of the two MLPs that cost as much as one of `mlp_dim` and one more self-attention.

        2 (4 d^2 + 2 d m') = 4 d^2 + 2 d m

    Args:
        dim: d.
        mlp_dim: m, of the shared layer.

    Returns:
        m'.

    Raises:
        ValueError: where the shared layer is too narrow for that.
    """
    if mlp_dim <= 2 * dim:
        raise ValueError(f"expected mlp_dim over {2 * dim} for layers apart at equal parameters, got {mlp_dim}")
    return mlp_dim // 2 - dim
