"""mPLUG-Owl from files: official weights, trainer checkpoints, model directories, and a bare language model.

official state -> plain_names (trainer checkpoints unwrapped, LoRA merged) -> KeyMap -> strict load       (section 6)
language model's directory -> its weights, a fresh or given tower, a fresh abstractor -> where stage 1 begins

The language model keeps transformers' names; conversion goes both ways bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig, described
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration, adopt, build_language_model
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.nn.vit import clip_tower, shared_abstractor_rules, vision_rules
from plait.processing.tokenizers import tokenizer_to_talk
from plait.reading import read_json
from plait.weights.files import (
    Checkpoint,
    LazyState,
    StateError,
    build_strict,
    listed,
    load_whole,
    read_checkpoint,
    refuse_branch,
)
from plait.weights.keymap import Drop, KeyMap, Rename, Rule, Singleton, prefixed

_P = "{p:weight|bias}"  # a placeholder of key patterns: either of the two
WRAPPER = "base_model.model."
"""Before every name of a checkpoint that the released LoRA script wrote; read as it is, it loads nothing at all."""
PUBLISHED_ALPHA = 32.0
"""`lora_alpha` of the released script, for trainer checkpoints, which do not say."""


def is_official(keys: Iterable[str]) -> bool:
    """Whether these are keys of an official mPLUG-Owl file, a trainer checkpoint of it included.

    Queries at the top level tell it from mPLUG-Owl2, whose abstractor holds them.
    """
    names = {key.removeprefix(WRAPPER) for key in keys}
    return "query_tokens" in names and "vision_model.embeddings.cls_token" in names


def tower_rules() -> list[Rule]:
    """Rules of the vision tower alone, the temporal modules of the video variant included.

    These are linear layers and a convolution over time here, saved as 3-D convolutions with dimensions of 1: (512,
    1024, 1, 1, 1) and (512, 1, 3, 1, 1) in the published file (specification mPLUG-Owl, section 6).
    """
    temporal = [
        Rename(f"ln.{_P}", f"norm.{_P}"),
        Singleton("{n:down_proj|up_proj}.weight", "{n:down_proj|up_proj}.weight", official_dims=(2, 3, 4)),
        Singleton("conv.weight", "conv.weight", official_dims=(3, 4)),
        Rename("{n:down_proj|conv|up_proj}.bias", "{n:down_proj|conv|up_proj}.bias"),
    ]
    # All else has the same names in mPLUG-Owl2, fused projections interleaved per head included.
    return [*prefixed(temporal, "encoder.layers.{i}.temporal.", "layers.{i}.temporal."), *vision_rules()]


def abstractor_rules() -> list[Rule]:
    """Rules of the abstractor and its queries, which lie beside it in official files; native: `abstractor.` ahead."""
    return [
        Rename("query_tokens", "abstractor.queries"),
        Rename("temporal_query_tokens", "abstractor.temporal_queries"),
        Rename(f"abstractor.temporal_visual_fc.{_P}", f"abstractor.temporal_proj.{_P}"),
        *prefixed(shared_abstractor_rules(), "abstractor.", "abstractor."),
    ]


def key_map(config: MPlugOwlConfig | None = None) -> KeyMap:
    """Rules between an official checkpoint and `MPlugOwlForConditionalGeneration`.

    Args:
        config: asked for by `plait convert` of every family; here the rules are the same for all.
    """
    return KeyMap([
        *prefixed(tower_rules(), "vision_model.", "vision."),
        *abstractor_rules(),
        Drop(  # files written with transformers 4.28 hold these buffers
            "language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq",
            "rotary frequencies, which the configuration determines",
        ),
        # Last, so that the rule above comes first: the language model keeps the names of transformers.
        Rename("language_model.{name:.+}", "language_model.{name:.+}"),
    ])  # fmt: skip


def plain_names(state: LazyState, alpha: float | None = None) -> LazyState:
    """The state without the wrapper of PEFT, every LoRA it holds merged, tensor by tensor when read.

    Both spellings are known, `lora_A.weight` of adapter files and `lora_A.default.weight` of trainer checkpoints, also
    beside plain base weights.

    Args:
        state: as it lies in the file.
        alpha: `lora_alpha` of what is merged, by default the published 32.

    Returns:
        A state of base weights by official names, nothing read yet.

    Raises:
        StateError: where a LoRA has no base weight in the file.

    Source:
        Specification mPLUG-Owl, section 6: read as they are, trainer checkpoints give random output.
    """
    names = {_plain(key): key for key in state}
    downs = {name: key for name, key in names.items() if name.endswith(".lora_A.weight")}
    readers: dict[str, Callable[[], Tensor]] = {
        name: partial(state.__getitem__, key) for name, key in names.items() if ".lora_" not in name
    }
    # A file of LoRA alone would otherwise load as a model without its base.
    strangers = [name for name in downs if name.replace(".lora_A", "") not in readers]
    if strangers:
        raise StateError(
            f"expected a base weight for every adapter, got none for {listed(strangers)}; this is an adapter alone: "
            "pass it as adapter= beside its base",
            strangers,
        )

    def merged(base: Callable[[], Tensor], down_key: str, up_key: str) -> Tensor:
        """W + alpha / r * B A, in fp32 whatever the file's type.

        A: (r, in), so its length is r; B: (out, r). In half precision the product would be rounded before it is
        added.
        """
        weight, down, up = base(), state[down_key].float(), state[up_key].float()
        return (weight.float() + (alpha or PUBLISHED_ALPHA) / len(down) * (up @ down)).to(weight.dtype)

    for name, key in downs.items():
        weight = name.replace(".lora_A", "")
        readers[weight] = partial(merged, readers[weight], key, names[name.replace("lora_A", "lora_B")])
    return LazyState(readers)


def _plain(key: str) -> str:
    """A key without PEFT's wrappers, its LoRA as files of LoRA alone spell it."""
    # PEFT puts the frozen weight of an adapted module under "base_layer".
    key = key.removeprefix(WRAPPER).replace(".base_layer.", ".")
    return re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", key)


