"""The language model behind mPLUG-Owl: any causal one of transformers, given embeddings instead of ids.

BLOOM normalises its embeddings, and Owl splices media behind that norm: here the norm waits in `EmbeddingNorm` and is
applied to text alone (specification mPLUG-Owl, section 5.5).
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig


class EmbeddingNorm(nn.LayerNorm):
    """A norm that the body must not apply, because `embed_text` did: called, it returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        """input: (..., dim) -> itself."""
        return input

    def apply_to(self, x: Tensor) -> Tensor:
        """x: (..., dim) -> normalised."""
        return super().forward(x)


def build_language_model(config: PreTrainedConfig) -> Any:
    """A fresh causal language model of `config`, ready for embeddings."""
    return adopt(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


def adopt(model: Any) -> Any:
    """Make a causal language model ready for embeddings that are already normalised; the names of weights stay."""
    body = model.base_model
    norm = getattr(body, "word_embeddings_layernorm", None)
    if norm is not None and not isinstance(norm, EmbeddingNorm):
        waiting = EmbeddingNorm(norm.normalized_shape, norm.eps, device=norm.weight.device, dtype=norm.weight.dtype)
        waiting.load_state_dict(norm.state_dict())
        body.word_embeddings_layernorm = waiting
    return model


def embed_text(model: Any, input_ids: Tensor) -> Tensor:
    """input_ids: (batch, seq) -> (batch, seq, dim), normalised where the model's family does so."""
    x = model.get_input_embeddings()(input_ids)
    norm = getattr(model.base_model, "word_embeddings_layernorm", None)
    return x if norm is None else norm.apply_to(x)


def takes_positions(model: Any) -> bool:
    """Whether the model is told positions (rotary) or derives them from the mask (ALiBi)."""
    return "position_ids" in inspect.signature(model.forward).parameters
