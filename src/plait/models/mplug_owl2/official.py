"""Official config.json of mPLUG-Owl2 (`mplug_owl2`, Llama names) and Owl2.1 (`mplug_owl2_1`, Qwen names) -> our fields.

Every field is read, known and ignored, or an error: nothing is guessed from names of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from plait.models.mplug_owl2.config import ADAPTIVE, AbstractorConfig, VisionConfig

QWEN_ROUTED = ("q", "k", "v")
"""Owl2.1's `multiway`: the fused projection is duplicated, the norms are shared."""

_LLAMA = {
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "intermediate_size": "mlp_dim",
    "rms_norm_eps": "eps", "max_position_embeddings": "max_position_embeddings",
}  # fmt: skip
_QWEN = {
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "kv_channels": "head_dim", "layer_norm_epsilon": "eps",
    "max_position_embeddings": "max_position_embeddings", "seq_length": "trained_length",
    "use_dynamic_ntk": "use_ntk", "use_logn_attn": "use_log_n",
}  # fmt: skip
_BOTH = {
    "initializer_range": "init_std", "tie_word_embeddings": "tie_word_embeddings", "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id", "image_aspect_ratio": "image_aspect",
    "use_cache": "use_cache",
}  # fmt: skip
_READ_ELSEWHERE = {
    "visual_config", "rope_theta", "rope_scaling", "attention_bias", "rotary_emb_base", "no_bias", "multiway",
    "intermediate_size",
}  # fmt: skip
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "pretraining_tp": (1,), "rotary_pct": (1.0,), "scale_attn_weights": (True,),
    "softmax_in_fp32": (False, True), "use_cache_quantization": (False,), "emb_dropout_prob": (0, 0.0),
    "attn_dropout_prob": (0, 0.0), "attention_dropout": (0, 0.0),
}  # fmt: skip
_IGNORED = {
    "architectures", "model_type", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
    "image_grid_pinpoints", "tune_visual_abstractor", "freeze_vision_model", "visual_abstractor_lr", "bf16", "fp16",
    "fp32", "use_flash_attn", "use_cache_kernel", "onnx_safe", "tokenizer_type", "generate_kwargs", "lora", "optimizer",
    "unsloth_version", "return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip
_CLUTTER = {
    "add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length",
    "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_scores", "prefix", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p",
    "use_bfloat16",
}  # fmt: skip
"""What transformers 4 writes into a config.json that it saves whole."""

_VISION = {
    "hidden_size": "dim", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
    "intermediate_size": "mlp_dim", "image_size": "image_size", "patch_size": "patch_size",
    "hidden_act": "activation", "layer_norm_eps": "eps", "use_cls_token": "use_cls_token",
    "use_post_layernorm": "use_post_norm",
}  # fmt: skip
_ABSTRACTOR = {
    "num_learnable_queries": "num_queries", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
    "intermediate_size": "mlp_dim", "layer_norm_eps": "eps", "grid_size": "grid_size",
}  # fmt: skip


def is_official_config(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of an official directory."""
    return "visual_config" in config


def config_fields(official: Mapping[str, Any], keys: Iterable[str] = ()) -> dict[str, Any]:
    """Fields of `MPlugOwl2Config` from an official config; keys: of the weights, which know whether ways exist.

    Raises ValueError for a field that is unknown, or one that no published model sets that way.
    """
    is_qwen = "kv_channels" in official or "layer_norm_epsilon" in official
    names = {**(_QWEN if is_qwen else _LLAMA), **_BOTH}
    _check(official, names.keys() | _READ_ELSEWHERE, "config.json")
    fields = {ours: official[theirs] for theirs, ours in names.items() if theirs in official}
    if not isinstance(fields.get("image_aspect"), str):
        fields.pop("image_aspect", None)
    visual = official.get("visual_config") or {}
    fields["vision"] = vision_sizes(visual.get("visual_model") or {})
    fields["abstractor"] = abstractor_sizes(visual.get("visual_abstractor") or {})
    keys = list(keys)
    if is_qwen:
        multiway = any(".c_attn.multiway." in key for key in keys) if keys else bool(official.get("multiway"))
        return _qwen_fields(official, multiway) | fields
    return _llama_fields(official) | fields


def _llama_fields(official: Mapping[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": official.get("rope_theta", 10000.0)}
    scaling = official.get("rope_scaling")
    if scaling:
        rope |= {"rope_type": scaling.get("type", scaling.get("rope_type")), "factor": scaling["factor"]}
    bias = bool(official.get("attention_bias", False))
    return {"routed": ADAPTIVE, "rope_parameters": rope, "eps": 1e-6, "qkv_bias": bias, "out_bias": bias,
            "max_position_embeddings": 2048}  # fmt: skip


def _qwen_fields(official: Mapping[str, Any], multiway: bool) -> dict[str, Any]:
    if official.get("seq_length") is None and official.get("use_dynamic_ntk", True):
        raise ValueError("expected seq_length in the config.json of an Owl2.1 model, got none; Qwen-7B has 8192")
    bias = not official.get("no_bias", True)
    return {
        "routed": QWEN_ROUTED if multiway else (),
        "rope_parameters": {"rope_type": "default", "rope_theta": official.get("rotary_emb_base", 10000)},
        "mlp_dim": official.get("intermediate_size", 22016) // 2,  # the official field counts both halves
        "vocab_size": 151936,
        "eps": 1e-6,
        "head_dim": 128,
        "qkv_bias": True,
        "out_bias": bias,
        "mlp_bias": bias,
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
    }


def vision_sizes(official: Mapping[str, Any]) -> VisionConfig:
    """Sizes of the tower from `visual_config.visual_model`; older files lack some fields."""
    return VisionConfig(**{ours: official[theirs] for theirs, ours in _VISION.items() if theirs in official})


def abstractor_sizes(official: Mapping[str, Any]) -> AbstractorConfig:
    """Sizes of the abstractor from `visual_config.visual_abstractor`. A falsy grid_size means 32."""
    if official.get("hidden_size") != official.get("encoder_hidden_size", official.get("hidden_size")):
        raise ValueError(
            f"expected an abstractor as wide as the tower, got {official['hidden_size']} and "
            f"{official['encoder_hidden_size']}"
        )
    fields = {ours: official[theirs] for theirs, ours in _ABSTRACTOR.items() if theirs in official}
    return AbstractorConfig(**{**fields, "grid_size": fields.get("grid_size") or 32})


def _check(section: Mapping[str, Any], known: Set[str], where: str) -> None:
    for name, value in section.items():
        if name in _FIXED:
            if value not in _FIXED[name]:
                raise ValueError(
                    f"expected {where} with {name} = {_FIXED[name][0]!r}, as in all published models, got {value!r}"
                )
        elif name not in known | _IGNORED | _CLUTTER and not name.startswith("_"):
            raise ValueError(f"expected a known field in the official {where}, got {name!r}; add it to official.py")
