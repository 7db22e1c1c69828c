"""BERT's post-norm parts, shared by a text encoder, a fusion module and a causal decoder (arXiv 1810.04805).

ids -> embeddings -> [self-attention -> cross-attention (where there is one) -> MLP, each + residual -> norm] x layers

Keys and values are made apart from queries, so that a decoder can keep them: its own in a `Cache` of fixed memory,
those of encoder states once per item for all beams.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.nn.attention import AttentionFunction, mask_bias


class KeysValues(NamedTuple):
    """Keys and values of one attention, both (batch, heads, seq, head_dim)."""

    keys: Tensor
    values: Tensor


class Cache:
    """Self-attention keys and values of every decoder layer, in memory taken once.

    Args:
        num_layers: of the decoder.
        max_length: positions that fit; nothing grows or moves while decoding.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self.layers: list[KeysValues | None] = [None] * num_layers

    def append(self, layer: int, new: KeysValues) -> KeysValues:
        """Write `new` behind what the layer holds.

        Args:
            layer: its number; layers are called in order, and the last one moves `length`.
            new: keys and values (rows, heads, new positions, head_dim).

        Returns:
            Everything up to there, views of the cache.

        Raises:
            ValueError: for more positions than `max_length`.
        """
        stop = self.length + new.keys.shape[2]
        if stop > self.max_length:
            raise ValueError(f"expected at most {self.max_length} positions in the cache, got {stop}; build it larger")
        held = self.layers[layer]
        if held is None:
            # taken at the first call, when rows, dtype and device are known
            shape = (*new.keys.shape[:2], self.max_length, new.keys.shape[3])
            held = self.layers[layer] = KeysValues(new.keys.new_empty(shape), new.values.new_empty(shape))
        held.keys[:, :, self.length : stop] = new.keys
        held.values[:, :, self.length : stop] = new.values
        # until then every layer writes to the same positions
        if layer == len(self.layers) - 1:
            self.length = stop
        return KeysValues(held.keys[:, :, :stop], held.values[:, :, :stop])

    def reorder(self, rows: Tensor) -> None:
        """Row i continues what was row `rows[i]`: beams that were chosen twice, or left.

        rows: (batch,) int64.
        """
        for held in self.layers:
            if held is not None:
                for tensor in held:
                    # only what is filled: the rest of the memory holds nothing yet
                    tensor[:, :, : self.length] = tensor[:, :, : self.length].index_select(0, rows)


class BertEmbeddings(nn.Module):
    """Token + type + learned absolute position, then norm and dropout.

    Args:
        vocab_size, dim, max_positions, num_types: sizes of the tables.
        eps: of the norm, 1e-12 as BERT has it.
        dropout: rate in training.
    """

    def __init__(
        self, vocab_size: int, dim: int, max_positions: int, num_types: int = 2, *, eps: float = 1e-12,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_positions, dim)
        self.type_embedding = nn.Embedding(num_types, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, start: int = 0) -> Tensor:
        """Embeddings of ids.

        Args:
            input_ids: (batch, seq).
            token_type_ids: (batch, seq); None: all of type 0.
            start: position of the first token, for a decoder that continues.

        Returns:
            (batch, seq, dim).

        Raises:
            ValueError: for more positions than the table has.
        """
        # checked here: a slice behind the table is only shorter, and the sum would fail without a reason
        stop, most = start + input_ids.shape[1], self.position_embedding.num_embeddings
        if stop > most:
            raise ValueError(f"expected at most {most} tokens, got {stop}; shorten the text")
        types = self.type_embedding.weight[0] if token_type_ids is None else self.type_embedding(token_type_ids)
        x = self.token_embedding(input_ids) + types + self.position_embedding.weight[start:stop]
        return self.dropout(self.norm(x))


