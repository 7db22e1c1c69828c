"""Official ONE-PEACE weights <-> Plait's layout, and how models are made of what lies on disk.

official file | directory -> config -> model on the meta device
    -> KeyMap -> only the tensors of the branches asked for -> position tables interpolated and copied -> strict load

Source: specification ONE-PEACE, section 3 (layout of the files; 3.3 what a narrower task leaves in them).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel, modality_of
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.nn.positions import image_bucket_index, image_table_rows, resize_relative, token_bucket_index
from plait.presets import choose
from plait.weights.files import Checkpoint, LazyState, StateError, load_strict, read_checkpoint
from plait.weights.keymap import Alias, Drop, KeyMap, Rename, Rule, count_layers, prefixed

_P = "{p:weight|bias}"
_M = "{m:text|image|audio}"
MAX_TOKEN_POSITIONS = 1024
"""Side of the stored matrices of token buckets: official files carry them whole, though 514 positions are the most."""
DETERMINED = "an index buffer that the configuration determines"
UNREAD = "an index buffer that nothing reads"


def key_map(config: OnePeaceConfig, *, base: str = "") -> KeyMap:
    """Rules between an official checkpoint and a Plait model of `config`.

    Args:
        config: bucket sizes decide the index buffers that are made again on conversion to official
            files.
        base: prefix of the `OnePeaceModel` inside the target, "" or "model.".

    Returns:
        Rules that convert in both directions. Nothing is transposed, and nothing is tied.

    Source: specification ONE-PEACE, section 3.2.
    """
    tokens = {"text": config.text_bucket_size, "audio": config.audio_bucket_size}
    encoder = [
        *prefixed(_adapter_rules(), native="adapters."),
        *(
            _constant(
                f"{m}_adapter.rp_bucket",
                f"adapters.{m}.cls_embedding",
                # `size=size` binds the value now; a plain closure would see the last one for both.
                lambda _, size=size: token_bucket_index(MAX_TOKEN_POSITIONS, size),
            )
            for m, size in tokens.items()
        ),
        _constant(
            "image_adapter.rp_bucket",
            "adapters.image.cls_embedding",
            lambda _: image_bucket_index(config.image_rel_bucket_size),
        ),
        _constant("image_adapter.position_idx", "adapters.image.position_embedding", numbered, UNREAD),
        *prefixed(_trunk_rules(), official="fusion_model.", native="trunk."),
    ]
    head = [
        Rename(f"norm.{_P}", "norm.{p}"),
        Rename("attn_pooling_func.q", "pool.query"),
        Rename(f"attn_pooling_func.{{n:k_proj|v_proj|out_proj}}.{_P}", "pool.{n}.{p}"),
        Rename(f"pooler.1.{_P}", "pooler.{p}"),
        Rename(f"classifier.{{i}}.{_P}", "classifier.{i}.{p}"),
    ]
    decoder = prefixed(_trunk_rules(), official="decoder_wrapper.fusion_model.", native="decoder.trunk.")
    return KeyMap(
        [
            *prefixed(encoder, official="encoder_wrapper.", native=base),
            Rename(f"{_M}_proj.{_P}", f"{base}projections.{{m}}.{{p}}"),
            Rename("logit_scale", f"{base}logit_scale"),
            *decoder,
            *_decoder_rules(),
            *prefixed(head, official="classify_head.", native="head."),
        ]
    )


def vision_key_map(*, base: str = "") -> KeyMap:
    """Rules for the extracted vision branch (`one-peace-vision.pkl`): same tensors, shorter official names.

    Args:
        base: prefix of the `OnePeaceModel` inside the target, "" or "model.".
    """
    rules: list[Rule] = []
    for rule in key_map(OnePeaceConfig(modalities=["image"]), base=base).rules:
        if rule.official[0].startswith("encoder_wrapper."):
            # As the release renames them (specification 3.4); index buffers are accepted and never written back.
            short = rule.official[0].removeprefix("encoder_wrapper.").replace("fusion_model.", "encoder.", 1)
            rules.append(replace(rule, source=short, **({"restore": None} if isinstance(rule, Drop) else {})))
    return KeyMap(rules)


def _adapter_rules() -> list[Rule]:
    """Rules of the three adapters, without the prefixes on either side.

    Older files have a single `rel_pos_table`, newer ones a list, hence the aliases (specification
    3.3).
    """
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
    # 32 are more blocks than any file has (5): rules without a tensor do nothing.
    rules += [
        Rename(f"audio_adapter.embed_positions.{i + 1}.0.{_P}", f"audio.positions.convs.{i}.{{p}}") for i in range(32)
    ]
    return rules


def _trunk_rules() -> list[Rule]:
    """Rules of a routed trunk, the encoder's and the decoder's, without the prefixes on either side.

    The released code calls LayerScale gamma_1 and gamma_2, and the sub-norms `ln` and `2`.
    """
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
        _constant(
            "version", "layers.0.attn_norm.weight", lambda _: torch.tensor([3.0]), "a constant layout version, 3.0"
        ),
    ]


def _constant(name: str, beside: str, make: Callable[[Tensor], Tensor], reason: str = DETERMINED) -> Drop:
    """An official constant, left in the file; for an official file it is made again where `beside` exists.

    Args:
        name: official name.
        beside: native tensor that tells whether the part is there, and is handed to `make`.
        make: that tensor -> the constant.
        reason: why it is left in the file.
    """

    def restore(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: make(state[beside])} if beside in state else {}

    return Drop(name, reason, restore=restore)


def _decoder_rules() -> list[Rule]:
    """Rules of the decoder's branches; its trunk has the rules of the encoder's.

    The files keep what leads in and out at the top, and positions under `decoder_wrapper`.
    """
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
        _constant(f"{wrapper}image_adapter.position_idx", f"{branch}image.position_embedding", numbered, UNREAD),
    ]


def numbered(table: Tensor) -> Tensor:
    """table: (rows, dim) -> (rows,), the numbers of its rows, as `position_idx` stores them."""
    return torch.arange(len(table))


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

    Args:
        checkpoint: of the full model, a finetuned one, or the extracted vision branch.
        official_config: the `cfg` when the file has none; the vision branch needs none.
        branch: modalities to keep, default all the file's.
        model_class: default what the cfg describes.
        dtype: of the weights, by default as stored.
        device: where the model goes once it is complete.
        changes: fields of `OnePeaceConfig`, for example `image_rel_bucket_size=24` for images of
            384 pixels or `official=True`.

    Returns:
        The model in evaluation mode.

    Raises:
        StateError: listing missing, unexpected and misshapen keys.
        ValueError: for a file without a cfg, unknown settings and fields, and branches it lacks.
    """
    cfg = official_config or checkpoint.config
    # The branch alone: its names differ from `encoder_wrapper.*`, and its sizes are in the tensors.
    if any(key.startswith("encoder.layers.") for key in checkpoint.state):
        return _vision_branch(checkpoint, dtype, device, **changes)
    if cfg is None:
        raise ValueError("expected a checkpoint with a cfg, got none; pass official_config=")
    config = OnePeaceConfig.from_official(cfg, **changes)
    chosen = model_class or (OnePeaceForClassification if config.num_classes else OnePeaceModel)
    if chosen is OnePeaceModel and model_class is None:
        # A file of stage 1 or 2 has one, which a model that embeds neither builds nor reads.
        config.decoder = None
    source = key_map(config, base=base_prefix(chosen))
    native, _ = source.forward(checkpoint.state)
    config.modalities = choose(config.modalities, branch)
    return assemble(config, chosen, native, dtype, device)


