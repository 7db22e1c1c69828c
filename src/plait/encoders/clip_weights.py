"""A CLIP vision tower of transformers as the towers of mPLUG-Owl and mPLUG-Owl2 begin with it.

directory with config.json and weights -> sizes, weights in our layout
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.blocks.position_interpolation import resize_absolute
from plait.weights.files import read_checkpoint

_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "attn_norm", "layer_norm2": "mlp_norm",
    "mlp.fc1": "fc1", "mlp.fc2": "fc2",
}  # fmt: skip


def clip_tower(directory: Path, image_size: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes (dim, num_heads, num_layers, mlp_dim, image_size, patch_size, activation, eps) and weights of a CLIP tower.

    directory: of transformers, with a vision model or a whole CLIP; the position table is resized to `image_size`
    pixels. Projections of queries, keys and values are interleaved per head. Raises ValueError for a directory that
    holds no CLIP, and for a size that patches do not fill.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"expected a transformers directory with config.json and a CLIP, got {directory}")
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    try:
        return _converted(written.get("vision_config", written), directory, image_size)
    except KeyError as error:
        kind = written.get("model_type")
        raise ValueError(
            f"expected a CLIP vision tower in {directory}, got {kind!r} without {error.args[0]}; pass another directory"
        ) from error


def _converted(
    written: dict[str, Any], directory: Path, image_size: int | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    sizes: dict[str, Any] = dict(
        dim=written["hidden_size"], num_heads=written["num_attention_heads"], num_layers=written["num_hidden_layers"],
        mlp_dim=written["intermediate_size"], image_size=image_size or written["image_size"],
        patch_size=written["patch_size"], activation=written.get("hidden_act", "quick_gelu"),
        eps=written.get("layer_norm_eps", 1e-5),
    )  # fmt: skip
    side, patch = sizes["image_size"], sizes["patch_size"]
    if side <= 0 or side % patch:
        raise ValueError(f"expected images of a positive multiple of {patch} pixels, got {side}")
    found = read_checkpoint(directory).state
    root = "vision_model." if any(key.startswith("vision_model.") for key in found) else ""
    state = {key.removeprefix(root): partial(found.__getitem__, key) for key in found if key.startswith(root)}
    emb = {name: state[f"embeddings.{name}"]() for name in ("class_embedding", "patch_embedding.weight")}
    table = resize_absolute(state["embeddings.position_embedding.weight"](), side // patch)
    made = {
        "cls_embedding": emb["class_embedding"][None, None],
        "patch_embedding.weight": emb["patch_embedding.weight"],
        "position_embedding": table[None],
    }
    for kind in ("weight", "bias"):
        made |= {
            f"pre_norm.{kind}": state[f"pre_layrnorm.{kind}"](),
            f"post_norm.{kind}": state[f"post_layernorm.{kind}"](),
        }
        for i in range(sizes["num_layers"]):
            theirs, ours = f"encoder.layers.{i}.", f"layers.{i}."
            heads = [
                state[f"{theirs}self_attn.{n}_proj.{kind}"]().unflatten(0, (sizes["num_heads"], -1)) for n in "qkv"
            ]
            made[f"{ours}attn.qkv.{kind}"] = torch.stack(heads, dim=1).flatten(0, 2)
            for old, new in _CLIP_LAYER.items():
                made[f"{ours}{new}.{kind}"] = state[f"{theirs}{old}.{kind}"]()
    return sizes, made
