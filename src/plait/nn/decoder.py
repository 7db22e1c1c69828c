"""Causal routed decoder: one stack of layers, some of whose sub-modules exist once per way (mPLUG-Owl2, section 3.2).

x, route -> tokens grouped by way, once -> [norm -> attention -> +, norm -> feed-forward -> +] x layers -> norm

Attention is where ways meet: queries, keys and values return to sequence order there and only there. Where all tokens
belong to one way (every decoding step, every batch of text) nothing is grouped and only that way's weights are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plait.nn.layers import RMSNorm, SwiGLU
from plait.nn.positions import rotate
from plait.routing import PerModality, Route, Ways

ROUTABLE = ("norm", "q", "k", "v", "out", "mlp")
"""Sub-modules of a layer that can exist once per way."""


class KeyValueCache(Protocol):
    """What the decoder needs of a cache: transformers' `DynamicCache`, `StaticCache` and the rest."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append key_states, value_states: (batch, heads, new, head_dim); returns all of that layer."""
        ...


Attend = Callable[..., tuple[Tensor, Any]]
"""As in transformers: `(module, q, k, v, mask, scaling=...) -> ((batch, seq, heads, head_dim), _)`."""


@dataclass(slots=True)
class Pass:
    """What all layers of one forward pass share.

    shape: (batch, seq); cos, sin: (batch, 1, seq, head_dim); mask: what `attend` takes, None for plain causal;
    query_scale: (batch, 1, seq, 1) or None; route: of the tokens as layers see them; order, inverse: (batch * seq,)
    between sequence order and layer order, None where they are the same; weights: a list to which every layer appends
    its attention weights (batch, heads, seq, keys), where `attend` returns them.
    """

    shape: tuple[int, int]
    cos: Tensor
    sin: Tensor
    attend: Attend
    mask: Any = None
    cache: KeyValueCache | None = None
    query_scale: Tensor | None = None
    route: Route = field(default_factory=lambda: Route.only("text"))
    order: Tensor | None = None
    inverse: Tensor | None = None
    weights: list[Tensor] | None = None

    def to_layers(self, x: Tensor) -> Tensor:
        """Tokens as layers take them.

        x: (batch, seq, dim) -> itself, or (1, batch * seq, dim) grouped by way.
        """
        return x if self.order is None else x.flatten(0, 1).index_select(0, self.order)[None]

    def to_sequence(self, x: Tensor) -> Tensor:
        """Undo `to_layers`: tokens in layer order -> (batch, seq, dim).

        x: as `to_layers` gives it. Needed wherever positions matter: for attention, and at the end.
        """
        return x if self.inverse is None else x[0].index_select(0, self.inverse).unflatten(0, self.shape)


def routed(build: Callable[[], nn.Module], ways: Ways, is_routed: bool) -> nn.Module:
    """One module for all, or one per way.

    build: makes a module; ways: the partition; is_routed: whether each way gets its own.
    """
    return PerModality(build, ways) if is_routed else build()


def through(module: nn.Module, x: Tensor, route: Route) -> Tensor:
    """Send tokens through a module that may exist once per way.

    x: (batch, seq, dim) tokens in layer order; route: of these tokens. Returns tokens in the same order.
    """
    return module(x, route) if isinstance(module, PerModality) else module(x)


class RoutedAttention(nn.Module):
    """Causal grouped-query attention with rotary positions, projections shared or once per way.

    Args:
        dim, num_heads, num_kv_heads, head_dim: sizes; heads share keys in equal groups.
        ways: the partition of the modalities.
        routed_parts: which of `q`, `k`, `v`, `out` exist once per way.
        qkv_bias, out_bias: whether projections have biases.
        layer_idx: number of the layer in the cache.

    Raises:
        ValueError: for heads that do not form equal groups.
    """

    is_causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        ways: Ways,
        routed_parts: Collection[str],
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        layer_idx: int = 0,
    ) -> None:
        super().__init__()
        if num_heads % num_kv_heads:
            raise ValueError(
                f"expected heads in equal groups, got {num_heads} heads and {num_kv_heads} key-value heads"
            )
        self.layer_idx, self.head_dim = layer_idx, head_dim
        # these names are transformers': its attention functions read them from the caller
        self.num_key_value_groups = num_heads // num_kv_heads
        self.scaling = head_dim**-0.5

        def linear(part: str, heads: int) -> nn.Module:
            return routed(lambda: nn.Linear(dim, heads * head_dim, bias=qkv_bias), ways, part in routed_parts)

        self.q_proj = linear("q", num_heads)
        self.k_proj = linear("k", num_kv_heads)
        self.v_proj = linear("v", num_kv_heads)
        self.o_proj = routed(lambda: nn.Linear(num_heads * head_dim, dim, bias=out_bias), ways, "out" in routed_parts)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """Attention in sequence order, everything else in layer order.

        Args:
            x: (batch, seq, dim) tokens in layer order.
            run: what the layers of this pass share.

        Returns:
            Like x.
        """
        q, k, v = (self._heads(proj, x, run) for proj in (self.q_proj, self.k_proj, self.v_proj))
        # keys go into the cache rotated: a base chosen with the prompt must hold for the whole answer
        q, k = rotate(q, run.cos, run.sin), rotate(k, run.cos, run.sin)
        # after the rotation, as Qwen does it
        if run.query_scale is not None:
            q = q * run.query_scale.to(q.dtype)
        if run.cache is not None:
            k, v = run.cache.update(k, v, self.layer_idx)
        # no dropout: published configurations of Llama and Qwen have none
        out, weights = run.attend(self, q, k, v, run.mask, scaling=self.scaling, dropout=0.0)
        if run.weights is not None:
            run.weights.append(weights)
        return through(self.o_proj, run.to_layers(out.reshape(*run.shape, -1)), run.route)

    def _heads(self, proj: nn.Module, x: Tensor, run: Pass) -> Tensor:
        """Tokens in layer order -> heads of one projection in sequence order.

        (batch, heads, seq, head_dim).
        """
        if run.order is not None and isinstance(proj, PerModality):
            found = proj.scattered(x[0], run.route, run.order)
        else:
            found = run.to_sequence(through(proj, x, run.route))
        return found.view(*run.shape, -1, self.head_dim).transpose(1, 2)


