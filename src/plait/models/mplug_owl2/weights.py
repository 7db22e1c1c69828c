"""Official mPLUG-Owl2 and Owl2.1 weights <-> Plait's layout, both ways bit for bit.

official state (Llama or Qwen names) -> KeyMap -> strict load        Megatron, LoRA extras -> official names first

LoRA outputs of the released script: a base, adapters under official names, and what trained in full beside them.

official base state + `non_lora_trainables.bin` over it, then scale * B A per adapted weight -> official state

A checkpoint for images of another size, or with another number of queries, that answers nearly as before.

position table: bicubic; queries: the nearest ones; sine tables: stretched to the grid they were trained on

Build mPLUG-Owl2 models from weights on disk: official directories and files, Megatron, and model directories.

checkpoint -> config (variant and table sizes read off the keys) -> model on the meta device -> strict load
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl2.config import MPlugOwl2Config, is_official_config
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration, position_tables, stretched
from plait.nn.positions import inverse_frequencies, resize_absolute
from plait.nn.vit import shared_abstractor_rules, vision_rules
from plait.weights.files import Checkpoint, LazyState, StateError, listed, load_strict, meta_state, read_checkpoint
from plait.weights.keymap import Drop, KeyMap, Rename, Rule, Split, prefixed
from plait.weights.lora import read_adapter

_P = "{p:weight|bias}"


def is_qwen(keys: Iterable[str]) -> bool:
    """Whether these are official keys of Owl2.1."""
    return any(key.startswith("transformer.h.") for key in keys)


def key_map(config: MPlugOwl2Config, *, base: str = "model.") -> KeyMap:
    """Rules between an official checkpoint and `MPlugOwl2ForConditionalGeneration` of `config`.

    base: prefix of the `MPlugOwl2Model` inside the target. A config with trained_length is Owl2.1's layout.
    """
    qwen = config.trained_length is not None
    outer = "transformer." if qwen else "model."
    layer = _qwen_layer(config) if qwen else _llama_layer(config)
    rules: list[Rule] = [
        *prefixed(
            layer, official="transformer.h.{i}." if qwen else "model.layers.{i}.", native=f"{base}decoder.layers.{{i}}."
        ),
        *prefixed(vision_rules(), official=f"{outer}vision_model.", native=f"{base}vision."),
        *prefixed(abstractor_rules(config), official=f"{outer}visual_abstractor.", native=f"{base}abstractor."),
        Rename("transformer.wte.weight" if qwen else "model.embed_tokens.weight", f"{base}token_embedding.weight"),
        Rename("transformer.ln_f.weight" if qwen else "model.norm.weight", f"{base}decoder.norm.weight"),
        Rename("lm_head.weight", "lm_head.weight"),
        Drop(
            "model.layers.{i}.self_attn.rotary_emb.inv_freq",
            "rotary frequencies, which the configuration determines",
            restore=None if qwen else partial(_restore_frequencies, config),
        ),
        Drop("transformer.h.{i}.attn.masked_bias", "a constant of an older release"),
        Drop("transformer.rotary_emb.inv_freq", "rotary frequencies, which the configuration determines"),
    ]
    return KeyMap(rules)


def _ways(config: MPlugOwl2Config) -> dict[int, str]:
    """Official index of a way -> our name: 0 is text, 1 is the way of images."""
    named = config.ways or {}
    text = next(way for way, cell in named.items() if "text" in cell)
    image = next((way for way, cell in named.items() if "image" in cell), text)
    return {0: text, 1: image}


def _routed_names(official: str, native: str, part: str, config: MPlugOwl2Config) -> list[Rule]:
    if part not in config.routed:
        return [Rename(f"{official}.{_P}", f"{native}.{_P}")]
    return [Rename(f"{official}.multiway.{i}.{_P}", f"{native}.{way}.{_P}") for i, way in _ways(config).items()]


def _llama_layer(config: MPlugOwl2Config) -> list[Rule]:
    names = [
        ("input_layernorm", "attn_norm", "norm"),
        ("post_attention_layernorm", "mlp_norm", "norm"),
        *((f"self_attn.{n}_proj", f"attn.{n}_proj", n) for n in "qkv"),
        ("self_attn.o_proj", "attn.o_proj", "out"),
    ]
    rules = [rule for name in names for rule in _routed_names(*name, config)]
    return [*rules, Rename(f"mlp.{{n:gate_proj|up_proj|down_proj}}.{_P}", f"mlp.{{n}}.{_P}")]


def _qwen_layer(config: MPlugOwl2Config) -> list[Rule]:
    ways = _ways(config).items() if "q" in config.routed else [(None, "")]
    fused: list[Rule] = []
    for index, way in ways:
        source = "attn.c_attn" + ("" if index is None else f".multiway.{index}")
        tail = "" if index is None else f".{way}"
        fused.append(Split(f"{source}.{_P}", tuple(f"attn.{n}_proj{tail}.{_P}" for n in "qkv")))
    return [
        *fused,
        Rename(f"attn.c_proj.{_P}", f"attn.o_proj.{_P}"),
        Rename(f"ln_1.{_P}", f"attn_norm.{_P}"),
        Rename(f"ln_2.{_P}", f"mlp_norm.{_P}"),
        Rename(f"mlp.w1.{_P}", f"mlp.up_proj.{_P}"),
        Rename(f"mlp.w2.{_P}", f"mlp.gate_proj.{_P}"),  # w2 goes through the SiLU
        Rename(f"mlp.c_proj.{_P}", f"mlp.down_proj.{_P}"),
    ]


def abstractor_rules(config: MPlugOwl2Config) -> list[Rule]:
    """Rules of the abstractor alone."""
    tables = Drop(
        "encoder.layers.{i}.crossattention.attention.{n:q|k}_pos_embed",
        "a sine table, which the configuration determines",
        restore=partial(_restore_tables, config),
    )
    return [Rename("query_embeds", "queries"), tables, *shared_abstractor_rules()]


def _layers(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in state)
    return sorted({int(match[1]) for match in found if match})


def _restore_frequencies(config: MPlugOwl2Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert config.head_dim is not None and config.rope_parameters is not None
    made = inverse_frequencies(config.head_dim, config.rope_parameters["rope_theta"])
    layers = _layers(state, "model.decoder.layers.")
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": made for i in layers}


def _restore_tables(config: MPlugOwl2Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes, vision = config.abstractor_sizes, config.vision_sizes
    span = sizes.query_span or sizes.num_queries
    shape = (sizes.num_queries, span, sizes.grid_size, sizes.grid_size, vision.use_cls_token)
    tables = dict(zip("qk", map(torch.from_numpy, position_tables(vision.dim, shape))))
    return {
        f"encoder.layers.{i}.crossattention.attention.{n}_pos_embed": table
        for i in _layers(state, "layers.")
        for n, table in tables.items()
    }


def explain_keys(shapes: Mapping[str, Sequence[int]], config: MPlugOwl2Config) -> None:
    """Prove on shapes alone that a key list converts both ways. Raises StateError listing what does not."""
    official = meta_state({key: [shape, "float32"] for key, shape in shapes.items()})
    rules = key_map(config)
    native, _ = rules.forward(official)
    back = rules.backward(native)
    wrong = [key for key in official if key not in back or back[key].shape != official[key].shape]
    wrong += [key for key in back if key not in official]
    if wrong:
        raise StateError(f"expected every key back with its shape, got differences in {listed(wrong)}", wrong)


_MEGATRON_LAYER = (("self_attention.", "self_attn."),)
_MEGATRON_VISION = (
    ("self_attention.", "self_attn."),
    ("mlp.dense_h_to_4h.", "mlp.fc1."),
    ("mlp.dense_4h_to_h.", "mlp.fc2."),
)
_MEGATRON_ABSTRACTOR = (
    ("self_attention.q_proj.", "attention.query."),
    ("self_attention.k_proj.", "attention.key."),
    ("self_attention.v_proj.", "attention.value."),
    ("self_attention.o_proj.", "output.out_proj."),
    ("norm2.", "output.norm2."),
    ("mlp.", "output.mlp."),
)


def from_megatron(key: str) -> str:
    """The official name of a tensor of the Megatron training checkpoint (its nested keys joined by dots).

    Raises StateError for a name of another layout, such as that of a model-parallel shard.
    """
    part, _, rest = key.partition(".")
    if part == "language_model":
        return _megatron_language(key, rest)
    if part == "vision_model":
        rest, is_layer = _without(rest, "transformer.layers.")
        if is_layer:
            return "model.vision_model.encoder.layers." + _renamed(rest, _MEGATRON_VISION)
        names = {"position_embeddings": "position_embedding"}
        rest, is_final = _without(rest, "transformer.final_layernorm.")
        return f"model.vision_model.{'post_layernorm.' if is_final else 'embeddings.'}{names.get(rest, rest)}"
    if part == "vision_abstractor":
        rest, is_layer = _without(rest, "transformer.layers.")
        if is_layer:
            index, _, inner = rest.partition(".")
            return f"model.visual_abstractor.encoder.layers.{index}.crossattention." + _renamed(
                inner, _MEGATRON_ABSTRACTOR, True
            )
        return "model.visual_abstractor." + {"learnable_queries": "query_embeds"}.get(rest, rest)
    raise StateError(f"expected a Megatron key of language_model, vision_model or vision_abstractor, got {key}", [key])


def _megatron_language(key: str, rest: str) -> str:
    fixed = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "encoder.norm.weight": "model.norm.weight",
        "encoder.lm_head.weight": "lm_head.weight",
    }
    if rest in fixed:
        return fixed[rest]
    inner, is_layer = _without(rest, "encoder.layers.")
    if not is_layer:
        raise StateError(f"expected a Megatron key under encoder.layers, got {key}; merge its shards first", [key])
    return "model.layers." + _renamed(inner, _MEGATRON_LAYER)


def _without(text: str, prefix: str) -> tuple[str, bool]:
    return text.removeprefix(prefix), text.startswith(prefix)


def _renamed(text: str, names: Sequence[tuple[str, str]], at_start: bool = False) -> str:
    for theirs, ours in names:
        if text.startswith(theirs) if at_start else theirs in text:
            return text.replace(theirs, ours, 1)
    return text


def is_megatron(keys: Iterable[str]) -> bool:
    """Whether these are keys of the Megatron training checkpoint."""
    return any(key.startswith(("vision_abstractor.", "language_model.encoder.")) for key in keys)


def official_names(state: LazyState) -> LazyState:
    """The state under official names: a Megatron checkpoint renamed, what LoRA training saved beside it unwrapped."""
    keys = list(state)
    if is_megatron(keys):
        return LazyState({from_megatron(key): partial(state.__getitem__, key) for key in keys})
    names = {key: key.removeprefix("base_model.") for key in keys}
    if any(name.startswith("model.model.") for name in names.values()):
        names = {key: name.removeprefix("model.") for key, name in names.items()}
    if all(key == name for key, name in names.items()):
        return state
    return LazyState({name: partial(state.__getitem__, key) for key, name in names.items()})


IN_FULL = "non_lora_trainables.bin"


def with_lora(state: Mapping[str, Tensor], directory: str | Path) -> LazyState:
    """The official state `state` with the adapters of `directory` merged into it, tensor by tensor when read.

    Raises ValueError (StateError) where the directory holds no adapters or they belong to other weights.
    """
    adapter, file = read_adapter(directory), Path(directory) / IN_FULL
    readers: dict[str, Callable[[], Tensor]] = {key: partial(state.__getitem__, key) for key in state}
    if file.is_file():
        full = official_names(read_checkpoint(file).state)
        readers |= {key: partial(full.__getitem__, key) for key in full}
    return adapter.merged(LazyState(readers))


def with_adapter(state: LazyState, directory: str | Path) -> LazyState:
    """`with_lora` on a state as it lies in the file."""
    return with_lora(official_names(state), directory)


def resized(
    model: MPlugOwl2ForConditionalGeneration, *, image_size: int | None = None, num_queries: int | None = None
) -> MPlugOwl2ForConditionalGeneration:
    """A new model for square images of `image_size` pixels and `num_queries` queries per image.

    Towers without class position store a 16 x 16 table whatever the image size, so only their configuration changes.
    Make a new processor with `MPlugOwl2Processor.from_config`. Raises ValueError for a size that is no multiple of the
    patch.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    vision, reader = config.vision_sizes, config.abstractor_sizes
    side, count = image_size or vision.image_size, num_queries or reader.num_queries
    if side % vision.patch_size or side <= 0 or count <= 0:
        raise ValueError(
            f"expected a positive multiple of {vision.patch_size} pixels and some queries, got {side} and {count}"
        )
    vision = replace(vision, image_size=side)
    config.vision = vars(vision)
    config.abstractor = vars(replace(reader, num_queries=count, query_span=reader.query_span or reader.num_queries))
    state: dict[str, Tensor] = {name: value.detach() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    table, queries = "model.vision.position_embedding", "model.abstractor.queries"
    if vision.use_cls_token:
        state[table] = resize_absolute(state[table][0], vision.grid)[None]
    state[queries] = _nearest(state[queries][0], count)[None]
    return assemble(config, state)


def _nearest(rows: Tensor, count: int) -> Tensor:
    """(old, dim) -> (count, dim), the old row nearest to each new centre.

    Learned queries are no smooth curve: a mean of neighbours reads features that the language model never saw, a copy
    reads known ones. Copies differ in their sine position, so that training can part them.
    """
    at = torch.from_numpy(stretched(count, len(rows))).round().long()
    return rows[at.clamp(0, len(rows) - 1)]


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
