"""mPLUG-Owl2 and Owl2.1 from files: official weights, Megatron, LoRA outputs, model directories, other image sizes.

official state (Llama or Qwen names) -> KeyMap -> strict load        Megatron, LoRA extras -> official names first

Conversion goes both ways bit for bit (section 8). Configurations come from the file, variant and table sizes from the
keys: published files disagree with the names of their directories and with their own vocabulary sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.nn.positions import inverse_frequencies, position_tables, resize_absolute, stretched
from plait.nn.vit import shared_abstractor_rules, vision_rules
from plait.weights.files import Checkpoint, LazyState, build_strict, read_checkpoint, refuse_branch
from plait.weights.keymap import Drop, KeyMap, Rename, Rule, Split, count_layers, prefixed
from plait.weights.lora import read_adapter

_P = "{p:weight|bias}"  # a placeholder of key patterns: either of the two


def key_map(config: MPlugOwl2Config, *, base: str = "model.") -> KeyMap:
    """Rules between an official checkpoint and `MPlugOwl2ForConditionalGeneration` of `config`.

    Args:
        config: of the model; one with trained_length has Owl2.1's layout, Qwen's names.
        base: prefix of the `MPlugOwl2Model` inside the target.

    Returns:
        Rules that work both ways: position tables, and rotary frequencies of an Owl2, are made again on the way back.

    Source:
        Specification mPLUG-Owl2, sections 8.1 and 8.2.
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
        # Final norm and head are not routed in either variant.
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


def _llama_layer(config: MPlugOwl2Config) -> list[Rule]:
    """Rules of a layer of Owl2, whose routed modules are `multiway.0` for text and `multiway.1` for images."""
    names = [
        ("input_layernorm", "attn_norm", "norm"),
        ("post_attention_layernorm", "mlp_norm", "norm"),
        *((f"self_attn.{n}_proj", f"attn.{n}_proj", n) for n in "qkv"),
        ("self_attn.o_proj", "attn.o_proj", "out"),
    ]
    rules: list[Rule] = [Rename(f"mlp.{{n:gate_proj|up_proj|down_proj}}.{_P}", f"mlp.{{n}}.{_P}")]
    for official, native, part in names:
        if part in config.routed:
            ways = enumerate(_ways(config))
            rules += [Rename(f"{official}.multiway.{i}.{_P}", f"{native}.{way}.{_P}") for i, way in ways]
        else:
            rules.append(Rename(f"{official}.{_P}", f"{native}.{_P}"))
    return rules


def _qwen_layer(config: MPlugOwl2Config) -> list[Rule]:
    """Rules of a layer of Owl2.1, which routes the fused projection as a whole, queries included, or nothing."""
    thirds = [("attn.c_attn", "")]  # one weight of three blocks: queries, keys, values
    if "q" in config.routed:
        thirds = [(f"attn.c_attn.multiway.{i}", f".{way}") for i, way in enumerate(_ways(config))]
    return [
        *(Split(f"{fused}.{_P}", tuple(f"attn.{n}_proj{way}.{_P}" for n in "qkv")) for fused, way in thirds),
        Rename(f"attn.c_proj.{_P}", f"attn.o_proj.{_P}"),
        Rename(f"ln_1.{_P}", f"attn_norm.{_P}"),
        Rename(f"ln_2.{_P}", f"mlp_norm.{_P}"),
        Rename(f"mlp.w1.{_P}", f"mlp.up_proj.{_P}"),
        Rename(f"mlp.w2.{_P}", f"mlp.gate_proj.{_P}"),  # w2 goes through the SiLU, not w1 as in Llama
        Rename(f"mlp.c_proj.{_P}", f"mlp.down_proj.{_P}"),
    ]


def _ways(config: MPlugOwl2Config) -> tuple[str, str]:
    """Our names of the official ways 0, text, and 1, images; the same twice where one way serves both."""
    named = config.ways or {}
    text = next(way for way, cell in named.items() if "text" in cell)
    return text, next((way for way, cell in named.items() if "image" in cell), text)


def abstractor_rules(config: MPlugOwl2Config) -> list[Rule]:
    """Rules of the abstractor alone.

    Args:
        config: of whose sizes the position tables are made again on the way back to official names.
    """
    # The official converter leaves the tables out, training writes them; loaded files may have either (section 8.1).
    tables = Drop(
        "encoder.layers.{i}.crossattention.attention.{n:q|k}_pos_embed",
        "a sine table, which the configuration determines",
        restore=partial(_restore_tables, config),
    )
    return [Rename("query_embeds", "queries"), tables, *shared_abstractor_rules()]