class RoutedDecoderLayer(nn.Module):
    """Pre-norm layer of Llama, its sub-modules shared or once per way.

    Args:
        dim, num_heads, num_kv_heads, head_dim, mlp_dim: sizes.
        ways, routed_parts: as in `RoutedDecoder`.
        eps: of the RMS norms.
        qkv_bias, out_bias, mlp_bias: whether linear layers have biases.
        layer_idx: number of the layer in the cache.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        mlp_dim: int,
        ways: Ways,
        routed_parts: Collection[str],
        *,
        eps: float = 1e-6,
        qkv_bias: bool = False,
        out_bias: bool = False,
        mlp_bias: bool = False,
        layer_idx: int = 0,
    ) -> None:
        super().__init__()
        self.attn_norm = routed(lambda: RMSNorm(dim, eps), ways, "norm" in routed_parts)
        self.attn = RoutedAttention(
            dim, num_heads, num_kv_heads, head_dim, ways, routed_parts,
            qkv_bias=qkv_bias, out_bias=out_bias, layer_idx=layer_idx,
        )  # fmt: skip
        self.mlp_norm = routed(lambda: RMSNorm(dim, eps), ways, "norm" in routed_parts)
        self.mlp = routed(lambda: SwiGLU(dim, mlp_dim, bias=mlp_bias), ways, "mlp" in routed_parts)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """x: (batch, seq, dim) in layer order; run: what the layers of this pass share -> like x.

        Norm, attention, +; norm, feed-forward, +.
        """
        x = x + self.attn(through(self.attn_norm, x, run.route), run)
        return x + through(self.mlp, through(self.mlp_norm, x, run.route), run.route)


class RoutedDecoder(nn.Module):
    """A stack of routed layers and a final norm that all modalities share.

    Args:
        dim, num_heads, mlp_dim, num_layers: sizes of a Llama.
        ways: the partition of the modalities.
        routed_parts: which of `ROUTABLE` exist once per way; () for a plain Llama. mPLUG-Owl2 has
            norms, keys and values, as is the default.
        num_kv_heads, head_dim: by default num_heads and dim // num_heads.
        eps: of the RMS norms.
        biases: as in `RoutedDecoderLayer`.

    Raises:
        ValueError: for a part that does not exist.

    Source:
        mPLUG-Owl2 (arXiv 2311.04257), 3.2; specification mPLUG-Owl2, 5.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        num_layers: int,
        ways: Ways,
        routed_parts: Sequence[str] = ("norm", "k", "v"),
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        eps: float = 1e-6,
        **biases: bool,
    ) -> None:
        super().__init__()
        unknown = [part for part in routed_parts if part not in ROUTABLE]
        if unknown:
            raise ValueError(f"expected routed parts among {', '.join(ROUTABLE)}, got {', '.join(unknown)}")
        self.is_routed = bool(routed_parts)
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList(
            RoutedDecoderLayer(
                dim, num_heads, num_kv_heads or num_heads, head_dim or dim // num_heads, mlp_dim, ways, routed_parts,
                eps=eps, layer_idx=i, **biases,
            )
            for i in range(num_layers)
        )  # fmt: skip
        self.norm = RMSNorm(dim, eps)

    def forward(self, x: Tensor, route: Route, run: Pass, hidden: list[Tensor] | None = None) -> Tensor:
        """All layers and the final norm.

        Args:
            x: (batch, seq, dim).
            route: which modality owns each token: `Route.only` or `Route.interleaved`.
            run: positions, mask, cache and the rest.
            hidden: a list to which the states before every layer and after the final norm are
                appended, in sequence order.

        Returns:
            (batch, seq, dim).
        """
        # grouped once here: inside layers tokens stay sorted by way, but for attention
        run = self._grouped(route, run)
        x = run.to_layers(x)
        for layer in self.layers:
            if hidden is not None:
                hidden.append(run.to_sequence(x))
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                # without cache: recomputing a layer would write its keys a second time
                x = checkpoint(layer, x, replace(run, cache=None), use_reentrant=False)
            else:
                x = layer(x, run)
        x = self.norm(run.to_sequence(x))
        if hidden is not None:
            hidden.append(x)
        return x

    def _grouped(self, route: Route, run: Pass) -> Pass:
        """The pass as layers see it: tokens grouped by way where more than one way is present."""
        if not self.is_routed:
            return run
        # segments, or a single way: nothing has to be moved
        if route.order is None:
            return replace(run, route=route)
        # in training all ways are called, so that every rank issues the same collectives
        if not self.training and len(route.present) == 1:
            return replace(run, route=Route.only(route.present[0]))
        return replace(run, route=route.grouped(), order=route.order, inverse=route.inverse)


def eager_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Causal attention spelled out, the softmax in fp32: transformers' signature.

    Args:
        module: the caller, unused.
        q: (batch, heads, seq, head_dim).
        k, v: (batch, kv heads, keys, head_dim).
        mask: additive, (batch, 1, seq, keys), as transformers hands it over.
        scaling: factor of the scores.

    Returns:
        (batch, seq, heads, head_dim) and the weights (batch, heads, seq, keys).
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        # head h reads key-value head h // groups
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2), weights
