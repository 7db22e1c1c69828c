"""Where pretraining begins: CLIP's weights for vision, BERT's for text, fusion and decoder; the rest stays fresh.

CLIP (OpenAI's or transformers' layout) -> vision encoder: patches inflated over time, positions resized to the grid
BERT -> text and universal layers (by index), fusion module (its last layers), decoder (its first layers), LM heads

Temporal modules, cross-attention, latents, projections and match head have no source. Source: specification mPLUG-2,
section 12; the released code starts from an all-zero position table by mistake, this does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel
from plait.models.mplug2.weights import embedding_rules, layer_rules, lm_head_rules, vision_rules
from plait.nn.positions import resize_absolute
from plait.nn.temporal import inflate_patches
from plait.weights.files import read_checkpoint
from plait.weights.keymap import Concat, Drop, KeyMap, Rename, Rule, prefixed
from plait.weights.singleton import Singleton
from plait.weights.state import LazyState, StateError, listed

_P = "{p:weight|bias}"
_NOT_HERE = "no part of what is started from this file"


def start_from(
    model: MPlug2PreTrainedModel, *, clip: str | Path | None = None, bert: str | Path | None = None
) -> list[str]:
    """Put the weights of a CLIP and a BERT checkpoint into a fresh model, in place; returns what stays fresh.

    clip, bert: files or directories that `plait.weights` reads. Raises ValueError where a file is of another model or
    another size.
    """
    network = model if isinstance(model, MPlug2Model) else model.model
    assert isinstance(network, MPlug2Model)
    found: dict[str, Tensor] = {}
    if clip is not None:
        found |= clip_weights(network, read_checkpoint(clip).state)
    if bert is not None:
        found |= bert_weights(network, read_checkpoint(bert).state)
    own = dict(network.named_parameters())
    wrong = [f"{n} {tuple(t.shape)} for {tuple(own[n].shape)}" for n, t in found.items() if t.shape != own[n].shape]
    if wrong:
        raise StateError(f"expected weights of the model's size, got {listed(wrong)}", wrong)
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    update: Any = getattr(model, "update_teacher", None)
    if getattr(model, "teacher", None) is not None and update is not None:
        update(0.0)
    return [name for name in own if name not in found]


def clip_weights(network: MPlug2Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the vision encoder by their native names."""
    is_released = "visual.conv1.weight" in state
    rules = prefixed(vision_rules(flat=True), "visual.", "vision.") if is_released else _transformers_clip()
    named = LazyState({key.removeprefix("vision_model."): partial(state.__getitem__, key) for key in state})
    native, _ = KeyMap([*rules, Drop("{_:.*}", _NOT_HERE)]).forward(named)
    if "vision.class_embedding" not in native:
        raise ValueError(f"expected a CLIP checkpoint with a ViT, got keys such as {listed(list(state)[:3])}")
    found = {name: native[name] for name in native}
    layers = _depth(found, "vision.layers.")
    if layers != len(network.vision.layers):
        raise ValueError(f"expected a ViT of {len(network.vision.layers)} layers, got {layers}")
    kernel = network.vision.patch_embedding.kernel_size[0]
    patches = found["vision.patch_embedding.weight"]
    found["vision.patch_embedding.weight"] = inflate_patches(patches[:, :, 0], kernel)
    table = found["vision.position_embedding"]
    found["vision.position_embedding"] = resize_absolute(table, network.vision.grid, mode="bilinear")
    return found


def _transformers_clip() -> list[Rule]:
    """Rules of transformers' CLIP without `vision_model.`, whose queries, keys and values lie apart."""
    theirs, ours = "encoder.layers.{i}.", "vision.layers.{i}."
    qkv = tuple(f"{theirs}self_attn.{letter}_proj.{_P}" for letter in "qkv")
    embeddings = "embeddings."
    return [
        Rename(f"{embeddings}class_embedding", "vision.class_embedding"),
        Rename(f"{embeddings}position_embedding.weight", "vision.position_embedding"),
        Singleton(f"{embeddings}patch_embedding.weight", "vision.patch_embedding.weight", native_dims=(2,)),
        Rename(f"pre_layrnorm.{_P}", "vision.pre_norm.{p}"),
        Rename(f"post_layernorm.{_P}", "vision.post_norm.{p}"),
        Concat(qkv, f"{ours}attn.qkv.{{p}}"),
        Rename(f"{theirs}self_attn.out_proj.{_P}", f"{ours}attn.out_proj.{{p}}"),
        Rename(f"{theirs}layer_norm1.{_P}", f"{ours}attn_norm.{{p}}"),
        Rename(f"{theirs}layer_norm2.{_P}", f"{ours}mlp_norm.{{p}}"),
        Rename(f"{theirs}mlp.fc1.{_P}", f"{ours}fc1.{{p}}"),
        Rename(f"{theirs}mlp.fc2.{_P}", f"{ours}fc2.{{p}}"),
    ]


def bert_weights(network: MPlug2Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of everything that begins as a part of BERT, by native names."""
    older = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    named = {re.sub("|".join(older), lambda m: older[m[0]], key).removeprefix("bert."): key for key in state}
    rules = [
        *prefixed(embedding_rules(), "embeddings.", "embeddings."),
        *layer_rules("encoder.layer.{i}.", "layers.{i}."),
        *prefixed(lm_head_rules("head.", "embeddings."), "cls.predictions."),
        Drop("{_:.*}", _NOT_HERE),
    ]
    native, _ = KeyMap(rules).forward(LazyState({n: partial(state.__getitem__, key) for n, key in named.items()}))
    layers = _depth(native, "layers.")
    if not layers or "embeddings.token_embedding.weight" not in native:
        raise ValueError(f"expected a BERT checkpoint, got keys such as {listed(list(state)[:3])}")
    config, own = network.config, dict(network.named_parameters())
    text, universal = config.num_text_layers, config.num_universal_layers
    wanted = max(text + universal, config.num_decoder_layers, config.num_fusion_layers)
    if wanted > layers:
        raise ValueError(f"expected a BERT of at least {wanted} layers, got {layers}")
    places: dict[str, str] = {}
    for name in own:
        part, _, inner = name.partition(".")
        layer = re.fullmatch(r"(?:stacks\.\w+\.|layers\.)(\d+)\.(.*)", inner)
        if layer is not None and part in ("text", "universal", "fusion", "decoder"):
            first = {"universal": text, "fusion": layers - config.num_fusion_layers}.get(part, 0)
            places[name] = f"layers.{first + int(layer[1])}.{layer[2]}"
        elif part in ("text", "decoder") and inner.startswith(("embeddings.", "head.")):
            places[name] = inner
        elif part == "masked_lm":
            places[name] = f"head.{inner}"
    return {name: native[place] for name, place in places.items() if place in native and not _narrowed(name, network)}


def _narrowed(name: str, network: MPlug2Model) -> bool:
    """Whether a weight belongs to an MLP that has not BERT's width: that of universal layers apart."""
    return ".fc" in name and name.startswith("universal.") and network.config.universal_sharing == "apart"


def _depth(keys: Iterable[str], prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in keys)
    return max((int(match[1]) + 1 for match in found if match), default=0)
