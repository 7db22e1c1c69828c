"""The decoder that all generative tasks share: causal, with cross-attention to vision (and text) states.

ids -> embeddings -> [causal self-attention -> cross-attention -> MLP] x layers -> LM head over the token table

Keys of the encoder states are made once (`cross_keys`), those of the ids kept in a `Cache`. Source: specification
mPLUG-2, section 6.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from plait.nn.attention import AttentionFunction
from plait.nn.bert import BertAttention, BertEmbeddings, BertLayer, Cache, KeysValues, LMHead, causal_bias


class TextDecoder(nn.Module):
    """Next-token logits of texts about something seen."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        num_layers: int,
        *,
        vocab_size: int,
        max_positions: int,
        num_types: int = 2,
        eps: float = 1e-12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(vocab_size, dim, max_positions, num_types, eps=eps, dropout=dropout)
        rates: dict[str, Any] = {"eps": eps, "dropout": dropout, "attention_dropout": attention_dropout}
        self.layers = nn.ModuleList(BertLayer(dim, num_heads, mlp_dim, cross=True, **rates) for _ in range(num_layers))
        self.head = LMHead(dim, vocab_size, eps)

    def cross_keys(self, states: Tensor) -> list[KeysValues]:
        """Keys of the encoder states for every layer. states: (batch, seq, dim)."""
        return [attention.project(states) for attention in self._cross_attentions()]

    def _cross_attentions(self) -> list[BertAttention]:
        return [cast("BertAttention", cast("BertLayer", layer).cross_attn) for layer in self.layers]

    def new_cache(self, max_length: int) -> Cache:
        """An empty cache for up to `max_length` positions."""
        return Cache(len(self.layers), max_length)

    def hidden(
        self,
        input_ids: Tensor,
        cross: list[KeysValues] | Tensor,
        attend: AttentionFunction,
        *,
        attention_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states (rows, seq, dim).

        input_ids: (rows, seq), those behind what `cache` holds; cross: encoder states (items, states, dim), or their
        keys for every layer, of as many items as rows, or of fewer that neighbours share; attention_mask: (rows, seq)
        bool, without cache only; cross_mask: (items, states) bool.
        """
        start = 0 if cache is None else cache.length
        x = self.embeddings(input_ids, start=start)
        bias = causal_bias(input_ids.shape[1], start + input_ids.shape[1], x)
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, BertLayer)
            own = None if cache is None else cache.append(i, layer.attn.project(x))
            other = cross if isinstance(cross, Tensor) else cross[i]
            x = layer(x, attend, bias=bias, key_mask=attention_mask, own=own, other=other, other_mask=cross_mask)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., dim) -> (..., vocab), over the table that embeds the ids."""
        return self.head(hidden, self.embeddings.token_embedding.weight)

    def forward(
        self,
        input_ids: Tensor,
        states: Tensor,
        attend: AttentionFunction,
        *,
        attention_mask: Tensor | None = None,
        states_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (rows, seq, vocab) of whole texts. states: (items, seq, dim), states_mask: (items, seq) bool."""
        hidden = self.hidden(input_ids, states, attend, attention_mask=attention_mask, cross_mask=states_mask)
        return self.logits(hidden)


class CachedStep:
    """A decoder as `plait.generation.beam_search` sees it: every token is computed once.

    cross: of `decoder.cross_keys`, one per item and not per beam; cross_mask: (items, states) bool.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        cross: list[KeysValues],
        attend: AttentionFunction,
        max_length: int,
        cross_mask: Tensor | None = None,
    ) -> None:
        self.decoder, self.cross, self.attend, self.cross_mask = decoder, cross, attend, cross_mask
        self.cache = decoder.new_cache(max_length)

    def __call__(self, ids: Tensor, beam_indices: Tensor | None) -> Tensor:
        """Logits of the next token (rows, vocab); see `plait.generation.StepFunction`."""
        if beam_indices is not None:
            self.cache.reorder(beam_indices)
        new = ids[:, self.cache.length :]
        hidden = self.decoder.hidden(new, self.cross, self.attend, cross_mask=self.cross_mask, cache=self.cache)
        return self.decoder.logits(hidden[:, -1])


class RecomputedStep:
    """The same without any cache, as the released code does it: the prefix and all its keys at every step.

    states: (items, seq, dim) are copied for every beam. Kept as the reference that `CachedStep` is held against.
    """

    def __init__(
        self, decoder: TextDecoder, states: Tensor, attend: AttentionFunction, states_mask: Tensor | None = None
    ) -> None:
        self.decoder, self.states, self.attend, self.states_mask = decoder, states, attend, states_mask

    def __call__(self, ids: Tensor, beam_indices: Tensor | None) -> Tensor:
        """Logits of the next token (rows, vocab)."""
        beams = len(ids) // len(self.states)
        states = self.states.repeat_interleave(beams, 0)
        mask = None if self.states_mask is None else self.states_mask.repeat_interleave(beams, 0)
        with torch.no_grad():
            return self.decoder(ids, states, self.attend, states_mask=mask)[:, -1]
