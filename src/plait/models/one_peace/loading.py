"""Build ONE-PEACE models from weights on disk: official checkpoints and model directories.

checkpoint -> config -> model on the meta device -> only the tensors its branches need -> strict load
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.models.one_peace.weights import branch_state, fit_state, key_map, vision_key_map
from plait.weights.files import Checkpoint, read_checkpoint
from plait.weights.state import load_strict

logger = logging.getLogger(__name__)

CLASSES: dict[str, type[OnePeacePreTrainedModel]] = {
    c.__name__: c for c in (OnePeaceModel, OnePeaceForPreTraining, OnePeaceForClassification)
}


def is_official(keys: Sequence[str]) -> bool:
    """Whether these are keys of an official ONE-PEACE file (the full model or its vision branch)."""
    return any(key.startswith(("encoder_wrapper.", "image_adapter.")) for key in keys)


def from_official(
    checkpoint: Checkpoint,
    *,
    official_config: Mapping[str, Any] | None = None,
    branch: Sequence[str] | None = None,
    model_class: type[OnePeacePreTrainedModel] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> OnePeacePreTrainedModel:
    """A model from an official file. Only tensors of the branches kept are read.

    official_config: the `cfg` when the file has none; branch: modalities to keep, default all the file's;
    model_class: default what the cfg describes; changes: fields of `OnePeaceConfig` to set, for example
    `image_rel_bucket_size=24` for images of 384 pixels or `official=True`.
    Raises ValueError (StateError) listing missing, unexpected and misshapen keys.
    """
    cfg = official_config or checkpoint.config
    if any(key.startswith("encoder.layers.") for key in checkpoint.state):
        return _vision_branch(checkpoint, dtype, device, **changes)
    if cfg is None:
        raise ValueError("expected a checkpoint with a cfg, got none; pass official_config=")
    config = OnePeaceConfig.from_official(cfg, **changes)
    chosen = model_class or (OnePeaceForClassification if config.num_classes else OnePeaceModel)
    if chosen is OnePeaceModel and model_class is None:
        config.decoder = None
    source = key_map(config, base=base_prefix(chosen))
    native, report = source.forward(checkpoint.state)
    for key, reason in report.dropped.items():
        logger.debug("dropped %s: %s", key, reason)
    _restrict(config, branch)
    return _assemble(config, chosen, native, dtype, device)


def _vision_branch(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: str | torch.device, **changes: Any
) -> OnePeacePreTrainedModel:
    state, _ = vision_key_map().forward(checkpoint.state)
    layers = {key.split(".")[2] for key in state if key.startswith("trunk.layers.")}
    table = state["adapters.image.bias.tables.0"]
    fields: dict[str, Any] = {
        "dim": state["adapters.image.cls_embedding"].shape[-1],
        "num_layers": len(layers),
        "mlp_dim": state["trunk.layers.0.mlp.image.gate_proj.weight"].shape[0],
        "num_heads": table.shape[1],
        "image_bucket_size": round((state["adapters.image.position_embedding"].shape[0] - 1) ** 0.5),
        "image_rel_bucket_size": (round((table.shape[0] - 3) ** 0.5) + 1) // 2,
    }
    config = OnePeaceConfig(modalities=["image"], use_projections=False, norm_ways={}, **{**fields, **changes})
    return _assemble(config, OnePeaceModel, state, dtype, device)


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    model_class: type[OnePeacePreTrainedModel] | None = None,
    **changes: Any,
) -> OnePeacePreTrainedModel:
    """A model directory written by `save_pretrained`; `branch` reads and keeps only those modalities."""
    config = OnePeaceConfig.from_pretrained(path, trust_remote_code=False)
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"expected a field of OnePeaceConfig, got {name!r}")
        setattr(config, name, value)
    stored = stored_class(path)
    chosen = model_class or stored
    state: Mapping[str, Tensor] = read_checkpoint(path).state
    if base_prefix(stored) and chosen is OnePeaceModel:
        state = {key: state[key] for key in state if key.startswith("model.")}
        state = {key.removeprefix("model."): value for key, value in state.items()}
    _restrict(config, branch)
    return _assemble(config, chosen, state, dtype, device)


def stored_class(path: Path) -> type[OnePeacePreTrainedModel]:
    """The class whose `save_pretrained` wrote this directory."""
    architectures = OnePeaceConfig.from_pretrained(path, trust_remote_code=False).architectures
    return CLASSES.get((architectures or ["OnePeaceModel"])[0], OnePeaceModel)


def base_prefix(model_class: type[OnePeacePreTrainedModel]) -> str:
    """Where the `OnePeaceModel` sits inside a model of this class."""
    return "" if model_class is OnePeaceModel else "model."


def _restrict(config: OnePeaceConfig, branch: Sequence[str] | None) -> None:
    if branch is None:
        return
    missing = [m for m in branch if m not in config.modalities]
    if missing or not branch:
        raise ValueError(f"expected branches among {', '.join(config.modalities)}, got {', '.join(branch) or 'none'}")
    config.modalities = [m for m in config.modalities if m in branch]


def _assemble(
    config: OnePeaceConfig,
    model_class: type[OnePeacePreTrainedModel],
    native: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> OnePeacePreTrainedModel:
    with torch.device("meta"):
        model = model_class(config)
    wanted = list(model.state_dict())
    state = branch_state(native, config.modalities)
    used = {key for key in state if key in set(wanted) or (".bias.tables." in key)}
    unused = [key for key in state if key not in used and not _may_be_left(key, config)]
    scale = f"{base_prefix(model_class)}logit_scale"
    fitted = {**fit_state(state, config, wanted), **{key: state[key] for key in unused}}
    if scale in wanted and scale not in fitted:
        logger.info("%s is not in the file; it keeps its initial value", scale)
        fitted[scale] = torch.tensor(config.logit_scale_init).log()
    load_strict(model, fitted, dtype=dtype, assign=True)
    model.config.architectures = [model_class.__name__]
    return model.to(device).eval()


def _may_be_left(key: str, config: OnePeaceConfig) -> bool:
    """Keys a narrower task leaves in the file, as the specification lists them (3.3)."""
    is_head = key.startswith("decoder.")
    is_projection = not config.use_projections and ("projections." in key or key.endswith("logit_scale"))
    is_norm = not config.ways("norm_ways") and "trunk.norm." in key
    return is_head or is_projection or is_norm
