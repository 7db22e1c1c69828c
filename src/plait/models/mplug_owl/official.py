"""Official config.json of mPLUG-Owl (`mplug-owl`), or the shapes of its weights -> fields of our configuration.

Every field is read, known and ignored, or an error. The abstractor's width comes from the weights: two releases
compute it differently from the same field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plait.models.mplug_owl.config import AbstractorConfig, VisionConfig

_VISION = {
    "hidden_size": "dim", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers",
    "intermediate_size": "mlp_dim", "image_size": "image_size", "patch_size": "patch_size", "layer_norm_eps": "eps",
}  # fmt: skip
_ABSTRACTOR = {
    "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "intermediate_size": "mlp_dim",
    "layer_norm_eps": "eps", "attention_probs_dropout_prob": "dropout",
}  # fmt: skip
_MLP = "abstractor.encoder.layers.0.crossattention.output.mlp.w1.weight"
_SECTIONS = ("vision_config", "visual_abstractor_config")
HEAD_DIM = 64
"""Width of a head of the published towers, where only shapes are known."""


def is_official_config(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of an official directory."""
    return config.get("model_type") == "mplug-owl" or all(name in config for name in _SECTIONS)


def config_fields(official: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Fields of `MPlugOwlConfig` from an official config and the shapes of the weights, where they are known.

    Raises ValueError where tower and abstractor differ in width, which the model cannot do.
    """
    temporal = any(".temporal." in key or key.startswith("temporal_") for key in shapes)
    vision = vision_sizes(official.get("vision_config") or {})
    abstractor = abstractor_sizes(official, published_mlp=temporal)
    width = (official.get("visual_abstractor_config") or {}).get("hidden_size", vision.dim)
    if width != vision.dim:
        raise ValueError(f"expected an abstractor as wide as the tower, got {width} and {vision.dim}")
    if _MLP in shapes:
        abstractor.mlp_dim = shapes[_MLP][0]
    text = dict(official.get("text_config") or {})
    return {"vision": vision, "abstractor": abstractor, "temporal": temporal, "text_config": text}


def vision_sizes(official: Mapping[str, Any]) -> VisionConfig:
    """Sizes of the tower from `vision_config`; its activation is QuickGELU whatever `hidden_act` says."""
    return VisionConfig(**{ours: official[theirs] for theirs, ours in _VISION.items() if theirs in official})


def abstractor_sizes(official: Mapping[str, Any], *, published_mlp: bool = False) -> AbstractorConfig:
    """Sizes of the abstractor from the top of an official config.

    published_mlp: compute the width of the gated MLP as the video release does, 4096 -> 2816, instead of taking the
    field as the image release does. Raises ValueError for encoder features of another width.
    """
    section = official.get("visual_abstractor_config") or {}
    fields = {ours: section[theirs] for theirs, ours in _ABSTRACTOR.items() if theirs in section}
    dim = section.get("hidden_size")
    if section.get("encoder_hidden_size", dim) != dim:
        raise ValueError(
            f"expected encoder_hidden_size = hidden_size in visual_abstractor_config, got "
            f"{section['encoder_hidden_size']} and {dim}; queries and features share a norm"
        )
    if "num_query_tokens" in official:
        fields["num_queries"] = official["num_query_tokens"]
    if published_mlp and fields.get("mlp_dim", 2816) != 2816:
        fields["mlp_dim"] = 256 * -(-int(2 * fields["mlp_dim"] / 3) // 256)
    return AbstractorConfig(**fields)


def described(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """An official config.json that fits the shapes of a whole checkpoint, for files that lie without one.

    Numbers of heads are those of the published models: heads of 64 in tower and abstractor, of 128 in the language
    model. Raises ValueError where the language model is neither a LLaMA nor a BLOOM.
    """
    cls, table = shapes["vision_model.embeddings.cls_token"], shapes["vision_model.embeddings.position_embedding"]
    patch = shapes["vision_model.embeddings.patch_embed.weight"][-1]
    dim, grid = cls[-1], round((table[1] - 1) ** 0.5)
    heads = max(dim // HEAD_DIM, 1)
    return {
        "model_type": "mplug-owl",
        "num_query_tokens": shapes["query_tokens"][1],
        "vision_config": {
            "hidden_size": dim,
            "num_hidden_layers": _count(shapes, "vision_model.encoder.layers."),
            "num_attention_heads": heads,
            "intermediate_size": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
            "image_size": grid * patch,
            "patch_size": patch,
        },
        "visual_abstractor_config": {
            "hidden_size": dim,
            "encoder_hidden_size": dim,
            "num_hidden_layers": _count(shapes, "abstractor.encoder.layers."),
            "num_attention_heads": heads,
            "intermediate_size": shapes[_MLP][0],
        },
        "text_config": _language_model(shapes),
    }


def _language_model(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    llama, bloom = "language_model.model.embed_tokens.weight", "language_model.transformer.word_embeddings.weight"
    if llama in shapes:
        vocab, dim = shapes[llama]
        heads = max(dim // 128, 1)
        key = shapes["language_model.model.layers.0.self_attn.k_proj.weight"][0]
        return {
            "model_type": "llama", "vocab_size": vocab, "hidden_size": dim, "num_attention_heads": heads,
            "num_key_value_heads": max(key * heads // dim, 1), "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
            "intermediate_size": shapes["language_model.model.layers.0.mlp.up_proj.weight"][0],
            "num_hidden_layers": _count(shapes, "language_model.model.layers."), "pad_token_id": 0,
        }  # fmt: skip
    if bloom in shapes:
        vocab, dim = shapes[bloom]
        return {
            "model_type": "bloom", "vocab_size": vocab, "hidden_size": dim, "n_head": max(dim // 128, 1),
            "n_layer": _count(shapes, "language_model.transformer.h."), "pad_token_id": 3,
        }  # fmt: skip
    raise ValueError("expected a LLaMA or a BLOOM under language_model., got neither; pass official_config=")


def _count(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in shapes)
    return 1 + max(int(match[1]) for match in found if match)