def notes(state: Iterable[str], official_config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What `plait convert` should say about a file: that it holds LoRA, and by which factor that was merged.

    Args:
        state: keys of the file.
        official_config: its config.json; the official one never names a LoRA, `{"lora": {"lora_alpha": ...}}` does.

    Returns:
        One line, or none for a file without LoRA.
    """
    adapters = sum(_plain(key).endswith(".lora_A.weight") for key in state)
    alpha = ((official_config or {}).get("lora") or {}).get("lora_alpha")
    said = f"{alpha:g}, as its configuration says" if alpha else f"{PUBLISHED_ALPHA:g}, as published"
    hint = "" if alpha else '; the file does not say, put {"lora": {"lora_alpha": ...}} into its config.json'
    return (f"merged {adapters} LoRA adapters with lora_alpha {said}{hint}",) if adapters else ()


official_names = plain_names
"""The name by which `plait convert` finds a family's other spellings."""


def from_official(
    checkpoint: Checkpoint,
    *,
    official_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    branch: Sequence[str] | None = None,
    lora_alpha: float | None = None,
    **changes: Any,
) -> MPlugOwlForConditionalGeneration:
    """A model from an official file or directory, or from a checkpoint of the released training script.

    Args:
        checkpoint: what `plait.weights.files.read_checkpoint` gives.
        official_config: the config.json where the file has none; without either the sizes are read off the weights.
        dtype: of the weights, by default the file's.
        device: where the model goes.
        branch: must be None; the parts of this family only work together.
        lora_alpha: of LoRA inside the file, before what its configuration says, before the published 32.
        changes: fields of `MPlugOwlConfig` to set.

    Returns:
        The model, in evaluation mode.

    Raises:
        StateError: (a ValueError) listing missing, unexpected and misshapen keys.
        ValueError: for a branch, and sizes that do not fit each other.
    """
    refuse_branch(branch, "mplug_owl")
    written = checkpoint.config if official_config is None else official_config
    lora = (written or {}).get("lora") or {}
    state = plain_names(checkpoint.state, lora_alpha or lora.get("lora_alpha"))
    # Shapes are read from tensors, merged LoRA included: the language model's, most of the file, only where needed.
    shapes = {key: tuple(state[key].shape) for key in state if not key.startswith("language_model.")}
    if written is None:
        written = described({key: tuple(state[key].shape) for key in state})
    config = MPlugOwlConfig.from_official(written, shapes, **changes)
    native, _ = key_map().forward(state)
    return assemble(config, native, dtype, device)


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlugOwlForConditionalGeneration:
    """A model directory written by `save_pretrained`.

    Args:
        path: the directory.
        branch: must be None.
        dtype, device: of the model; by default the file's type, on the CPU.
        changes: fields of `MPlugOwlConfig` to set.

    Raises:
        ValueError: as `from_official`, and for a field that the configuration does not have.
    """
    refuse_branch(branch, "mplug_owl")
    config = MPlugOwlConfig.from_pretrained(path, trust_remote_code=False).changed(changes)
    return assemble(config, read_checkpoint(path).state, dtype, device)


def assemble(
    config: MPlugOwlConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MPlugOwlForConditionalGeneration:
    """A model of `config` with exactly the weights of `state`.

    Args:
        config: sizes, which the weights must have.
        state: our name -> tensor. A tied head may be absent, as it is from some BLOOM files.
        dtype, device: of the model.

    Returns:
        The model, in evaluation mode.

    Raises:
        StateError: for any other set of names or shapes.
    """
    # Files of BLOOM may lack the head, which is their token table (section 5.5).
    tied = ["language_model.lm_head.weight"] if config.tie_word_embeddings else []
    model = build_strict(lambda: MPlugOwlForConditionalGeneration(config), state, tied=tied, dtype=dtype)
    # Rotary frequencies lie in no file: a model built without memory has none until their modules are made again.
    for name, module in list(model.language_model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, last = name.rpartition(".")
            setattr(model.language_model.get_submodule(parent), last, type(module)(model.language_model.config))
    return model.to(device).eval()


def around(
    llm: str | Path,
    *,
    vision: VisionConfig | str | Path | None = None,
    abstractor: AbstractorConfig | None = None,
    temporal: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]:
    """Model and processor around the causal language model in the directory `llm`, whose weights are kept.

    This is where stage 1 begins: a language model, a tower, and a fresh abstractor between them.

    Args:
        llm: a transformers directory of a causal language model, with its tokenizer.
        vision: sizes of a fresh tower, or a transformers directory of a CLIP vision model to copy.
        abstractor: its sizes.
        temporal: whether the model reads clips.
        image_size: side in pixels that a copied tower is resized to; None: its own.
        seed: of what is fresh.
        dtype: of the model, by default float32.

    Returns:
        The model, in evaluation mode, and its processor.

    Raises:
        ValueError: for a directory without a language model or a tokenizer, and for a `vision` that holds no CLIP.

    Source:
        arXiv 2304.14178, section 3; specification mPLUG-Owl, sections 2 (CLIP's names) and 9.

    Example:
        >>> model, processor = around("my-llama", vision=VisionConfig(dim=64, num_heads=4, num_layers=2, mlp_dim=256))
        >>> model.save_pretrained("my-owl"), processor.save_pretrained("my-owl")
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    llm = Path(llm)
    if not (llm / "config.json").is_file():
        raise ValueError(f"expected a transformers directory of a language model, got {llm}; pass llm=DIR")
    kind = read_json(llm / "config.json").get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"expected a causal language model of transformers in {llm}, got {kind}; pass llm=DIR")
    tower = None
    if isinstance(vision, str | Path):
        found, tower = clip_tower(Path(vision), image_size)
        found.pop("activation")  # QuickGELU, as all published towers
        vision = VisionConfig(**found)
    tokenizer = tokenizer_to_talk(llm)
    language_model = load_whole(AutoModelForCausalLM, llm, dtype=dtype or torch.float32)
    # The tokenizer's ids, not the source's: `tokenizer_to_talk` may have chosen what pads.
    config = MPlugOwlConfig(
        text_config=language_model.config.to_dict(), vision=vision, abstractor=abstractor, temporal=temporal,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the caller's own draws stay as they are
        torch.manual_seed(seed)
        with torch.device("meta"):
            # a shell: drawing weights that the source replaces takes minutes at 7B
            shell = build_language_model(config.text_sizes)
        model = MPlugOwlForConditionalGeneration(config, shell)
    model.language_model = adopt(language_model)
    # The language model chose its attention when it was loaded; now all parts that can choose have the same.
    model.set_attn_implementation("sdpa")
    if tower is not None:
        # A CLIP has no temporal modules: those stay fresh, everything else must be there.
        missing, unexpected = model.vision.load_state_dict(tower, strict=False)
        strangers = [key for key in missing if ".temporal." not in key] + list(unexpected)
        if strangers:
            raise ValueError(f"expected a CLIP tower in {vision}, got others: {strangers[0]}")
    model.generation_config = type(model.generation_config).from_model_config(config)
    return model.to(dtype).eval(), MPlugOwlProcessor.from_config(config, tokenizer)