def _restore_frequencies(config: MPlugOwl2Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The buffer of rotary frequencies, (head_dim / 2,), that every layer of an official file of Owl2 repeats."""
    assert config.head_dim is not None and config.rope_parameters is not None
    made = inverse_frequencies(config.head_dim, config.rope_parameters["rope_theta"])
    layers = count_layers(state, "model.decoder.layers.")
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": made for i in range(layers)}


def _restore_tables(config: MPlugOwl2Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sine tables of queries (num_queries, dim) and keys (positions, dim) that every official layer repeats."""
    sizes, vision = config.abstractor_sizes, config.vision_sizes
    span = sizes.query_span or sizes.num_queries
    shape = (sizes.num_queries, span, sizes.grid_size, sizes.grid_size, vision.use_cls_token)
    tables = dict(zip("qk", map(torch.from_numpy, position_tables(vision.dim, shape))))
    return {
        f"encoder.layers.{i}.crossattention.attention.{n}_pos_embed": table
        for i in range(count_layers(state, "layers."))
        for n, table in tables.items()
    }


_REST = "{rest:.+}"
_ABSTRACTOR_LAYER = "model.visual_abstractor.encoder.layers.{i}.crossattention."
# The first rule that matches takes a key: in every group the special names stand before the rest.
MEGATRON = KeyMap([
    Rename("language_model.embedding.word_embeddings.weight", "model.embed_tokens.weight"),
    Rename("language_model.encoder.norm.weight", "model.norm.weight"),
    Rename("language_model.encoder.lm_head.weight", "lm_head.weight"),
    Rename(f"language_model.encoder.layers.{{i}}.self_attention.{_REST}", f"model.layers.{{i}}.self_attn.{_REST}"),
    Rename(f"language_model.encoder.layers.{{i}}.{_REST}", f"model.layers.{{i}}.{_REST}"),
    *prefixed(
        [
            Rename(f"self_attention.{_REST}", f"self_attn.{_REST}"),
            Rename(f"mlp.dense_h_to_4h.{_REST}", f"mlp.fc1.{_REST}"),
            Rename(f"mlp.dense_4h_to_h.{_REST}", f"mlp.fc2.{_REST}"),
            Rename(_REST, _REST),
        ],
        "vision_model.transformer.layers.{i}.", "model.vision_model.encoder.layers.{i}.",
    ),
    Rename(f"vision_model.transformer.final_layernorm.{_REST}", f"model.vision_model.post_layernorm.{_REST}"),
    Rename("vision_model.position_embeddings", "model.vision_model.embeddings.position_embedding"),
    Rename(f"vision_model.{_REST}", f"model.vision_model.embeddings.{_REST}"),
    *prefixed(
        [
            Rename(f"self_attention.q_proj.{_REST}", f"attention.query.{_REST}"),
            Rename(f"self_attention.k_proj.{_REST}", f"attention.key.{_REST}"),
            Rename(f"self_attention.v_proj.{_REST}", f"attention.value.{_REST}"),
            Rename(f"self_attention.o_proj.{_REST}", f"output.out_proj.{_REST}"),
            Rename(f"{{n:norm2|mlp}}.{_REST}", f"output.{{n:norm2|mlp}}.{_REST}"),
            Rename(_REST, _REST),
        ],
        "vision_abstractor.transformer.layers.{i}.", _ABSTRACTOR_LAYER,
    ),
    Rename("vision_abstractor.learnable_queries", "model.visual_abstractor.query_embeds"),
    Rename(f"vision_abstractor.{_REST}", f"model.visual_abstractor.{_REST}"),
])  # fmt: skip
"""Names of the Megatron training checkpoint, its nested keys joined by dots -> official names; no tensor changes."""


def is_megatron(keys: Iterable[str]) -> bool:
    """Whether these are keys of the Megatron training checkpoint (specification mPLUG-Owl2, section 8.3)."""
    return any(key.startswith(("vision_abstractor.", "language_model.encoder.")) for key in keys)


def official_names(state: LazyState) -> LazyState:
    """The state under official names: a Megatron checkpoint renamed, what LoRA training saved beside it unwrapped.

    Args:
        state: as it lies in the file; official names pass through.

    Raises:
        StateError: for a Megatron name of another layout, such as that of a model-parallel shard.

    Source:
        Specification mPLUG-Owl2, sections 8.3 and 8.5.
    """
    if is_megatron(state):
        return MEGATRON.forward(state)[0]
    # The released script saves names under "base_model.", and under another "model." where PEFT wrapped the model.
    names = {key: key.removeprefix("base_model.") for key in state}
    if any(name.startswith("model.model.") for name in names.values()):
        names = {key: name.removeprefix("model.") for key, name in names.items()}
    if all(key == name for key, name in names.items()):
        return state
    return LazyState({name: partial(state.__getitem__, key) for key, name in names.items()})


IN_FULL = "non_lora_trainables.bin"


def with_adapter(state: LazyState, directory: str | Path) -> LazyState:
    """A state under official names, with the LoRA in `directory` merged when read.

    What trained in full beside the LoRA (the abstractor, by the released script) lies in a file of its own and replaces
    the base's weights before.

    Args:
        state: the base, as it lies in the file.
        directory: what the released LoRA script wrote.

    Raises:
        ValueError: where the directory holds no LoRA.
        StateError: (a ValueError) where it holds one of other weights.

    Source:
        Specification mPLUG-Owl2, section 8.5.
    """
    adapter, file = read_adapter(directory), Path(directory) / IN_FULL
    states = [official_names(state)]
    if file.is_file():
        states.append(official_names(read_checkpoint(file).state))
    # The later state wins, so what trained in full goes over the base.
    return adapter.merged(LazyState({key: partial(one.__getitem__, key) for one in states for key in one}))


def resized(
    model: MPlugOwl2ForConditionalGeneration, *, image_size: int | None = None, num_queries: int | None = None
) -> MPlugOwl2ForConditionalGeneration:
    """A new model for square images of `image_size` pixels and `num_queries` queries per image.

    Towers without class position store a 16 x 16 table whatever the image size, so only their configuration changes.
    Make a new processor with `MPlugOwl2Processor.from_config`.

    Args:
        model: stays as it is.
        image_size: side in pixels; None: as before.
        num_queries: positions per image, less the end vector; None: as before.

    Raises:
        ValueError: for a size that is no positive multiple of the patch, or no queries.

    Example:
        >>> model = MPlugOwl2ForConditionalGeneration(MPlugOwl2Config.preset("nano"))
        >>> resized(model, image_size=96, num_queries=32).config.tokens_per_image
        33
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
    # The span stays that of training, so that sine positions of more queries lie between those that it saw.
    config.abstractor = vars(replace(reader, num_queries=count, query_span=reader.query_span or reader.num_queries))
    state: dict[str, Tensor] = {name: value.detach() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:  # the head is the table; loading ties them again
        del state["lm_head.weight"]
    table, queries = "model.vision.position_embedding", "model.abstractor.queries"
    if vision.use_cls_token:
        # bicubic, the class position's row kept (specification mPLUG-Owl2, section 8.4)
        state[table] = resize_absolute(state[table][0], vision.grid)[None]
    # Learned queries are no smooth curve: a mean of neighbours reads features that the language model never saw, a copy
    # of the nearest reads known ones. Copies differ in their sine position, so that training can part them.
    old = state[queries][0]
    at = torch.from_numpy(stretched(count, len(old))).round().long()
    state[queries] = old[at.clamp(0, len(old) - 1)][None]
    return assemble(config, state)


def is_official(keys: Iterable[str]) -> bool:
    """Whether these are keys of an official mPLUG-Owl2 or Owl2.1 file, or of a Megatron checkpoint."""
    # The first version's abstractor has no `visual_` in front.
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

    Args:
        checkpoint: what `plait.weights.files.read_checkpoint` gives.
        official_config: the config.json where the file has none.
        dtype: of the weights, by default the file's.
        device: where the model goes.
        branch: must be None; the parts of this family only work together.
        lora: an output directory of the released LoRA script to merge.
        changes: fields of `MPlugOwl2Config` to set.

    Returns:
        The model, in evaluation mode.

    Raises:
        StateError: (a ValueError) listing missing, unexpected and misshapen keys.
        ValueError: without a config.json, for a field of it that is unknown, and for a branch.
    """
    refuse_branch(branch, "mplug_owl2")
    state = official_names(checkpoint.state) if lora is None else with_adapter(checkpoint.state, lora)
    written = checkpoint.config if official_config is None else official_config
    if written is None:
        raise ValueError("expected a config.json beside the weights, got none; pass official_config=")
    # Tables have the rows of the file: Owl2.1's config.json names more than its tokenizer has, and fewer were saved.
    table = next((name for name in ("transformer.wte.weight", "model.embed_tokens.weight") if name in state), None)
    rows = {} if table is None else {"vocab_size": state[table].shape[0]}
    config = MPlugOwl2Config.from_official(written, state, **{**rows, **changes})
    native, _ = key_map(config).forward(state)
    return assemble(config, native, dtype, device)


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlugOwl2ForConditionalGeneration:
    """A model directory written by `save_pretrained`.

    Args:
        path: the directory.
        branch: must be None.
        dtype, device: of the model; by default the file's type, on the CPU.
        changes: fields of `MPlugOwl2Config` to set.

    Raises:
        ValueError: as `from_official`, and for a field that the configuration does not have.
    """
    refuse_branch(branch, "mplug_owl2")
    config = MPlugOwl2Config.from_pretrained(path, trust_remote_code=False).changed(changes)
    return assemble(config, read_checkpoint(path).state, dtype, device)


def assemble(
    config: MPlugOwl2Config,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MPlugOwl2ForConditionalGeneration:
    """A model of `config` with exactly the weights of `state`.

    Args:
        config: sizes, which the weights must have.
        state: our name -> tensor. A tied head may be absent.
        dtype, device: of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        StateError: for any other set of names or shapes.
    """
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    model = build_strict(lambda: MPlugOwl2ForConditionalGeneration(config), state, tied=tied, dtype=dtype)
    return model.to(device).eval()
