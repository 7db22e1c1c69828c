"""An mPLUG-Owl2 out of any model of the Llama family: every way begins as a copy of the source (section 8.4).

LLAMA_DIR -> configuration -> norms, keys and values copied into each way -> fresh or given vision tower -> model
Before training, text goes through exactly the weights it went through in the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl2.config import ADAPTIVE, AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.nn.vit import clip_tower
from plait.places import atomic_directory
from plait.processing.tokenizers import tokenizer_to_talk
from plait.reading import read_json
from plait.routing import Ways
from plait.weights.files import LazyState, StateError, check_finite_weights, load_strict, read_checkpoint

# Their layers have the same names and the same order of norms, so that copied weights compute what they did.
LLAMA_LIKE = ("llama", "mistral", "qwen2")
SMALL_TOWER = {"dim": 192, "num_heads": 6, "num_layers": 4, "mlp_dim": 768, "patch_size": 16, "image_size": 128}


def upcycle(
    source: str | Path,
    *,
    vision: VisionConfig | str | Path | None = None,
    abstractor: AbstractorConfig | None = None,
    ways: Ways | None = None,
    routed: Sequence[str] = ADAPTIVE,
    image_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """Model and processor from a transformers directory of a Llama, Mistral (full attention) or Qwen2.

    Args:
        source: the directory, with weights, config.json and tokenizer.
        vision: sizes of a fresh tower, or a transformers directory of a CLIP vision model to copy.
        abstractor: its sizes; by default the published ones on the tower's grid.
        ways, routed: the partition, as in `MPlugOwl2Config`; every way begins as a copy.
        image_size: side in pixels that a copied tower is resized to; None: its own.
        seed: of what is fresh.
        dtype: of the model, by default the source's.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        ValueError: where the source is of no such family or has no tokenizer, and for sizes that cannot be.

    Source:
        arXiv 2311.04257, section 3; specification mPLUG-Owl2, section 8.4: both ways start as the source's weights.

    Example:
        >>> vision = VisionConfig(dim=64, num_heads=4, num_layers=2, mlp_dim=256, image_size=64, patch_size=8)
        >>> model, processor = upcycle("my-llama", vision=vision)
        >>> model.save_pretrained("my-owl2"), processor.save_pretrained("my-owl2")
    """
    source = Path(source)
    fields = llama_fields(source)
    tower: Mapping[str, Tensor] = {}
    if isinstance(vision, str | Path):
        found, tower = clip_tower(Path(vision), image_size)
        vision = VisionConfig(**found)
    vision = vision or VisionConfig()
    reader = abstractor or AbstractorConfig(grid_size=vision.grid)
    if vision.image_size <= 0 or vision.image_size % vision.patch_size or reader.num_queries < 1:
        raise ValueError(
            f"expected images of a positive multiple of {vision.patch_size} pixels and at least 1 query, "
            f"got {vision.image_size} and {reader.num_queries}"
        )
    tokenizer = tokenizer_to_talk(source)
    fields |= {"pad_token_id": tokenizer.pad_token_id, "vision": vision, "abstractor": reader}
    config = MPlugOwl2Config(ways=ways, routed=routed, **fields)
    with torch.random.fork_rng(devices=[]):  # the caller's own draws stay as they are
        torch.manual_seed(seed)
        model = MPlugOwl2ForConditionalGeneration(config)
    stored = read_checkpoint(source).state
    readers = decoder_readers(stored, config)
    # Functions that read, so that loading copies one tensor at a time.
    readers |= {f"model.vision.{key}": partial(tower.__getitem__, key) for key in tower}
    # What no Llama holds stays as it was drawn; everything else must be in the source.
    parts = ("model.abstractor.",) if tower else ("model.abstractor.", "model.vision.")
    fresh = [key for key in model.state_dict() if key.startswith(parts)]
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    load_strict(model, LazyState(readers), optional=[*fresh, *tied])
    check_finite_weights(model, source)
    model.tie_weights()
    model = model.to(dtype or next(iter(stored.values())).dtype)
    return model.eval(), MPlugOwl2Processor.from_config(config, tokenizer)


def llama_fields(source: Path) -> dict[str, Any]:
    """Fields of `MPlugOwl2Config` from a transformers config.json of the Llama family.

    Raises:
        ValueError: for another family, attention within a window, or another activation than SiLU.
    """
    if not (source / "config.json").is_file():
        raise ValueError(f"expected a transformers directory with config.json, got {source}")
    kind = read_json(source / "config.json").get("model_type")
    if kind not in LLAMA_LIKE:
        raise ValueError(f"expected a model of {', '.join(LLAMA_LIKE)} in {source}, got {kind!r}")
    from transformers import AutoConfig

    # Not the JSON itself: transformers fills in defaults of the family and brings old rope fields into one form.
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    # Qwen2 carries a window that `use_sliding_window` may switch off; Mistral has no such switch.
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ValueError(f"expected full attention in {source}, got a sliding window of {config.sliding_window}")
    if config.hidden_act != "silu":
        raise ValueError(f"expected hidden_act 'silu' in {source}, got {config.hidden_act!r}")
    # Qwen2 has biases on queries, keys and values whatever its file says, and never on the output.
    bias = bool(getattr(config, "attention_bias", False))
    same = (
        "vocab_size", "head_dim", "max_position_embeddings", "rope_parameters", "tie_word_embeddings", "bos_token_id",
        "eos_token_id", *MPlugOwl2Config.attribute_map,
    )  # fmt: skip
    return {MPlugOwl2Config.attribute_map.get(name, name): getattr(config, name, None) for name in same} | {
        "eps": config.rms_norm_eps,
        "qkv_bias": bias or kind == "qwen2",
        "out_bias": bias and kind != "qwen2",
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
    }


_NAMES = {
    "input_layernorm": ("attn_norm", "norm"), "post_attention_layernorm": ("mlp_norm", "norm"),
    **{f"self_attn.{n}_proj": (f"attn.{n}_proj", n) for n in "qkv"}, "self_attn.o_proj": ("attn.o_proj", "out"),
    **{f"mlp.{n}_proj": (f"mlp.{n}_proj", "mlp") for n in ("gate", "up", "down")},
}  # fmt: skip
"""A module of a Llama layer -> its name here, and the part of `MPlugOwl2Config.routed` that it belongs to."""


def decoder_readers(state: Mapping[str, Tensor], config: MPlugOwl2Config) -> dict[str, Callable[[], Tensor]]:
    """The source's weights under our names, a copy per way where a part is routed.

    Args:
        state: transformers' names of a Llama -> tensor.
        config: whose `ways` and `routed` decide on copies.

    Returns:
        Our name -> a function that reads the tensor; all ways of a part read the same one.

    Raises:
        StateError: for names that no Llama has.
    """
    fixed = {
        "model.embed_tokens.weight": ["model.token_embedding.weight"],
        "model.norm.weight": ["model.decoder.norm.weight"],
        "lm_head.weight": [] if config.tie_word_embeddings else ["lm_head.weight"],
    }
    readers: dict[str, Callable[[], Tensor]] = {}
    unknown = []
    for key in state:
        parts = key.split(".")
        name, kind = ".".join(parts[3:-1]), parts[-1]  # of model.layers.N.<name>.<weight or bias>
        if key in fixed or key.endswith("rotary_emb.inv_freq"):
            targets = fixed.get(key, [])
        elif parts[:2] == ["model", "layers"] and name in _NAMES:
            ours, part = _NAMES[name]
            prefix = f"model.decoder.layers.{parts[2]}."
            if part not in config.routed:
                targets = [f"{prefix}{ours}.{kind}"]
            elif part == "mlp":  # the way stands before the projection: mlp.visual.gate_proj
                targets = [f"{prefix}mlp.{way}.{ours.removeprefix('mlp.')}.{kind}" for way in config.ways or {}]
            else:
                targets = [f"{prefix}{ours}.{way}.{kind}" for way in config.ways or {}]
        else:
            unknown.append(key)
            continue
        readers |= {target: partial(state.__getitem__, key) for target in targets}
    if unknown:
        raise StateError(f"expected weights of a Llama, got {unknown[0]} and {len(unknown) - 1} others", unknown)
    return readers


def write_upcycled(
    src: str | Path,
    dst: str | Path,
    *,
    vision: str | Path | None = None,
    image_size: int | None = None,
    num_queries: int = 64,
    small_vision: bool = False,
    **options: Any,
) -> int:
    """Write an upcycled model directory, whole or not at all.

    Args:
        src: a transformers directory of a Llama, Mistral or Qwen2.
        dst: the directory to write, which must not exist.
        vision: directory of a CLIP tower to copy, else a fresh one.
        image_size: side of images in pixels; None: the tower's own.
        num_queries: of the abstractor, positions per image less one.
        small_vision: make the fresh tower small, 4 layers of 192 for images of 128 pixels.
        options: of `upcycle`.

    Returns:
        The number of parameters.

    Raises:
        UsageError: where `dst` exists.
        ValueError: as `upcycle`.
    """
    with atomic_directory(dst) as out:  # held before anything is read
        if vision is None:
            given = {"image_size": image_size} if image_size else {}
            fields: dict[str, Any] = {**(SMALL_TOWER if small_vision else {}), **given}
            tower = sizes = VisionConfig(**fields)
        else:
            tower, sizes = vision, VisionConfig(**clip_tower(Path(vision), image_size)[0])
        # heads of 64, as published; one head where they do not divide the width
        heads = max(1, sizes.dim // 64)
        reader = AbstractorConfig(
            num_queries=num_queries,
            num_heads=heads if sizes.dim % heads == 0 else 1,
            num_layers=2 if small_vision else 6,
            mlp_dim=sizes.dim * 8 // 3 // 64 * 64 + 64,  # 8/3 of the width, as the published ones, up to whole tiles
            grid_size=sizes.grid,
        )
        model, processor = upcycle(src, vision=tower, abstractor=reader, image_size=image_size, **options)
        model.save_pretrained(out)
        processor.save_pretrained(out)
    return sum(p.numel() for p in model.parameters())
