"""Golden cases of mPLUG-Owl2's parts: vision tower, abstractor, routed modules, single layers, key lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plait.models.mplug_owl2.config import MPlugOwl2Config, abstractor_sizes, vision_sizes
from plait.models.mplug_owl2.model import Abstractor, Owl2VisionTower
from plait.models.mplug_owl2.weights import MEGATRON, abstractor_rules, key_map
from plait.nn.abstractor import AbstractorLayer
from plait.nn.attention import attention_function
from plait.nn.decoder import Pass, RoutedDecoderLayer, eager_attention, through
from plait.nn.positions import inverse_frequencies, rotary_tables, sincos_1d, sincos_2d
from plait.nn.vit import vision_rules
from plait.parity.cases import Case
from plait.parity.runners import runner
from plait.routing import Route
from plait.weights.files import load_strict
from plait.weights.keymap import Drop, KeyMap

from .key_lists import both_ways, read_list

Outputs = dict[str, Any]
Part = TypeVar("Part", bound=nn.Module)
WAYS = {"text": ("text",), "visual": ("image",)}


def loaded(case: Case, module: Part, rules: KeyMap) -> Part:
    """The module with the case's weights, in the type and place of the run."""
    native, _ = rules.forward(case.weights())
    load_strict(module, native)
    return module.to(case.device, case.dtype).eval()


@runner("mplug_owl2", "vision_")
@torch.no_grad()
def vision(case: Case) -> Outputs:
    tower = loaded(case, Owl2VisionTower(vision_sizes(case.config), official=case.official), KeyMap(vision_rules()))
    attend = attention_function(case.attn)
    outputs: Outputs = {}
    for name, pixels in case.inputs.items():
        tail = name.removeprefix("pixel_values")
        hidden: list[Tensor] = []
        last = tower(pixels, attend, hidden)
        first: Any = tower.layers[0]
        outputs |= {f"out.hidden{tail}.{i}": x for i, x in enumerate(hidden)}
        outputs |= {
            f"out.embeddings{tail}": hidden[0],
            f"out.attn0{tail}": first.attn(first.attn_norm(hidden[0]), attend),
            f"out.last_hidden_state{tail}": last,
            f"out.pooler_output{tail}": last[:, 0] if tower.post_norm is None else tower.post_norm(last[:, 0]),
        }
        side = pixels.shape[-1] // tower.sizes.patch_size
        outputs[f"out.pos{tail}"] = tower.positions(side, side)
    return outputs


@runner("mplug_owl2", "abstractor_")
@torch.no_grad()
def abstractor(case: Case) -> Outputs:
    sizes = abstractor_sizes(case.config)
    with_cls = bool(case.config.get("use_cls_token", True))
    dim, out_dim = case.config["hidden_size"], case.config["language_hidden_size"]
    model = Abstractor(dim, out_dim, sizes, with_cls=with_cls)
    config = MPlugOwl2Config(vision={"dim": dim, "use_cls_token": with_cls}, abstractor=sizes)
    model = loaded(case, model, KeyMap(abstractor_rules(config)))
    attend = attention_function(case.attn)
    features = case.inputs["encoder_hidden_states"]
    hidden: list[Tensor] = []
    last = model(features, attend, hidden)
    first = model.layers[0]
    assert isinstance(first, AbstractorLayer)
    q = first.query_norm(model.queries.expand(len(features), -1, -1))
    return {
        **{f"out.hidden.{i + 1}": x for i, x in enumerate(hidden)},
        "out.attn0_context": first.attend_to(q, features, attend, model.tables(features.shape[1])),
        "out.mlp0": first.mlp(q),
        "out.last_hidden_state": last,
        "out.pooler_output": hidden[-1][:, 0],
    }


@runner("mplug_owl2", "sincos_tables")
def sincos_tables(case: Case) -> Outputs:
    rows, step = case.stored_inputs["rows"], case.config["step"]
    shapes = {name: spec.shape for name, spec in case.outputs.items()}
    grid = next((int(found[1]) for name in shapes if (found := re.search(r"k_pos_\d+_(\d+)", name))), 32)
    outputs: Outputs = {}
    for name, (count, width) in shapes.items():
        big = re.fullmatch(r"out\.([qk])_pos_(\d+)_(\d+)(_cls)?", name)
        if big and big[1] == "q":
            table = sincos_1d(int(big[2]), torch.arange(int(big[3])).float().numpy())[:, ::step]
        elif big:
            table = sincos_2d(int(big[2]), int(big[3]), with_cls=big[4] is not None)[rows]
        elif name == "out.k_pos_nocls":
            table = sincos_2d(case.config["nocls_dim"], grid)[rows - 1]
        elif name.startswith("out.q_small"):
            table = sincos_1d(width, torch.arange(count).float().numpy())
        else:
            with_cls = name.endswith("_cls")
            table = sincos_2d(width, round((count - with_cls) ** 0.5), with_cls=with_cls)
        outputs[name] = torch.from_numpy(table.copy())
    return outputs


def layer_of(case: Case, is_qwen: bool) -> tuple[RoutedDecoderLayer, MPlugOwl2Config]:
    """The single decoder layer of a case and a configuration that describes it."""
    config = MPlugOwl2Config.from_official(case.config, official=case.official)
    assert config.num_kv_heads is not None and config.head_dim is not None and config.ways is not None
    layer = RoutedDecoderLayer(
        config.dim, config.num_heads, config.num_kv_heads, config.head_dim, config.mlp_dim, config.ways, config.routed,
        eps=config.eps, qkv_bias=config.qkv_bias, out_bias=config.out_bias, mlp_bias=config.mlp_bias,
    )  # fmt: skip
    prefix = "transformer.h.0." if is_qwen else "model.layers.0."
    state = {prefix + key.removeprefix("block."): value for key, value in case.weights().items()}
    native, _ = key_map(config, base="").forward(state)
    load_strict(layer, {key.removeprefix("decoder.layers.0."): native[key] for key in native})
    return layer.to(case.device, case.dtype).eval(), config