def _vision_branch(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: str | torch.device, **changes: Any
) -> OnePeacePreTrainedModel:
    """A model of images alone; all sizes are read off the tensors.

    changes: fields of `OnePeaceConfig`. Raises StateError for keys that do not fit.
    """
    state, _ = vision_key_map().forward(checkpoint.state)
    return assemble(vision_sizes(state, **changes), OnePeaceModel, state, dtype, device)


def vision_sizes(state: Mapping[str, Tensor], base: str = "", **changes: Any) -> OnePeaceConfig:
    """The configuration of a vision branch, read off its tensors.

    Args:
        state: in Plait's layout.
        base: prefix of the `OnePeaceModel` in it.
        changes: fields of `OnePeaceConfig` to set otherwise.
    """
    table = state[f"{base}adapters.image.bias.tables.0"]
    fields: dict[str, Any] = {
        "norm_ways": {},
        "dim": state[f"{base}adapters.image.cls_embedding"].shape[-1],
        "num_layers": count_layers(state, f"{base}trunk.layers."),
        "mlp_dim": state[f"{base}trunk.layers.0.mlp.image.gate_proj.weight"].shape[0],
        "num_heads": table.shape[1],
        "image_bucket_size": round((state[f"{base}adapters.image.position_embedding"].shape[0] - 1) ** 0.5),
        # Solved for w: the table has (2 w - 1)^2 + 3 rows, and the position table w^2 + 1.
        "image_rel_bucket_size": (round((table.shape[0] - 3) ** 0.5) + 1) // 2,
        "per_layer_bias": f"{base}adapters.image.bias.tables.1" in state,
    }
    return OnePeaceConfig(modalities=["image"], use_projections=False, **{**fields, **changes})


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    model_class: type[OnePeacePreTrainedModel] | None = None,
    **changes: Any,
) -> OnePeacePreTrainedModel:
    """A model directory written by `save_pretrained`; `branch` reads and keeps only those modalities.

    Args:
        path: the directory.
        branch: modalities to keep, default all.
        dtype: of the weights, by default as stored.
        device: where the model goes once it is complete.
        model_class: default the class that wrote the directory.
        changes: fields of `OnePeaceConfig`. `modalities=` may add some that the directory has no
            weights of, which start fresh: everything that was there stays bit for bit.

    Returns:
        The model in evaluation mode.

    Raises:
        StateError: listing missing, unexpected and misshapen keys.
        ValueError: for an unknown field, and branches it lacks.
    """
    config = OnePeaceConfig.from_pretrained(path, trust_remote_code=False)
    known = list(config.modalities)
    if changes:
        config = config.changed(changes)
    stored = stored_class(path)
    chosen = model_class or stored
    state: Mapping[str, Tensor] = read_checkpoint(path).state
    if base_prefix(stored) and chosen is OnePeaceModel:
        state = {key: state[key] for key in state if key.startswith("model.")}
        state = {key.removeprefix("model."): value for key, value in state.items()}
    config.modalities = choose(config.modalities, branch)
    if added := [m for m in config.modalities if m not in known]:
        # A model of the new modalities alone draws their weights; of its trunk only what is theirs is taken.
        alone = config.changed({"modalities": added, "decoder": None})
        fresh, base = OnePeaceModel(alone).state_dict(), base_prefix(chosen)
        state = {**state, **{f"{base}{key}": value for key, value in fresh.items() if modality_of(key) in added}}
    return assemble(config, chosen, state, dtype, device)


