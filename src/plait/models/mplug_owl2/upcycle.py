"""An mPLUG-Owl2 out of any model of the Llama family: every way begins as a copy of the source (section 8.4).

LLAMA_DIR -> configuration -> norms, keys and values copied into each way -> fresh or given vision tower -> model
Before training, text goes through exactly the weights it went through in the source.
"""

from __future__ import annotations

import json
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
from plait.routing import Ways
from plait.weights.files import LazyState, StateError, load_strict, read_checkpoint

LLAMA_LIKE = ("llama", "mistral", "qwen2")


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

    vision: sizes of a fresh tower, or a transformers directory of a CLIP vision model to copy; abstractor: its sizes;
    ways, routed: the partition, as in `MPlugOwl2Config`; seed: of what is fresh. Raises ValueError where the source is
    of no such family or has no tokenizer, and for sizes that cannot be.
    """
    source = Path(source)
    fields = llama_fields(source)
    tower: Mapping[str, Tensor] | None = None
    if isinstance(vision, str | Path):
        found, tower = clip_tower(Path(vision), image_size)
        sizes = VisionConfig(**found)
    else:
        sizes = vision or VisionConfig()
    reader = abstractor or AbstractorConfig(grid_size=sizes.grid)
    if sizes.image_size <= 0 or sizes.image_size % sizes.patch_size or reader.num_queries < 1:
        raise ValueError(
            f"expected images of a positive multiple of {sizes.patch_size} pixels and at least 1 query, "
            f"got {sizes.image_size} and {reader.num_queries}"
        )
    tokenizer = _tokenizer(source)
    fields |= {"pad_token_id": tokenizer.pad_token_id, "vision": sizes, "abstractor": reader}
    config = MPlugOwl2Config(ways=ways, routed=routed, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MPlugOwl2ForConditionalGeneration(config)
    state = decoder_state(read_checkpoint(source).state, config)
    own = model.state_dict()
    if tower is not None:
        state = LazyState({**_readers(state), **_readers(tower, "model.vision.")})
    fresh = [key for key in own if key.startswith(("model.vision.", "model.abstractor.")) and key not in state]
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    load_strict(model, state, optional=[*fresh, *tied])
    model.tie_weights()
    tokenizer.padding_side = "left"
    model = model.to(dtype or next(iter(read_checkpoint(source).state.values())).dtype)
    return model.eval(), MPlugOwl2Processor.from_config(config, tokenizer)


def _tokenizer(source: Path) -> Any:
    """The source's tokenizer, its end as padding where it has none. Raises ValueError where none loads."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].partition(":")[0]
        raise ValueError(
            f"expected a tokenizer in {source}, got none that loads ({reason}); put the source's tokenizer.json there"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def llama_fields(source: Path) -> dict[str, Any]:
    """Fields of `MPlugOwl2Config` from a transformers config.json of the Llama family."""
    if not (source / "config.json").is_file():
        raise ValueError(f"expected a transformers directory with config.json, got {source}")
    written = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kind = written.get("model_type")
    if kind not in LLAMA_LIKE:
        raise ValueError(f"expected a model of {', '.join(LLAMA_LIKE)} in {source}, got {kind!r}")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ValueError(f"expected full attention in {source}, got a sliding window of {config.sliding_window}")
    if config.hidden_act != "silu":
        raise ValueError(f"expected hidden_act 'silu' in {source}, got {config.hidden_act!r}")
    bias = kind == "qwen2" or bool(getattr(config, "attention_bias", False))
    return {
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None),
        "mlp_dim": config.intermediate_size,
        "eps": config.rms_norm_eps,
        "qkv_bias": bias,
        "out_bias": bias and kind != "qwen2",
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": config.rope_parameters,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    }


_NAMES = {
    "input_layernorm": ("attn_norm", "norm"), "post_attention_layernorm": ("mlp_norm", "norm"),
    **{f"self_attn.{n}_proj": (f"attn.{n}_proj", n) for n in "qkv"}, "self_attn.o_proj": ("attn.o_proj", "out"),
    **{f"mlp.{n}_proj": (f"mlp.{n}_proj", "mlp") for n in ("gate", "up", "down")},
}  # fmt: skip


def decoder_state(state: Mapping[str, Tensor], config: MPlugOwl2Config) -> LazyState:
    """The source's weights under our names, a copy per way where a part is routed."""
    readers: dict[str, Callable[[], Tensor]] = {}
    unknown = []
    for key in state:
        targets = _targets(key, config)
        if targets is None:
            unknown.append(key)
        for target in targets or ():
            readers[target] = partial(state.__getitem__, key)
    if unknown:
        raise StateError(f"expected weights of a Llama, got {unknown[0]} and {len(unknown) - 1} others", unknown)
    return LazyState(readers)


def _targets(key: str, config: MPlugOwl2Config) -> list[str] | None:
    fixed = {
        "model.embed_tokens.weight": ["model.token_embedding.weight"],
        "model.norm.weight": ["model.decoder.norm.weight"],
        "lm_head.weight": [] if config.tie_word_embeddings else ["lm_head.weight"],
    }
    if key in fixed:
        return fixed[key]
    if key.endswith("rotary_emb.inv_freq"):
        return []
    parts = key.split(".")
    name, kind = ".".join(parts[3:-1]), parts[-1]
    if parts[:2] != ["model", "layers"] or name not in _NAMES:
        return None
    ours, part = _NAMES[name]
    prefix = f"model.decoder.layers.{parts[2]}."
    if part not in config.routed:
        return [f"{prefix}{ours}.{kind}"]
    if part == "mlp":  # the way stands before the projection: mlp.visual.gate_proj
        return [f"{prefix}mlp.{way}.{ours.removeprefix('mlp.')}.{kind}" for way in config.ways or {}]
    return [f"{prefix}{ours}.{way}.{kind}" for way in config.ways or {}]


def _readers(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Callable[[], Tensor]]:
    return {prefix + key: partial(state.__getitem__, key) for key in state}
