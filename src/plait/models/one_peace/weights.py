"""Official ONE-PEACE weights <-> Plait's layout.

official state -> KeyMap -> drop branches not asked for -> interpolate and copy position tables -> strict load

Build ONE-PEACE models from weights on disk: official checkpoints and model directories.

checkpoint -> config -> model on the meta device -> only the tensors its branches need -> strict load
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.nn.positions import image_bucket_index, image_table_rows, resize_relative, token_bucket_index
from plait.weights.files import Checkpoint, LazyState, StateError, listed, load_strict, read_checkpoint
from plait.weights.keymap import Alias, Drop, KeyMap, Rename, Rule, prefixed

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
    from plait.weights.files import meta_state

    rules = key_map(config)
    official = meta_state({key: list(value) for key, value in keys.items()})
    native, _ = rules.forward(official)
    back = rules.backward(native)
    wrong = [key for key in keys if key not in back or back[key].shape != official[key].shape]
    wrong += [key for key in back if key not in keys]
    if wrong:
        raise StateError(f"expected every key back with its shape, got differences in {listed(wrong)}", wrong)


logger = logging.getLogger(__name__)

CLASSES: dict[str, type[OnePeacePreTrainedModel]] = {
    c.__name__: c for c in (OnePeaceModel, OnePeaceForPreTraining, OnePeaceForClassification)
}


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