class BertAttention(nn.Module):
    """Attention of x to given keys, output projection, residual, norm (post-norm).

    Args:
        dim, num_heads: sizes.
        eps: of the norm.
        dropout: of what is added to x, in training.
        attention_dropout: of the probabilities, in training.

    Raises:
        ValueError: for a width that heads do not divide.
    """

    def __init__(
        self, dim: int, num_heads: int, *, eps: float = 1e-12, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected a width divisible by the number of heads, got {dim} and {num_heads}")
        self.num_heads, self.attention_dropout = num_heads, attention_dropout
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.out_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def project(self, states: Tensor) -> KeysValues:
        """Keys and values of states, once for all that attend to them.

        states: (batch, seq, dim) -> (batch, heads, seq, head_dim) each.
        """
        return KeysValues(self._heads(self.k_proj(states)), self._heads(self.v_proj(states)))

    def forward(
        self, x: Tensor, to: KeysValues, bias: Tensor | None, key_mask: Tensor | None, attend: AttentionFunction
    ) -> Tensor:
        """x + attention, normed.

        Args:
            x: (rows, seq, dim).
            to: keys of as many rows, or of fewer that `rows // batch` neighbours share (the beams of
                an item), then without bias.
            bias: broadcastable to (batch, heads, seq, keys).
            key_mask: (batch, keys) boolean, True = attend.
            attend: the attention function.

        Returns:
            Like x.
        """
        q = self._heads(self.q_proj(x))
        shared = q.shape[0] // to.keys.shape[0]
        if shared > 1:  # beams become queries of one item: its keys are read once and never copied
            q = q.unflatten(0, (-1, shared)).transpose(1, 2).flatten(2, 3)
        if self.training and self.attention_dropout:
            out = self._dropped(q, to, bias, key_mask)
        else:
            out = attend(q, to.keys, to.values, bias, key_mask)
        if shared > 1:
            out = out.unflatten(2, (shared, -1)).transpose(1, 2).flatten(0, 1)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        # post-norm: the residual stream itself is normed
        return self.norm(x + self.dropout(out))

    def _dropped(self, q: Tensor, to: KeysValues, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
        """Attention with dropout on its probabilities, in training only.

        q, to, bias, key_mask: as in `forward`; torch's own attention, the only one with a rate.
        """
        if key_mask is not None:
            # half of the lowest number, so that the sum with a bias stays finite
            masked = mask_bias(key_mask, q.dtype) / 2
            bias = masked if bias is None else bias.to(q.dtype) + masked
        return F.scaled_dot_product_attention(q, to.keys, to.values, attn_mask=bias, dropout_p=self.attention_dropout)

    def _heads(self, x: Tensor) -> Tensor:
        """(rows, seq, dim) -> (rows, heads, seq, head_dim)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class BertLayer(nn.Module):
    """One layer of BERT, with cross-attention between self-attention and MLP where there is one.

    Args:
        dim, num_heads, mlp_dim: sizes.
        cross: whether it can attend to other states.
        eps, dropout, attention_dropout: as in `BertAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        cross: bool = False,
        eps: float = 1e-12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rates = {"eps": eps, "dropout": dropout, "attention_dropout": attention_dropout}
        self.attn = BertAttention(dim, num_heads, **rates)
        self.cross_attn = BertAttention(dim, num_heads, **rates) if cross else None
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        attend: AttentionFunction,
        *,
        bias: Tensor | None = None,
        key_mask: Tensor | None = None,
        own: KeysValues | None = None,
        other: KeysValues | Tensor | None = None,
        other_mask: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Self-attention, cross-attention where states are given, MLP; each + residual -> norm.

        Args:
            x: (batch, seq, dim).
            attend: the attention function.
            bias, key_mask: of the self-attention.
            own: its keys where they are kept in a cache, else those of x.
            other: states (batch, keys, dim) or keys made of them; without it cross-attention is skipped.
            other_mask: (batch, keys) boolean, True = attend.
            seen: (batch,) which row of other each row of x reads, where those are others.

        Returns:
            Like x.

        Raises:
            ValueError: for states given to a layer without cross-attention.
        """
        x = self.attn(x, self.attn.project(x) if own is None else own, bias, key_mask, attend)
        if other is not None:
            if self.cross_attn is None:
                raise ValueError("expected a layer with cross-attention, got one without; build it with cross=True")
            # here and not by the caller: FSDP2 gathers the weights of a layer while its forward runs
            to = self.cross_attn.project(other) if isinstance(other, Tensor) else other
            to = to if seen is None else KeysValues(to.keys[seen], to.values[seen])
            x = self.cross_attn(x, to, None, other_mask, attend)
        return self.mlp_norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class LMHead(nn.Module):
    """Hidden states to logits over the token table that it is given.

    dense -> exact GELU -> norm -> product with the table -> + bias. The table is the embedding's own:
    published files hold both and they are equal.
    """

    def __init__(self, dim: int, vocab_size: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Logits of states.

        x: (..., dim), table: (vocab, dim) -> (..., vocab).
        """
        return F.linear(self.norm(F.gelu(self.dense(x))), table, self.bias)


def causal_bias(queries: int, keys: int, like: Tensor) -> Tensor | None:
    """What hides the future, to be added to scores.

    Args:
        queries: number of queries, the last of the keys' positions.
        keys: number of keys.
        like: gives dtype and device.

    Returns:
        (1, 1, queries, keys): 0 up to the position of each query, hugely negative after it. None
        for a single query, which sees all keys.
    """
    if queries == 1:
        return None
    # queries are the last positions: the first of them sees keys - queries + 1 keys
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu(keys - queries + 1)
    # half of the lowest number: a key mask's half may come on top without reaching -inf
    return like.new_zeros(1, 1, queries, keys).masked_fill_(hidden, torch.finfo(like.dtype).min / 2)
