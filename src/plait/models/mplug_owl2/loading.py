"""Build mPLUG-Owl2 models from weights on disk: official directories and files, Megatron, and model directories.

checkpoint -> config (variant and table sizes read off the keys) -> model on the meta device -> strict load
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.lora import with_lora
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.official import is_official_config
from plait.models.mplug_owl2.weights import is_megatron, is_qwen, key_map, official_names
from plait.weights.files import Checkpoint, read_checkpoint
from plait.weights.state import StateError, load_strict

logger = logging.getLogger(__name__)


def is_official(keys: Iterable[str]) -> bool:
    """Whether these are keys of an official mPLUG-Owl2 or Owl2.1 file."""
    keys = list(keys)
    return is_megatron(keys) or any("visual_abstractor.encoder.layers.0.crossattention.norm1" in key for key in keys)


def from_official(
    checkpoint: Checkpoint,
    *,
    official_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    branch: Sequence[str] | None = None,
    lora: str | Path | None = None,
    **changes: Any,
) -> MPlugOwl2ForConditionalGeneration:
    """A model from an official file or directory; the keys decide which variant it is.

    official_config: the config.json where the file has none; lora: an output directory of the released LoRA script to
    merge; changes: fields of `MPlugOwl2Config` to set. Raises
    ValueError (StateError) listing missing, unexpected and misshapen keys.
    """
    _no_branch(branch)
    state = official_names(checkpoint.state)
    state = state if lora is None else with_lora(state, lora)
    config = official_settings(checkpoint.config if official_config is None else official_config, state, **changes)
    native, report = key_map(config).forward(state)
    for key, reason in report.dropped.items():
        logger.debug("dropped %s: %s", key, reason)
    return assemble(config, native, dtype, device)


def official_settings(
    written: Mapping[str, Any] | None, state: Mapping[str, Tensor], **changes: Any
) -> MPlugOwl2Config:
    """The configuration of an official file; the number of rows of the token table is the file's."""
    if written is None:
        raise ValueError("expected a config.json beside the weights, got none; pass official_config=")
    table = "transformer.wte.weight" if is_qwen(state) else "model.embed_tokens.weight"
    rows = {"vocab_size": state[table].shape[0]} if table in state else {}
    return MPlugOwl2Config.from_official(written, state, **{**rows, **changes})


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlugOwl2ForConditionalGeneration:
    """A model directory written by `save_pretrained`, or an official one."""
    written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(path)
    if is_official_config(written):
        return from_official(checkpoint, dtype=dtype, device=device, branch=branch, **changes)
    _no_branch(branch)
    config = MPlugOwl2Config.from_pretrained(path, trust_remote_code=False)
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"expected a field of MPlugOwl2Config, got {name!r}")
        setattr(config, name, value)
    return assemble(config, checkpoint.state, dtype, device)


def assemble(
    config: MPlugOwl2Config,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MPlugOwl2ForConditionalGeneration:
    """A model of `config` with exactly the weights of `state`, ours by name. Raises StateError for any other set."""
    with torch.device("meta"):
        model = MPlugOwl2ForConditionalGeneration(config)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    load_strict(model, state, dtype=dtype, assign=True, optional=tied)
    model.tie_weights()
    model.config.architectures = [type(model).__name__]
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StateError("expected a weight for every parameter, got none for a tied head", tied)
    model.generation_config = type(model.generation_config).from_model_config(config)
    return model.to(device).eval()


def _no_branch(branch: Sequence[str] | None) -> None:
    if branch is not None:
        raise ValueError(f"expected no branch for mplug_owl2, whose parts only work together, got {list(branch)}")
