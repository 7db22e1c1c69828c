"""Official ONE-PEACE weights <-> Plait's layout.

official state -> KeyMap -> drop branches not asked for -> interpolate and copy position tables -> strict load
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from plait.models.one_peace.config import OnePeaceConfig
from plait.nn.positions import image_bucket_index, image_table_rows, resize_relative, token_bucket_index
from plait.weights.keymap import Alias, Drop, KeyMap, Rename, Rule, prefixed
from plait.weights.state import LazyState, StateError, listed

_P = "{p:weight|bias}"
_M = "{m:text|image|audio}"
MAX_TOKEN_POSITIONS = 1024


def key_map(config: OnePeaceConfig, *, base: str = "") -> KeyMap:
    """Rules between an official checkpoint and a Plait model of `config`.

    base: prefix of the `OnePeaceModel` inside the target, "" or "model.".
    """
    encoder = [
        *prefixed(_adapter_rules(), native="adapters."),
        *prefixed(_buffer_rules(config)),
        *prefixed(_trunk_rules(), official="fusion_model.", native="trunk."),
    ]
    decoder = prefixed(_trunk_rules(), official="decoder_wrapper.fusion_model.", native="decoder.trunk.")
    return KeyMap(
        [
            *prefixed(encoder, official="encoder_wrapper.", native=base),
            Rename(f"{_M}_proj.{_P}", f"{base}projections.{{m}}.{{p}}"),
            Rename("logit_scale", f"{base}logit_scale"),
            *decoder,
            *_decoder_rules(),
            *prefixed(_head_rules(), official="classify_head.", native="head."),
        ]
    )


def vision_key_map(*, base: str = "") -> KeyMap:
    """Rules for the extracted vision branch (`one-peace-vision.pkl`): same tensors, shorter official names."""
    rules: list[Rule] = []
    for rule in key_map(OnePeaceConfig(modalities=["image"]), base=base).rules:
        if rule.official[0].startswith("encoder_wrapper."):
            short = rule.official[0].removeprefix("encoder_wrapper.").replace("fusion_model.", "encoder.", 1)
            rules.append(replace(rule, source=short, **({"restore": None} if isinstance(rule, Drop) else {})))
    return KeyMap(rules)


def _adapter_rules() -> list[Rule]:
    rules: list[Rule] = [
        Rename(f"{_M}_adapter.cls_embedding", "{m}.cls_embedding"),
        Rename(f"{_M}_adapter.type_embedding", "{m}.type_embedding"),
        Rename(f"{_M}_adapter.layernorm_embedding.{_P}", "{m}.norm.{p}"),
        Rename(f"{_M}_adapter.rel_pos_table_list.{{i}}.weight", "{m}.bias.tables.{i}"),
        Alias("text_adapter.rel_pos_table.weight", "text.bias.tables.0"),
        Alias("image_adapter.rel_pos_table.weight", "image.bias.tables.0"),
        Alias("audio_adapter.rel_pos_table.weight", "audio.bias.tables.0"),
        Rename("text_adapter.embed_tokens.weight", "text.token_embedding.weight"),
        Rename("text_adapter.embed_positions.weight", "text.position_embedding"),
        Rename("image_adapter.pos_embed", "image.position_embedding"),
        Rename("image_adapter.type_embedding_2", "image.second_type_embedding"),
        Rename(f"image_adapter.embed_images.0.{_P}", "image.stem.conv1.{p}"),
        Rename(f"image_adapter.embed_images.1.layer_norm.{_P}", "image.stem.norm1.{p}"),
        Rename(f"image_adapter.embed_images.3.{_P}", "image.stem.conv2.{p}"),
        Rename(f"image_adapter.embed_images.4.layer_norm.{_P}", "image.stem.norm2.{p}"),
        Rename(f"image_adapter.embed_images.6.{_P}", "image.stem.conv3.{p}"),
        Rename("image_adapter.embed_images.weight", "image.stem.conv.weight"),
        Rename("audio_adapter.cls_pos_embed", "audio.cls_position_embedding"),
        Rename("audio_adapter.mask_embedding", "audio.mask_embedding"),
        Rename(f"audio_adapter.embed_audios.0.conv_layers.{{i}}.0.{_P}", "audio.waveform.convs.{i}.{p}"),
        Rename(f"audio_adapter.embed_audios.0.conv_layers.{{i}}.2.1.{_P}", "audio.waveform.norms.{i}.{p}"),
        Rename(f"audio_adapter.embed_audios.2.{_P}", "audio.feature_norm.{p}"),
        Rename(f"audio_adapter.embed_audios.3.{_P}", "audio.feature_proj.{p}"),
    ]
    # The official list of positional blocks starts with a layout change, so its convolutions count from 1.
    rules += [
        Rename(f"audio_adapter.embed_positions.{i + 1}.0.{_P}", f"audio.positions.convs.{i}.{{p}}") for i in range(32)
    ]
    return rules


def _trunk_rules() -> list[Rule]:
    layer = "layers.{i}."
    return [
        Rename(f"{layer}gamma_1", f"{layer}attn_scale.weight"),
        Rename(f"{layer}gamma_2", f"{layer}mlp_scale.weight"),
        Rename(f"{layer}self_attn.{{n:q_proj|k_proj|v_proj|out_proj}}.{_P}", f"{layer}attn.{{n}}.{{p}}"),
        Rename(f"{layer}self_attn.ln.{_P}", f"{layer}attn.norm.{{p}}"),
        Rename(f"{layer}self_attn_layer_norm.{_P}", f"{layer}attn_norm.{{p}}"),
        Rename(f"{layer}final_layer_norm.{_P}", f"{layer}mlp_norm.{{p}}"),
        Rename(f"{layer}{_M}_ffn.0.wi_0.weight", f"{layer}mlp.{{m}}.gate_proj.weight"),
        Rename(f"{layer}{_M}_ffn.0.wi_1.weight", f"{layer}mlp.{{m}}.up_proj.weight"),
        Rename(f"{layer}{_M}_ffn.2.{_P}", f"{layer}mlp.{{m}}.norm.{{p}}"),
        Rename(f"{layer}{_M}_ffn.3.{_P}", f"{layer}mlp.{{m}}.down_proj.{{p}}"),
        Rename(f"{_M}_layer_norm.{_P}", "norm.{m}.{p}"),
        Drop("version", "a constant layout version, 3.0", restore=partial(_restore_version, "layers.0.")),
    ]


def _restore_version(present: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"version": torch.tensor([3.0])} if any(key.startswith(present) for key in state) else {}


def _buffer_rules(config: OnePeaceConfig) -> list[Rule]:
    buckets = {"text": config.text_bucket_size, "audio": config.audio_bucket_size}
    reason = "an index buffer that the configuration determines"
    return [
        *(Drop(f"{m}_adapter.rp_bucket", reason, restore=partial(_restore_tokens, m, b)) for m, b in buckets.items()),
        Drop("image_adapter.rp_bucket", reason, restore=partial(_restore_patches, config.image_rel_bucket_size)),
        Drop("image_adapter.position_idx", "an index buffer that nothing reads", restore=_restore_position_idx),
    ]


def _restore_tokens(modality: str, bucket_size: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if f"adapters.{modality}.cls_embedding" not in state:
        return {}
    return {f"{modality}_adapter.rp_bucket": token_bucket_index(MAX_TOKEN_POSITIONS, bucket_size)}


def _restore_patches(width: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"image_adapter.rp_bucket": image_bucket_index(width)} if "adapters.image.cls_embedding" in state else {}


def _restore_position_idx(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    key = "adapters.image.position_embedding"
    return {"image_adapter.position_idx": torch.arange(state[key].shape[0])} if key in state else {}


def _restore_decoder_idx(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    key = "decoder.branches.image.position_embedding"
    return {"decoder_wrapper.image_adapter.position_idx": torch.arange(state[key].shape[0])} if key in state else {}


def _decoder_rules() -> list[Rule]:
    branch = "decoder.branches."
    wrapper = "decoder_wrapper."
    return [
        Rename(f"decoder_{_M}_embed.{_P}", f"{branch}{{m}}.embed.{{p}}"),
        Rename(f"{_M}_mask_head.{_P}", f"{branch}{{m}}.head.{{p}}"),
        Rename(f"{_M}_mask_token", f"{branch}{{m}}.mask_token"),
        Rename(f"{wrapper}{_M}_adapter.cls_embedding", f"{branch}{{m}}.cls_embedding"),
        Rename(f"{wrapper}audio_adapter.mask_embedding", f"{branch}audio.mask_embedding"),
        Rename(f"{wrapper}{{m:text|audio}}_adapter.embed_positions.weight", f"{branch}{{m}}.position_embedding"),
        Rename(f"{wrapper}image_adapter.pos_embed", f"{branch}image.position_embedding"),
        Drop(
            f"{wrapper}image_adapter.position_idx", "an index buffer that nothing reads", restore=_restore_decoder_idx
        ),
    ]


def _head_rules() -> list[Rule]:
    return [
        Rename(f"norm.{_P}", "norm.{p}"),
        Rename("attn_pooling_func.q", "pool.query"),
        Rename(f"attn_pooling_func.{{n:k_proj|v_proj|out_proj}}.{_P}", "pool.{n}.{p}"),
        Rename(f"pooler.1.{_P}", "pooler.{p}"),
        Rename(f"classifier.{{i}}.{_P}", "classifier.{i}.{p}"),
    ]


def official_buffers(keys: Iterable[str]) -> set[str]:
    """Those official keys that are constants rather than weights."""
    return {key for key in keys if key.endswith((".rp_bucket", ".position_idx", "fusion_model.version"))}


def modality_of(key: str) -> str | None:
    """The modality a Plait key belongs to alone, None for shared parameters."""
    for part in ("adapters.", "projections.", ".mlp.", "trunk.norm.", "decoder.branches."):
        _, found, rest = key.partition(part)
        if found and rest.split(".")[0] in ("text", "image", "audio"):
            return rest.split(".")[0]
    return None


def fit_state(state: Mapping[str, Tensor], config: OnePeaceConfig, wanted: Iterable[str]) -> LazyState:
    """Make a converted state fit `config`: the published upgrade rules for checkpoints of another image size.

    Relative image tables are interpolated when the target grid is larger (only then: a smaller one is refused), and a
    single table is copied to every layer of a target with a table per layer. Keys not in `wanted` are left out.
    """
    readers = {}
    wanted = set(wanted)
    for key in wanted:
        head, found, _ = key.rpartition(".bias.tables.")
        source = key if key in state or not found else f"{head}.bias.tables.0"
        if source not in state:
            continue
        resize = found and head.endswith("image")
        readers[key] = (
            partial(_resized, state, source, config.image_rel_bucket_size)
            if resize
            else partial(state.__getitem__, source)
        )
    return LazyState(readers)


def _resized(state: Mapping[str, Tensor], key: str, width: int) -> Tensor:
    table = state[key]
    if table.shape[0] == image_table_rows(width):
        return table
    if table.shape[0] > image_table_rows(width):
        raise StateError(
            f"expected a relative table of at most {image_table_rows(width)} rows, got {table.shape[0]}; "
            "keep the image size",
            [key],
        )
    return resize_relative(table, (math.isqrt(table.shape[0] - 3) + 1) // 2, width)


def branch_state(state: Mapping[str, Tensor], modalities: Sequence[str]) -> LazyState:
    """The part of a converted state that a model of `modalities` uses; nothing else is ever read."""
    kept = [key for key in state if modality_of(key) in (None, *modalities)]
    return LazyState({key: partial(state.__getitem__, key) for key in kept})


def explain_keys(keys: Mapping[str, Sequence], config: OnePeaceConfig) -> None:
    """Prove on shapes alone that a published key list converts both ways. Raises StateError listing what does not."""
    from plait.weights.state import meta_state

    rules = key_map(config)
    official = meta_state({key: list(value) for key, value in keys.items()})
    native, _ = rules.forward(official)
    back = rules.backward(native)
    wrong = [key for key in keys if key not in back or back[key].shape != official[key].shape]
    wrong += [key for key in back if key not in keys]
    if wrong:
        raise StateError(f"expected every key back with its shape, got differences in {listed(wrong)}", wrong)