@runner("mplug_owl2", "llama_layer")
@torch.no_grad()
def llama_layer(case: Case) -> Outputs:
    return layer_outputs(case, is_qwen=False)


@runner("mplug_owl2", "qwen_layer")
@torch.no_grad()
def qwen_layer(case: Case) -> Outputs:
    return layer_outputs(case, is_qwen=True)


def layer_outputs(case: Case, is_qwen: bool) -> Outputs:
    from transformers.cache_utils import DynamicCache

    layer, config = layer_of(case, is_qwen)
    x, ids, keys = case.inputs["hidden"], case.inputs["modality"], case.inputs["attention_mask"]
    cache = DynamicCache()
    run, weights = prefill_pass(case, config, keys, cache)
    route = Route.interleaved(ids.cpu(), ("text", "image")).to(case.device)
    run.route, run.order, run.inverse = route.grouped(), route.order, route.inverse
    y = run.to_layers(x)
    normed = through(layer.attn_norm, y, run.route)
    attended = layer.attn(normed, run)
    named = {"out.normed": normed, "out.attn": attended}
    named |= {f"out.{n}_proj": through(getattr(layer.attn, f"{n}_proj"), normed, run.route) for n in "qkv"}
    outputs = {name: run.to_sequence(value) for name, value in named.items()}
    outputs["out.qkv"] = torch.cat([outputs[f"out.{n}_proj"] for n in "qkv"], dim=-1)
    outputs["out.attn_weights"] = weights[-1]
    cache = DynamicCache()
    run.cache = cache
    outputs["out.out"] = run.to_sequence(layer(y, run))
    outputs |= {f"out.{n}_cache": value.clone() for n, value in zip("kv", first_layer(cache))}
    cos, sin = tables(config, torch.tensor([[x.shape[1]]], device=case.device), case.dtype)
    step = Pass((x.shape[0], 1), cos, sin, eager_attention, cache=cache)
    outputs["out.decode_out"] = layer(case.inputs["next_hidden"], step)
    outputs["out.decode_k"] = first_layer(cache)[0]
    if is_qwen:
        outputs |= {k: v.transpose(1, 2) for k, v in outputs.items() if k.endswith(("_cache", "decode_k"))}
    return outputs


def first_layer(cache: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of the first layer, (batch, heads, seq, head_dim)."""
    return cache.layers[0].keys, cache.layers[0].values


def tables(config: MPlugOwl2Config, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of a case's layer."""
    assert config.rope_parameters is not None and config.head_dim is not None
    inv_freq = inverse_frequencies(config.head_dim, config.rope_parameters["rope_theta"], positions.device)
    return rotary_tables(positions, inv_freq, dtype)


def prefill_pass(case: Case, config: MPlugOwl2Config, keys: Tensor, cache: Any) -> tuple[Pass, list[Tensor]]:
    """The first pass over a case's layer, and a list that collects its attention weights."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    batch, seq = keys.shape
    cos, sin = tables(config, torch.arange(seq, device=case.device)[None], case.dtype)
    visible = torch.ones(seq, seq, dtype=torch.bool, device=case.device).tril() & (keys[:, None, None] != 0)
    lowest = torch.finfo(case.dtype).min
    mask = torch.zeros(visible.shape, dtype=case.dtype, device=case.device).masked_fill(~visible, lowest)
    chosen = ALL_ATTENTION_FUNCTIONS.get_interface(case.attn, eager_attention)
    weights: list[Tensor] = []

    def attend(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        weights.append(eager_attention(*args, **kwargs)[1])
        return chosen(*args, **kwargs)

    return Pass((batch, seq), cos, sin, attend, mask=mask, cache=cache), weights


@runner("mplug_owl2", "keys")
def keys(case: Case) -> Outputs:
    outputs: Outputs = {}
    for name, path in case.key_lists.items():
        document = read_list(path)
        if "mapping" in document:
            outputs[name] = megatron_agrees(document["mapping"])
        else:
            outputs[name] = both_ways(document["keys"], key_map(config_of(document["keys"])))
    return outputs


def megatron_agrees(mapping: Mapping[str, Any]) -> bool:
    """Whether our names for the tensors of a Megatron checkpoint are the listed ones, the rest being explained."""
    rules = key_map(MPlugOwl2Config())
    for official, path in mapping.items():
        if path == "computed":
            if not isinstance(rules.explain([official])[official], Drop):
                return False
        elif next(iter(MEGATRON.forward({".".join(path[1:]): torch.empty(0)})[0])) != official:
            return False
    return True


def config_of(shapes: Mapping[str, list[int]]) -> MPlugOwl2Config:
    """A configuration with the sizes that a published key list shows."""
    is_qwen = any(key.startswith("transformer.h.") for key in shapes)
    outer = "transformer." if is_qwen else "model."
    queries = shapes[f"{outer}visual_abstractor.query_embeds"]
    patches = shapes[f"{outer}visual_abstractor.encoder.layers.0.crossattention.attention.k_pos_embed"][0]
    with_cls = f"{outer}vision_model.embeddings.cls_token" in shapes
    multiway = not is_qwen or any(".c_attn.multiway." in key for key in shapes)
    return MPlugOwl2Config(
        routed=(("q", "k", "v") if is_qwen else ("norm", "k", "v")) if multiway else (),
        trained_length=8192 if is_qwen else None,
        vision={"dim": queries[2], "use_cls_token": with_cls},
        abstractor={"num_queries": queries[1], "grid_size": round((patches - with_cls) ** 0.5)},
    )
