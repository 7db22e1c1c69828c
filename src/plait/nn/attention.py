"""Multi-head attention over a precomputed additive bias, and the masks and biases that it takes.

    x -> q, k, v -> softmax(q k^T * scale + bias) v -> LayerNorm (sub-LN) -> output projection

`AttentionFunction`s are chosen by name (`eager`, `sdpa`, `flex_attention`, or anything registered with transformers'
attention interface) once per forward pass by the top model, and handed down. Masks are boolean, True = attend; what is
added to scores is called a bias.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""(q, k, v, bias, key_mask) -> like q. q, k, v: (batch, heads, seq, head_dim); bias: broadcastable to
(batch, heads, seq, seq); key_mask: (batch, seq) bool, True = attend."""


class SelfAttention(nn.Module):
    """Bidirectional self-attention with optional sub-LayerNorm before the output projection.

    Args:
        dim: width.
        num_heads: heads of `dim // num_heads`.
        key_bias: whether the key projection has a bias; ONE-PEACE's has none.
        inner_norm: LayerNorm over the concatenated heads (Magneto, arXiv 2210.06423).
        eps: of that norm.

    Raises:
        ValueError: for a width that heads do not divide.
    """

    def __init__(
        self, dim: int, num_heads: int, *, key_bias: bool = True, inner_norm: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected a width divisible by the number of heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=key_bias)
        self.v_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps) if inner_norm else None
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None, key_mask: Tensor | None, attend: AttentionFunction) -> Tensor:
        """Attention of every position to every other.

        Args:
            x: (batch, seq, dim).
            bias: added to scores, broadcastable to (batch, heads, seq, seq).
            key_mask: (batch, seq) boolean, True = attend.
            attend: the attention function.

        Returns:
            Like x.
        """
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        # heads side by side: the norm that follows spans all of them
        out = attend(q, k, v, bias, key_mask).transpose(1, 2).flatten(2)
        return self.out_proj(out if self.norm is None else self.norm(out))


def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
    """Softmax attention spelled out, the softmax in fp32.

    Args:
        q, k, v: (batch, heads, seq, head_dim).
        bias: broadcastable to (batch, heads, seq, seq).
        key_mask: (batch, seq) boolean, True = attend.

    Returns:
        Like q.
    """
    # scaled before the product, as published: in fp16 the scores themselves could overflow
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if key_mask is not None:
        # the lowest finite number: a row that is masked whole gives the mean and not NaN
        scores = scores.masked_fill(~key_mask[:, None, None], torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
    """torch's fused attention, which takes one additive tensor.

    A bias that all rows of the batch share stays that small when keys are masked too: the mask
    then travels in one more channel of q (1) and k (0, or hugely negative), which adds exactly 0
    to the score of every attended key.

    Args:
        q, k, v, bias, key_mask: as in `eager_attention`.

    Returns:
        Like q.
    """
    if bias is None:
        mask = None if key_mask is None else key_mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    bias = bias.to(q.dtype)  # CUDA kernels refuse another dtype
    if key_mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    if bias.shape[0] == q.shape[0]:
        both = bias + mask_bias(key_mask, bias.dtype) / 2  # half, so that the sum does not overflow to -inf
        return F.scaled_dot_product_attention(q, k, v, attn_mask=both)
    head_dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    # finite, since a row of nothing but -inf gives NaN; in fp16 half of its range, so that a score can add to it
    blocked = key_mask.new_zeros(key_mask.shape, dtype=q.dtype).masked_fill_(
        ~key_mask, -3e4 if q.dtype == torch.float16 else -1e30
    )
    q = F.pad(q, (0, 8))  # kernels want a multiple of 8
    q[..., head_dim] = 1.0
    k = F.pad(k, (0, 8))
    k[..., head_dim] = blocked[:, None]
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 8)), attn_mask=bias, scale=scale)[..., :head_dim]


