"""Build mPLUG-Owl models from weights on disk: official directories and files, trainer checkpoints, model directories.

checkpoint -> plain names, LoRA merged -> config (sizes read off the weights) -> model on the meta device -> strict load
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.official import described, is_official_config
from plait.models.mplug_owl.weights import key_map, plain_names
from plait.weights.files import Checkpoint, read_checkpoint
from plait.weights.state import StateError, load_strict

logger = logging.getLogger(__name__)


def from_official(
    checkpoint: Checkpoint,
    *,
    official_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    branch: Sequence[str] | None = None,
    lora_alpha: float | None = None,
    **changes: Any,
) -> MPlugOwlForConditionalGeneration:
    """A model from an official file or directory, or from a checkpoint of the released training script.

    official_config: the config.json where the file has none; without either the sizes are read off the weights;
    lora_alpha: of adapters inside the file; changes: fields of `MPlugOwlConfig` to set. Raises ValueError (StateError)
    listing missing, unexpected and misshapen keys.
    """
    _no_branch(branch)
    written = checkpoint.config if official_config is None else official_config
    lora = (written or {}).get("lora") or {}
    state = plain_names(checkpoint.state, lora_alpha or lora.get("lora_alpha"))
    shapes = {key: tuple(state[key].shape) for key in state if not key.startswith("language_model.")}
    if written is None:
        written = described({key: tuple(state[key].shape) for key in state})
    config = MPlugOwlConfig.from_official(written, shapes, **changes)
    native, report = key_map().forward(state)
    for key, reason in report.dropped.items():
        logger.debug("dropped %s: %s", key, reason)
    return assemble(config, native, dtype, device)


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlugOwlForConditionalGeneration:
    """A model directory written by `save_pretrained`, or an official one."""
    written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(path)
    if is_official_config(written):
        return from_official(checkpoint, dtype=dtype, device=device, branch=branch, **changes)
    _no_branch(branch)
    config = MPlugOwlConfig.from_pretrained(path, trust_remote_code=False)
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"expected a field of MPlugOwlConfig, got {name!r}")
        setattr(config, name, value)
    return assemble(config, checkpoint.state, dtype, device)


def assemble(
    config: MPlugOwlConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MPlugOwlForConditionalGeneration:
    """A model of `config` with exactly the weights of `state`, ours by name. Raises StateError for any other set."""
    with torch.device("meta"):
        model = MPlugOwlForConditionalGeneration(config)
    tied = ["language_model.lm_head.weight"] if config.tie_word_embeddings else []
    load_strict(model, state, dtype=dtype, assign=True, optional=tied)
    model.tie_weights()
    model.config.architectures = [type(model).__name__]
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StateError("expected a weight for every parameter, got none for a tied head", tied)
    give_buffers_memory(model.language_model)
    model.generation_config = type(model.generation_config).from_model_config(config)
    return model.to(device).eval()


def give_buffers_memory(language_model: nn.Module) -> None:
    """Compute the buffers that no file holds (rotary frequencies) where the model was built without memory."""
    for name, module in list(language_model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, last = name.rpartition(".")
            fresh = type(module)(language_model.config)
            setattr(language_model.get_submodule(parent), last, fresh)


def _no_branch(branch: Sequence[str] | None) -> None:
    if branch is not None:
        raise ValueError(f"expected no branch for mplug_owl, whose parts only work together, got {list(branch)}")
