"""Official names of the vision tower and the abstractor, which mPLUG-Owl and mPLUG-Owl2 share.

vision_model.*, (visual_)abstractor.* without their prefix <-> Plait's layout
"""

from __future__ import annotations

from plait.weights.keymap import Rename, Rule

_P = "{p:weight|bias}"


def vision_rules() -> list[Rule]:
    """Rules of the vision tower alone."""
    layer = "encoder.layers.{i}."
    return [
        Rename("embeddings.cls_token", "cls_embedding"),
        Rename("embeddings.position_embedding", "position_embedding"),
        Rename("embeddings.patch_embed.weight", "patch_embedding.weight"),
        Rename(f"embeddings.pre_layernorm.{_P}", f"pre_norm.{_P}"),
        Rename(f"{layer}self_attn.query_key_value.{_P}", f"layers.{{i}}.attn.qkv.{_P}"),
        Rename(f"{layer}self_attn.dense.{_P}", f"layers.{{i}}.attn.out_proj.{_P}"),
        Rename(f"{layer}input_layernorm.{_P}", f"layers.{{i}}.attn_norm.{_P}"),
        Rename(f"{layer}post_attention_layernorm.{_P}", f"layers.{{i}}.mlp_norm.{_P}"),
        Rename(f"{layer}mlp.{{n:fc1|fc2}}.{_P}", f"layers.{{i}}.{{n}}.{_P}"),
        Rename(f"post_layernorm.{_P}", f"post_norm.{_P}"),
    ]


def shared_abstractor_rules() -> list[Rule]:
    """Rules of an abstractor but for its queries and tables."""
    outer, inner = "encoder.layers.{i}.crossattention.", "layers.{i}."
    return [
        Rename("vit_eos", "end"),
        Rename(f"visual_fc.{_P}", f"proj.{_P}"),
        Rename(f"{outer}attention.query.{_P}", f"{inner}q_proj.{_P}"),
        Rename(f"{outer}attention.key.{_P}", f"{inner}k_proj.{_P}"),
        Rename(f"{outer}attention.value.{_P}", f"{inner}v_proj.{_P}"),
        Rename(f"{outer}norm1.{_P}", f"{inner}query_norm.{_P}"),
        Rename(f"{outer}normk.{_P}", f"{inner}key_norm.{_P}"),
        Rename(f"{outer}output.out_proj.{_P}", f"{inner}out_proj.{_P}"),
        Rename(f"{outer}output.norm2.{_P}", f"{inner}mlp_norm.{_P}"),
        Rename(f"{outer}output.mlp.w1.{_P}", f"{inner}mlp.gate_proj.{_P}"),
        Rename(f"{outer}output.mlp.w3.{_P}", f"{inner}mlp.up_proj.{_P}"),
        Rename(f"{outer}output.mlp.w2.{_P}", f"{inner}mlp.down_proj.{_P}"),
        Rename(f"{outer}output.mlp.ffn_ln.{_P}", f"{inner}mlp.norm.{_P}"),
    ]