def flex_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
    """FlexAttention with bias and mask as a score modification. No backward pass on CPU.

    Args:
        q, k, v, bias, key_mask: as in `eager_attention`.

    Returns:
        Like q.
    """
    if bias is None and key_mask is None:
        return _compiled_flex()(q, k, v)
    # one kernel for all four cases; a dimension of size 1 is indexed with 0, since flex knows no broadcasting
    dense = q.new_zeros(1, 1, q.shape[2], k.shape[2]) if bias is None else bias.expand(-1, -1, q.shape[2], k.shape[2])
    batched, headed = dense.shape[0] > 1, dense.shape[1] > 1
    lowest = torch.finfo(q.dtype).min

    def modify(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = score + dense[batch if batched else 0, head if headed else 0, query, key]
        return score if key_mask is None else torch.where(key_mask[batch, key], score, lowest)

    return _compiled_flex()(q, k, v, score_mod=modify)


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    """torch's flex attention, compiled once: uncompiled it builds all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


_FUNCTIONS: dict[str, AttentionFunction] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "flex_attention": flex_attention,
}


def attention_function(name: str) -> AttentionFunction:
    """The attention function called `name`.

    Args:
        name: `eager`, `sdpa`, `flex_attention`, or one registered with transformers.

    Raises:
        ValueError: for an unknown name, and for flash attention, which takes no additive tensor.

    Example:
        >>> x = torch.zeros(1, 2, 3, 4)  # a row, two heads, three positions
        >>> attention_function("sdpa")(x, x, x, None, torch.ones(1, 3, dtype=torch.bool)).shape
        torch.Size([1, 2, 3, 4])
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if name.startswith("flash"):  # these take no additive tensor
        raise ValueError(f"expected an attention that takes an additive bias, got {name!r}; use sdpa or flex_attention")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in ALL_ATTENTION_FUNCTIONS:
        raise ValueError(f"expected one of {sorted(_FUNCTIONS)} or a registered attention, got {name!r}")
    registered = ALL_ATTENTION_FUNCTIONS[name]

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
        # Registered functions read a few fields of the calling module and return (batch, seq, heads, head_dim).
        if key_mask is not None:
            # one additive tensor is all that registered functions take
            bias = mask_bias(key_mask, q.dtype) + (0 if bias is None else bias)
        return registered(_Caller(), q, k, v, bias, scaling=q.shape[-1] ** -0.5)[0].transpose(1, 2)

    return call


class _Caller(nn.Module):
    """What transformers' attention functions expect of the module that calls them."""

    is_causal = False
    num_key_value_groups = 1
    training = False


@contextmanager
def watching(modules: Iterable[nn.Module]) -> Generator[list[Tensor]]:
    """Note how modules attend while the context is open; what they compute stays the same to the bit.

    Args:
        modules: whose `forward` takes an attention function as `attend`. Their hooks are gone afterwards.

    Yields:
        A list that fills with weights (batch, queries, keys) in float32, the mean over heads, one for every call.
    """
    seen: list[Tensor] = []

    def noting(attend: AttentionFunction) -> AttentionFunction:
        def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
            # what attention reads from the identity are its weights
            keys = torch.eye(k.shape[2], device=k.device)[None, None]
            seen.append(eager_attention(q.float(), k.float(), keys, bias, key_mask).mean(1))
            return attend(q, k, v, bias, key_mask)

        return call

    def hand(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = inspect.signature(module.forward).bind(*args, **kwargs)
        given.arguments["attend"] = noting(given.arguments["attend"])
        return given.args, given.kwargs

    hooks = [module.register_forward_pre_hook(hand, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """Lengths of rows as a mask.

    Args:
        lengths: (batch,).
        size: positions of a row.

    Returns:
        boolean (batch, size), True on the first `lengths` positions.
    """
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: 0 where attended, the lowest finite number elsewhere.

    Finite, since a row of nothing but -inf gives NaN.

    Args:
        mask: (batch, keys) boolean.
        dtype: of the scores.

    Returns:
        (batch, 1, 1, keys).
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return bias[:, None, None]


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Biases along the diagonal of one, 0 across: modalities have no relative positions to each other.

    Args:
        blocks: (batch or 1, heads, n_i, n_i) each.

    Returns:
        (batch or 1, heads, sum n, sum n).

    Source:
        ONE-PEACE, 10.4 of its released layout.
    """
    if len(blocks) == 1:
        return blocks[0]
    size = sum(block.shape[-1] for block in blocks)
    batch = max(block.shape[0] for block in blocks)
    # a block for all rows is written to all: batch is 1 unless one of them has a row of its own
    out = blocks[0].new_zeros(batch, blocks[0].shape[1], size, size)
    start = 0
    for block in blocks:
        stop = start + block.shape[-1]
        out[:, :, start:stop, start:stop] = block
        start = stop
    return out
