"""The CLIP-like vision tower of mPLUG-Owl and mPLUG-Owl2, and what official files and CLIP itself call its weights.

pixel_values -> patches -> (+ class position) -> + position table -> norm -> pre-norm layers -> (norm) -> all positions

A layer is norm -> attention with one fused projection -> + -> norm -> fc1, activation, fc2 -> +. Families differ in the
rows of the table that a grid takes, and one in what stands before a layer (specifications mPLUG-Owl 2, mPLUG-Owl2 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from plait.nn.attention import AttentionFunction
from plait.nn.positions import resize_absolute
from plait.nn.temporal import quick_gelu
from plait.reading import read_json
from plait.weights.files import read_checkpoint
from plait.weights.keymap import Rename, Rule

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class VisionLayer(nn.Module):
    """Pre-norm transformer layer of the Owls' vision towers.

    Args:
        dim, num_heads, mlp_dim: sizes.
        eps: of both norms; 1e-6 in the Owls, where CLIP has 1e-5.
        activation: a name of `ACTIVATIONS`.

    Raises:
        ValueError: for another activation.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, eps: float, activation: str = "quick_gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected activation among {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.attn_norm = nn.LayerNorm(dim, eps)
        self.attn = FusedAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, attend: AttentionFunction) -> Tensor:
        """One layer.

        x: (batch, positions, dim); attend: the attention function -> like x.
        """
        x = x + self.attn(self.attn_norm(x), attend)
        return x + self.fc2(self.activation(self.fc1(self.mlp_norm(x))))


