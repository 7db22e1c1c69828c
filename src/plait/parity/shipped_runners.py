"""Runners of the golden cases that ship with Plait, one small case per family, for `plait doctor`.

official weights -> the family's key rules -> the module of the whole model that they lead to -> our values

A case's system is the `model_type` under which `plait.models.auto` knows its family, so nothing here names one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from plait.models import auto
from plait.nn.abstractor import AbstractorLayer
from plait.nn.adapters import Adapted
from plait.nn.attention import attention_function
from plait.nn.layers import RMSNorm
from plait.parity.cases import Case
from plait.parity.runners import RunFunction, Tolerance, runner
from plait.routing import PerModality, Route
from plait.weights.files import load_strict, read_checkpoint
from plait.weights.keymap import KeyMap, Rename

Outputs = dict[str, Any]

SHIPPED = Path(__file__).parent / "shipped"
"""One small golden case per family: copies of tests/goldens."""
GRADIENTS = {"out.grad*": Tolerance(1e-5, 1e-3)}


def shipped(kind: str, **options: Any) -> Callable[[RunFunction], RunFunction]:
    """Register the decorated function for `kind` in the system whose shipped case has this name.

    Args:
        kind: name of the case; exactly one system may have it.
        options: of `plait.parity.runners.runner`.
    """
    (place,) = SHIPPED.glob(f"*/{kind}")
    return runner(place.parent.name, kind, **options)


def family_of(case: Case) -> ModuleType:
    """The family of a case's system."""
    return import_module(auto.FAMILIES[case.system])


def key_map(case: Case, config: Any, **options: Any) -> KeyMap:
    """Official names <-> those of the family's model of this configuration.

    Args:
        case: whose system names the family.
        config: of that family.
        options: of its `key_map`.
    """
    weights = import_module(f"{auto.FAMILIES[case.system].removesuffix('.family')}.weights")
    return weights.key_map(config, **options)


def held(case: Case, model: nn.Module, rules: KeyMap) -> Any:
    """The module inside `model` that the case's weights lead to, strictly filled with them.

    Args:
        case: with official weights of one part.
        model: a whole one, on the meta device since only this part needs memory.
        rules: official names <-> its own.

    Returns:
        The part, on the device and in the type of the run, in evaluation mode.
    """
    native, _ = rules.forward(case.weights())
    path = _above(native)
    part = model.get_submodule(path.rstrip("."))
    load_strict(part, {key.removeprefix(path): native[key] for key in native}, assign=True)
    return part.to(case.device, case.dtype).eval()


