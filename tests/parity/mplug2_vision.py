"""Golden cases of mPLUG-2's vision encoder: blocks, whole encoders, and what is done to CLIP's weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from plait.models.mplug2.weights import clip_layer_rules, vision_rules
from plait.nn.attention import attention_function
from plait.nn.bert import causal_bias
from plait.nn.positions import resize_absolute
from plait.nn.temporal import ClipBlock, DualVisionEncoder, LocalTemporal, inflate_patches
from plait.parity.cases import Case
from plait.parity.runners import runner
from plait.parity.shipped_runners import ramp
from plait.weights.keymap import Drop, KeyMap, Rename, prefixed

from .mplug2_modules import fill, gradients

Outputs = dict[str, Any]
VISUAL = "visual_encoder.visual."


@runner("mplug2", "local_temporal")
def local_temporal(case: Case) -> Outputs:
    module = LocalTemporal(case.config["d_model"])
    found = re.match(r".*resblocks\.(\d+)\.lmhra(\d)\.", next(iter(case.weights())))
    if found is None:
        raise ValueError(f"expected keys of a local temporal module, got {', '.join(case.weights())}")
    holder = at(module, f"layers.{found[1]}.temporal{found[2]}.")
    rules = KeyMap(prefixed(vision_rules(flat=False), VISUAL))
    fill(case, holder, rules)
    y = module(case.inputs["x"].permute(0, 2, 3, 4, 1).flatten(2, 3)).unflatten(2, case.inputs["x"].shape[3:])
    y = y.permute(0, 4, 1, 2, 3)
    (y * case.inputs["cotangent"]).sum().backward()
    return {"out.y": y} | gradients(case, holder, rules, found[0])


def at(module: nn.Module, path: str) -> nn.Module:
    """A module with `module` in it under `path`, which ends with a dot."""
    for name in reversed(path.rstrip(".").split(".")):
        module = nn.ModuleDict({name: module})
    return module


def vision_encoder(case: Case, *, temporal: bool) -> tuple[DualVisionEncoder, KeyMap]:
    """The vision encoder of a case."""
    c = case.config
    down = bool(c.get("temporal_downsampling"))
    encoder = DualVisionEncoder(
        c["vision_width"],
        c["vision_heads"],
        c["vision_layers"],
        patch_size=c["vision_patch_size"],
        image_size=c["image_res"],
        temporal=temporal,
        temporal_kernel=3 if down else 1,
        temporal_stride=c.get("temporal_stride", 2) if down else 1,
    )
    rules = KeyMap(prefixed(vision_rules(flat=not temporal), VISUAL))
    fill(case, encoder, rules)
    return encoder, rules


@runner("mplug2", "video_encoder")
def video_encoder(case: Case) -> Outputs:
    encoder, rules = vision_encoder(case, temporal=True)
    attend, hidden = attention_function(case.attn), []
    tokens = encoder(case.inputs["video"], attend, hidden=hidden)
    (tokens * ramp(tokens)).sum().backward()
    lengths = [name.removeprefix("video_") for name in case.inputs if name.startswith("video_")]
    return {
        "out.tokens": tokens,
        "out.after_ln_pre": hidden[0],
        "out.after_block0": hidden[1].transpose(0, 1),
        "out.after_blocks": hidden[-1].transpose(0, 1),
        **{f"out.tokens_{n}": encoder(case.inputs[f"video_{n}"], attend) for n in lengths},
        **gradients(case, encoder, rules, VISUAL),
    }


@runner("mplug2", "image_encoder")
def image_encoder(case: Case) -> Outputs:
    encoder, rules = vision_encoder(case, temporal=False)
    hidden: list[Tensor] = []
    tokens = encoder(case.inputs["image"][:, :, None], attention_function(case.attn), hidden=hidden)
    (tokens * ramp(tokens)).sum().backward()
    projection = case.weights()[f"{VISUAL}proj"].to(hidden[-1])
    return {"out.tokens": tokens, "out.projected_all_tokens": hidden[-1] @ projection} | gradients(
        case, encoder, rules, VISUAL
    )


@runner("mplug2", "clip_text_tower")
@torch.no_grad()
def clip_text_tower(case: Case) -> Outputs:
    """CLIP's text tower, which no task runs, out of the blocks of the vision encoder."""
    sizes, dim = case.config["xclip"], case.config["xclip"]["transformer_width"]
    layers = [ClipBlock(dim, sizes["transformer_heads"]) for _ in range(sizes["transformer_layers"])]
    norm = nn.LayerNorm(dim)
    tower = nn.ModuleDict({"layers": nn.ModuleList(layers), "norm": norm})
    prefix = "visual_encoder."
    rules = KeyMap(
        [
            *prefixed(clip_layer_rules("transformer.resblocks.{i}.", "layers.{i}."), prefix),
            Rename(f"{prefix}ln_final.{{p:weight|bias}}", "norm.{p}"),
            Drop(f"{prefix}{{_:.*}}", "the vision encoder, and tensors that belong to no module"),
        ]
    )
    fill(case, tower, rules)
    weights = {name: tensor.to(case.device, case.dtype) for name, tensor in case.weights().items()}
    ids = case.inputs["text"]
    x = weights[f"{prefix}token_embedding.weight"][ids] + weights[f"{prefix}positional_embedding"][: ids.shape[1]]
    bias = causal_bias(ids.shape[1], ids.shape[1], x)
    for layer in layers:
        x = layer(x, None, attention_function(case.attn), bias)
    x = norm(x)[torch.arange(len(x), device=x.device), ids.argmax(-1)]
    return {"out.text_features": x @ weights[f"{prefix}text_projection"]}


@runner("mplug2", "patch_embed_inflation")
def patch_embed_inflation(case: Case) -> Outputs:
    weight = case.inputs["conv2d"]
    made = {}
    for frames in case.config["kernel_t"]:
        made[f"out.center_{frames}"] = inflate_patches(weight, frames)
        made[f"out.mean_{frames}"] = inflate_patches(weight, frames, "mean")
    return made


@runner("mplug2", "pos_embed_resize")
def pos_embed_resize(case: Case) -> Outputs:
    table, modes = case.inputs["pos_embed"], ("bilinear", "bicubic")
    return {f"out.{m}_{n}": resize_absolute(table, n, mode=m) for m in modes for n in case.config["new_grids"]}