class FusedAttention(nn.Module):
    """Self-attention with one projection whose rows are (heads, 3, head_dim).

    q, k and v of a head stand side by side (Megatron), not in three blocks as in `PackedAttention`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: AttentionFunction) -> Tensor:
        """Attention of all positions, unmasked.

        x: (batch, positions, dim); attend: the attention function -> like x.
        """
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.out_proj(attend(q, k, v, None, None).transpose(1, 2).flatten(2))


class VisionTower(nn.Module):
    """Images to features of every position, the class position first where there is one.

    A family says in `positions` which rows of the table a grid of patches takes.

    Args:
        dim, patch_size, num_layers, eps: sizes.
        table: shape of the position table.
        layer: builds a layer.
        use_cls_token, use_post_norm: whether these exist; Owl2.1 has neither.
        fresh: draws the class position and the table of a new tower.

    Source:
        Specifications mPLUG-Owl, 2, and mPLUG-Owl2, 3.
    """

    def __init__(
        self,
        dim: int,
        patch_size: int,
        num_layers: int,
        eps: float,
        table: tuple[int, ...],
        layer: Callable[[], nn.Module],
        *,
        use_cls_token: bool = True,
        use_post_norm: bool = True,
        fresh: Callable[..., Tensor] = torch.zeros,
    ) -> None:
        super().__init__()
        # no bias: the position table can hold it
        self.patch_embedding = nn.Conv2d(3, dim, patch_size, stride=patch_size, bias=False)
        self.cls_embedding = nn.Parameter(fresh(1, 1, dim)) if use_cls_token else None
        self.position_embedding = nn.Parameter(fresh(*table))
        self.pre_norm = nn.LayerNorm(dim, eps)
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.post_norm = nn.LayerNorm(dim, eps) if use_post_norm else None
        self.gradient_checkpointing = False

    def positions(self, height: int, width: int) -> Tensor:
        """Positions of a grid of patches; a family writes it.

        Args:
            height, width: in patches.

        Returns:
            (..., positions, dim), the class position first where there is one.

        Raises:
            ValueError: for a grid that has none.
        """
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor, attend: AttentionFunction, hidden: list[Tensor] | None = None, *beside: Any
    ) -> Tensor:
        """Pixels to features.

        Args:
            pixel_values: (images, 3, height, width), normalised.
            attend: the attention function.
            hidden: a list to which the states before every layer and after the last are appended.
            beside: what the layers of a family take besides.

        Returns:
            (images, positions, dim), all of them: the abstractor reads the class position too.
        """
        x = self.patch_embedding(pixel_values)
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # row-major, as the tables are
        if self.cls_embedding is not None:
            x = torch.cat([self.cls_embedding.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.pre_norm(x + self.positions(height, width))
        for layer in self.layers:
            if hidden is not None:
                hidden.append(x)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, attend, *beside, use_reentrant=False)
            else:
                x = layer(x, attend, *beside)
        if hidden is not None:
            hidden.append(x)
        # all positions; the release norms its pooled one twice, and nothing reads it
        return x if self.post_norm is None else self.post_norm(x)


_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "attn_norm", "layer_norm2": "mlp_norm",
    "mlp.fc1": "fc1", "mlp.fc2": "fc2",
}  # fmt: skip


def clip_tower(directory: Path, image_size: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and weights of a CLIP vision tower, for a new Owl.

    Args:
        directory: of transformers, with a vision model or a whole CLIP.
        image_size: side in pixels that the position table is resized to; None: the tower's own.

    Returns:
        dim, num_heads, num_layers, mlp_dim, image_size, patch_size, activation and eps; and the
        weights by our names. Some are functions that read a tensor when called.

    Raises:
        ValueError: for a directory that holds no CLIP, and a size that patches do not fill.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"expected a transformers directory with config.json and a CLIP, got {directory}")
    written = read_json(directory / "config.json")
    kind, written = written.get("model_type"), written.get("vision_config", written)
    try:
        sizes: dict[str, Any] = dict(
            dim=written["hidden_size"],
            num_heads=written["num_attention_heads"],
            num_layers=written["num_hidden_layers"],
            mlp_dim=written["intermediate_size"],
            image_size=image_size or written["image_size"],
            patch_size=written["patch_size"],
            activation=written.get("hidden_act", "quick_gelu"),  # transformers leaves defaults out of config.json
            eps=written.get("layer_norm_eps", 1e-5),
        )
        side, patch = sizes["image_size"], sizes["patch_size"]
        if side <= 0 or side % patch:
            raise ValueError(f"expected images of a positive multiple of {patch} pixels, got {side}")
        found = read_checkpoint(directory).state
        # a whole CLIP holds its text tower too: that stays unread
        root = "vision_model." if any(key.startswith("vision_model.") for key in found) else ""
        state = {key.removeprefix(root): partial(found.__getitem__, key) for key in found if key.startswith(root)}
        emb = {name: state[f"embeddings.{name}"]() for name in ("class_embedding", "patch_embedding.weight")}
        # now, so that a new tower stores the grid that it is trained at
        table = resize_absolute(state["embeddings.position_embedding.weight"](), side // patch)
        made = {
            "cls_embedding": emb["class_embedding"][None, None],
            "patch_embedding.weight": emb["patch_embedding.weight"],
            "position_embedding": table[None],
        }
        for part in ("weight", "bias"):
            made |= {
                # "layrnorm": spelled so in transformers and in every published CLIP
                f"pre_norm.{part}": state[f"pre_layrnorm.{part}"](),
                f"post_norm.{part}": state[f"post_layernorm.{part}"](),
            }
            for i in range(sizes["num_layers"]):
                theirs, ours = f"encoder.layers.{i}.", f"layers.{i}."
                # the fused projection holds q, k, v of a head side by side
                heads = [
                    state[f"{theirs}self_attn.{n}_proj.{part}"]().unflatten(0, (sizes["num_heads"], -1)) for n in "qkv"
                ]
                made[f"{ours}attn.qkv.{part}"] = torch.stack(heads, dim=1).flatten(0, 2)
                for old, new in _CLIP_LAYER.items():
                    made[f"{ours}{new}.{part}"] = state[f"{theirs}{old}.{part}"]()
        return sizes, made
    except KeyError as error:
        raise ValueError(
            f"expected a CLIP vision tower in {directory}, got {kind!r} without {error.args[0]}; pass another directory"
        ) from error


_P = "{p:weight|bias}"


def vision_rules() -> list[Rule]:
    """Rules between the official keys of an Owl's vision tower and ours, the tower alone.

    `plait.weights.keymap.prefixed` puts them under a model's own prefixes.
    """
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
    """Rules of an abstractor, but for its queries and tables, in which the Owls differ."""
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