def gradients(case: Case, model: nn.Module, rules: KeyMap) -> Outputs:
    """Gradients of the part that `held` filled, by official name below what all keys of the case begin with."""
    official = rules.backward({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    return {f"out.grad.{name.removeprefix(_above(case.weights()))}": official[name] for name in official}


def _above(names: Iterable[str]) -> str:
    """The modules that all names lie in: "a.b." for a.b.weight and a.b.bias."""
    # Column by column from the left, while all names agree; the last part of a name is a tensor, never a module.
    columns = zip(*(name.split(".")[:-1] for name in names))
    return "".join(f"{column[0]}." for column in takewhile(lambda column: len(set(column)) == 1, columns))


def ramp(like: Tensor) -> Tensor:
    """The cotangent of many cases: -1 to 1 in memory order."""
    return torch.linspace(-1, 1, like.numel(), dtype=like.dtype, device=like.device).view_as(like)


@shipped("forward_text")
@torch.no_grad()
def forward_text(case: Case) -> Outputs:
    """A whole model through the public loader; text alone.

    What `plait.models.auto.from_official` does is so checked too, not only the modules below it.
    """
    checkpoint = replace(read_checkpoint(case.path / "weights.safetensors"), config=dict(case.config))
    model, _ = auto.from_official(checkpoint, dtype=case.dtype, device=case.device, official=case.official)
    model.set_attn_implementation(case.attn)
    encoded = model.encode({"text": case.inputs["src_tokens"]}, output_hidden_states=True)
    adapted = encoded.adapted["text"]
    return hidden(encoded) | {
        "out.adapter.x": adapted.x,
        "out.adapter.padding_mask": padding(adapted),
        "out.adapter.attn_bias": adapted.biases[0][0],
        "out.features": encoded.features["text"],
        "out.embedding": model.project(encoded.features["text"], "text"),
    }


def hidden(encoded: Any) -> Outputs:
    """The stored names of the states after every layer."""
    return {f"out.hidden.{i}": x for i, x in enumerate(encoded.hidden)}


def padding(adapted: Adapted) -> Tensor:
    """(batch, seq) bool, True = padding, as the official code counts."""
    return adapted.x.new_zeros(adapted.x.shape[:2], dtype=torch.bool) if adapted.mask is None else ~adapted.mask


@shipped("temporal_block")
def temporal_block(case: Case) -> Outputs:
    """One block of a video encoder, whose number the keys tell.

    Official states are (positions, batch, dim); ours have the batch first, hence the two transpositions.
    """
    family, c = family_of(case), case.config
    count = 1 + max(int(number) for key in case.weights() for number in re.findall(r"\.(\d+)\.", key))
    config = family.CONFIG(vision={"dim": c["d_model"], "num_heads": c["n_head"], "num_layers": count})
    with torch.device("meta"):
        model = family.BASE_MODEL(config)
    rules = key_map(case, config, base="")
    block = held(case, model, rules)
    y = block(case.inputs["x"].transpose(0, 1), c["T"], attention_function(case.attn)).transpose(0, 1)
    (y * case.inputs["cotangent"]).sum().backward()
    return {"out.y": y} | gradients(case, model, rules)


@shipped("abstractor", tolerance=GRADIENTS)
def abstractor(case: Case) -> Outputs:
    """Learned queries over the features of images, (batch, positions, dim), or clips, (batch, frames, ...).

    The inner values of the first layer are stored for images alone.
    """
    family, shapes = family_of(case), {key: tuple(value.shape) for key, value in case.weights().items()}
    section = case.config["visual_abstractor_config"]
    tower = {"hidden_size": section["hidden_size"], "num_attention_heads": section["num_attention_heads"]}
    config = family.CONFIG.from_official({**case.config, "vision_config": tower}, shapes)
    with torch.device("meta"):
        model = family.BASE_MODEL(config)
    rules = key_map(case, config)
    part = held(case, model, rules)
    attend, features = attention_function(case.attn), case.inputs["encoder_hidden_states"]
    mask = case.inputs.get("encoder_attention_mask")
    mask, states = None if mask is None else mask != 0, []
    last = part(features, attend, mask, states)
    outputs = {"out.last_hidden_state": last, "out.pooler_output": states[-1][:, 0]}
    if features.dim() == 3:
        first: AbstractorLayer = part.layers[0]
        q = first.query_norm(part.queries.expand(len(features), -1, -1))
        attended = first.attend_to(q, features, attend, None, mask)
        outputs |= {
            "out.layer0.norm1": q,
            "out.layer0.normk": first.key_norm(features),
            "out.layer0.attention": attended,
            "out.layer0.mlp": first.mlp(first.mlp_norm(q + first.out_proj(attended))),
            "out.layer0.output": states[0],
        }
    if "grad_target" in case.inputs:
        (last * case.inputs["grad_target"]).sum().backward()
        outputs |= gradients(case, model, rules)
    return {name: x.detach() for name, x in outputs.items()}


@shipped("multiway_modules")
@torch.no_grad()
def multiway_modules(case: Case) -> Outputs:
    """Norm, projection and fused projection with a way for text and one for images.

    Official `multiway.0` is text, `multiway.1` images; an `idx` input tells the modality of every position.
    """
    dim, x = case.config["hidden_size"], case.inputs["x"]
    ways = {"text": ("text",), "visual": ("image",)}
    builds = {
        "norm": lambda: RMSNorm(dim, case.config["rms_norm_eps"]),
        "lin": lambda: nn.Linear(dim, dim, bias=False),
        "fused": lambda: nn.Linear(dim, case.config["fused_out"]),
    }
    module = nn.ModuleDict({name: PerModality(build, ways) for name, build in builds.items()})
    official, native = "{m:\\w+}.multiway.%d.{p:weight|bias}", "{m:\\w+}.%s.{p:weight|bias}"
    rules = KeyMap([Rename(official % number, native % way) for number, way in enumerate(ways)])
    load_strict(module, rules.forward(case.weights())[0])
    module.to(case.device, case.dtype)
    routes = {
        name: Route.interleaved(ids.cpu(), ("text", "image")).to(case.device)
        for name, ids in case.inputs.items()
        if name.startswith("idx")
    }
    return {f"out.{m}.{name}": module[m](x, route) for m in module for name, route in routes.items()}
