"""Rotary positions of Owl2 (Llama) and Owl2.1 (Qwen: dynamic NTK base chosen at prefill, log-n query scale).

attention_mask -> positions (left padding does not count) -> cos, sin        the cache keeps the base it was filled with
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.nn.positions import inverse_frequencies, log_n_scale, ntk_alpha, ntk_theta, rotary_tables


def position_ids_of(
    given: Tensor | None, mask: Tensor | None, past: int | Tensor, shape: Sequence[int], device: torch.device
) -> Tensor:
    """(batch or 1, seq): positions count from the first token that is attended, so left padding shifts nothing."""
    if given is not None:
        return given
    positions = torch.arange(shape[1], device=device) + past
    if mask is None or mask.dim() != 2:
        return positions[None]
    first = (mask != 0).long().argmax(dim=1, keepdim=True)
    return (positions[None] - first).clamp_min(0)


def rotary(
    config: MPlugOwl2Config,
    position_ids: Tensor,
    mask: Tensor | None,
    past: int | Tensor,
    cache: Any,
    x: Tensor,
    is_training: bool,
) -> tuple[Tensor, Tensor]:
    """cos and sin of a forward pass: (batch or 1, 1, seq, head_dim) in the dtype of x: (batch, seq, dim)."""
    assert config.head_dim is not None and config.rope_parameters is not None
    kind, theta = config.rope_parameters["rope_type"], config.rope_parameters["rope_theta"]
    if kind != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        longest = int(position_ids.max()) + 1 if kind in ("dynamic", "longrope") else None
        inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, x.device, longest)
        return rotary_tables(position_ids, inv_freq, x.dtype, scale)
    if config.trained_length is None or not config.use_ntk or is_training:
        return rotary_tables(position_ids, inverse_frequencies(config.head_dim, theta, x.device), x.dtype)
    alpha = frozen_alpha(config.trained_length, mask, past, cache, x)
    inv_freq = inverse_frequencies(config.head_dim, ntk_theta(theta, alpha, config.head_dim), x.device)
    return rotary_tables(position_ids, inv_freq, x.dtype)


def frozen_alpha(trained_length: int, mask: Tensor | None, past: int | Tensor, cache: Any, x: Tensor) -> Tensor:
    """Qwen's NTK factor per sample, (batch,): chosen by the prompt's own length, then kept beside the keys it rotated.

    A new implementation ties the factor to the cache: the official code keeps it in the module, where two generations
    at once would mix it up.
    """
    kept = getattr(cache, "ntk_alpha", None)
    # A compiled step never asks how full a static cache is: that number lives on the device.
    if kept is not None and (torch.compiler.is_compiling() or past):
        return kept
    lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
    if mask is not None and mask.dim() == 2:
        lengths = (mask != 0).sum(dim=1)
    elif mask is not None:  # (batch, 1, seq, keys), prepared for a static cache: what the last query attends
        last = mask[:, 0, -1]
        lengths = (last if last.dtype == torch.bool else last == 0).sum(dim=-1).expand(x.shape[0])
    alpha = ntk_alpha(lengths, trained_length)
    if cache is not None:
        cache.ntk_alpha = alpha
    return alpha


def query_scale(config: MPlugOwl2Config, position_ids: Tensor) -> Tensor | None:
    """Log-n factor of every query, (batch or 1, 1, seq, 1), or None for a model without."""
    if config.trained_length is None or not config.use_log_n:
        return None
    return log_n_scale(position_ids, config.trained_length)