def stored_class(path: Path) -> type[OnePeacePreTrainedModel]:
    """The class whose `save_pretrained` wrote this directory.

    Args:
        path: a model directory; only its configuration is read.

    Returns:
        `OnePeaceModel` where the configuration names none or another one.
    """
    architectures = OnePeaceConfig.from_pretrained(path, trust_remote_code=False).architectures
    return CLASSES.get((architectures or ["OnePeaceModel"])[0], OnePeaceModel)


def base_prefix(model_class: type[OnePeacePreTrainedModel]) -> str:
    """Where the `OnePeaceModel` sits inside a model of this class: "" or "model."."""
    return "" if model_class is OnePeaceModel else "model."


def assemble(
    config: OnePeaceConfig,
    model_class: type[OnePeacePreTrainedModel],
    native: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> OnePeacePreTrainedModel:
    """A model with the weights of `native` that its branches use; nothing else is ever read.

    Position tables are fitted as published. A relative table of images is interpolated where the
    target grid is larger; a smaller one is refused. A single table is copied to every layer of a
    target with one per layer.

    Args:
        config: of the model.
        model_class: which of `CLASSES`.
        native: tensors in Plait's layout, read one by one as they are needed.
        dtype: of the weights, by default as stored.
        device: where the model goes.

    Returns:
        The model in evaluation mode.

    Raises:
        StateError: for what is missing, unexpected or misshapen.
    """
    with torch.device("meta"):
        # The published model is 15.5 GB in float32: on the meta device it is never held twice.
        model = model_class(config)
    own = set(model.state_dict())
    state: dict[str, Callable[[], Tensor]] = {}
    for key in own:
        head, is_table, _ = key.rpartition(".bias.tables.")
        # Layer by layer the same table: each copy is finetuned apart (specification 3.3, rule 3).
        source = f"{head}.bias.tables.0" if is_table and key not in native else key
        if source not in native:
            continue
        is_grid = is_table and head.endswith("adapters.image")
        read = partial(native.__getitem__ if source == key else partial(_apart, native), source)
        state[key] = partial(_grown, read, source, config.image_rel_bucket_size) if is_grid else read
    for key in native:  # what is left over is handed on too, so that the strict load lists it
        is_used = key in own or ".bias.tables." in key
        if modality_of(key) in (None, *config.modalities) and not is_used and not _may_be_left(key, config):
            state[key] = partial(native.__getitem__, key)
    scale = f"{base_prefix(model_class)}logit_scale"
    # The published full model holds none; the release keeps ln(1 / 0.07) in silence (specification 3.3).
    if scale in own and scale not in state:
        logger.info("%s is not in the file; it keeps its initial value", scale)
        state[scale] = lambda: torch.tensor(config.logit_scale_init).log()
    load_strict(model, LazyState(state), dtype=dtype, assign=True)
    model.config.architectures = [model_class.__name__]
    return model.to(device).eval()


def _apart(native: Mapping[str, Tensor], key: str) -> Tensor:
    """A copy of a tensor: layers that begin with one table must not share it, or they would train as one."""
    return native[key].clone()


def _grown(read: Callable[[], Tensor], key: str, width: int) -> Tensor:
    """A relative table of images for a grid of `width` patches a side.

    Args:
        read: gives the stored table, (rows, heads).
        key: its name, for the message.
        width: of the target grid.

    Raises:
        StateError: for a table of a larger grid: only enlargement is published.
    """
    table, rows = read(), image_table_rows(width)
    if table.shape[0] > rows:
        raise StateError(
            f"expected a relative table of at most {rows} rows, got {table.shape[0]}; keep the image size", [key]
        )
    # (2 w - 1)^2 + 3 rows: one per distance, and three for CLS
    return table if len(table) == rows else resize_relative(table, (math.isqrt(len(table) - 3) + 1) // 2, width)


def _may_be_left(key: str, config: OnePeaceConfig) -> bool:
    """Keys that a narrower task leaves in the file: decoder, projections and temperature, final norms.

    Everything else that no part of the model takes is handed to the strict load, which lists it.
    """
    is_decoder = key.startswith("decoder.")
    is_projection = not config.use_projections and ("projections." in key or key.endswith("logit_scale"))
    is_norm = not config.ways("norm_ways") and "trunk.norm." in key
    return is_decoder or is_projection or is_norm
