"""Official mPLUG-Owl weights <-> Plait's layout, both ways bit for bit; the language model keeps transformers' names.

official state -> plain_names (trainer checkpoints unwrapped, LoRA merged) -> KeyMap -> strict load

Build mPLUG-Owl models from weights on disk: official directories and files, trainer checkpoints, model directories.

checkpoint -> plain names, LoRA merged -> config (sizes read off the weights) -> model on the meta device -> strict load

An untrained mPLUG-Owl around any causal language model: what stage 1 begins with.

directory of a language model -> its weights, a fresh or given vision tower, a fresh abstractor -> model, processor
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.errors import no_code_of
from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig, described, is_official_config
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration, adopt, build_language_model
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.nn.vit import clip_tower, shared_abstractor_rules, vision_rules
from plait.weights.files import Checkpoint, LazyState, StateError, listed, load_strict, meta_state, read_checkpoint
from plait.weights.keymap import Drop, KeyMap, Rename, Rule, Singleton, prefixed

_P = "{p:weight|bias}"
WRAPPER = "base_model.model."
PUBLISHED_ALPHA = 32.0
"""`lora_alpha` of the released script, for trainer checkpoints, which do not say."""


def is_official(keys: Iterable[str]) -> bool:
    """Whether these are keys of an official mPLUG-Owl file, a trainer checkpoint of it included."""
    names = {key.removeprefix(WRAPPER) for key in keys}
    return "query_tokens" in names and "vision_model.embeddings.cls_token" in names


def temporal_rules() -> list[Rule]:
    """Rules of one layer's temporal module: linear layers and a convolution over time, saved as 3-D convolutions."""
    return [
        Rename(f"ln.{_P}", f"norm.{_P}"),
        Singleton("{n:down_proj|up_proj}.weight", "{n:down_proj|up_proj}.weight", official_dims=(2, 3, 4)),
        Singleton("conv.weight", "conv.weight", official_dims=(3, 4)),
        Rename("{n:down_proj|conv|up_proj}.bias", "{n:down_proj|conv|up_proj}.bias"),
    ]


def tower_rules() -> list[Rule]:
    """Rules of the vision tower alone, the temporal modules of the video variant included."""
    temporal = prefixed(temporal_rules(), "encoder.layers.{i}.temporal.", "layers.{i}.temporal.")
    return [*temporal, *vision_rules()]


def abstractor_rules() -> list[Rule]:
    """Rules of the abstractor and its queries, which lie beside it in official files; native: `abstractor.` ahead."""
    return [
        Rename("query_tokens", "abstractor.queries"),
        Rename("temporal_query_tokens", "abstractor.temporal_queries"),
        Rename(f"abstractor.temporal_visual_fc.{_P}", f"abstractor.temporal_proj.{_P}"),
        *prefixed(shared_abstractor_rules(), "abstractor.", "abstractor."),
    ]


def key_map(config: MPlugOwlConfig | None = None) -> KeyMap:
    """Rules between an official checkpoint and `MPlugOwlForConditionalGeneration`, the same for every `config`."""
    return KeyMap([
        *prefixed(tower_rules(), "vision_model.", "vision."),
        *abstractor_rules(),
        Drop(
            "language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq",
            "rotary frequencies, which the configuration determines",
        ),
        Rename("language_model.{name:.+}", "language_model.{name:.+}"),
    ])  # fmt: skip


def plain_names(state: LazyState, alpha: float | None = None) -> LazyState:
    """The state without the wrapper of PEFT, every LoRA it holds merged, tensor by tensor when read.

    Both spellings are known, `lora_A.weight` of adapter files and `lora_A.default.weight` of trainer checkpoints, also
    beside plain base weights. alpha: `lora_alpha` of the adapters, by default the published 32. Raises StateError where
    an adapter has no base weight in the file.
    """
    names = {_plain(key): key for key in state}
    downs = {name: key for name, key in names.items() if name.endswith(".lora_A.weight")}
    readers: dict[str, Callable[[], Tensor]] = {
        name: partial(state.__getitem__, key) for name, key in names.items() if ".lora_" not in name
    }
    strangers = [name for name in downs if name.replace(".lora_A", "") not in readers]
    if strangers:
        raise StateError(
            f"expected a base weight for every adapter, got none for {listed(strangers)}; this is an adapter alone: "
            "pass it as adapter= beside its base",
            strangers,
        )
    for name, key in downs.items():
        other, weight = names[name.replace("lora_A", "lora_B")], name.replace(".lora_A", "")
        readers[weight] = partial(_merged, readers[weight], state, key, other, alpha or PUBLISHED_ALPHA)
    return LazyState(readers)


def notes(state: Iterable[str], official_config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What `plait convert` should say about a file: that it holds LoRA, and by which factor that was merged."""
    adapters = sum(_plain(key).endswith(".lora_A.weight") for key in state)
    alpha = ((official_config or {}).get("lora") or {}).get("lora_alpha")
    said = f"{alpha:g}, as its configuration says" if alpha else f"{PUBLISHED_ALPHA:g}, as published"
    hint = "" if alpha else '; the file does not say, put {"lora": {"lora_alpha": ...}} into its config.json'
    return (f"merged {adapters} LoRA adapters with lora_alpha {said}{hint}",) if adapters else ()


official_names = plain_names
"""The name by which `plait convert` finds a family's other spellings."""


def _plain(key: str) -> str:
    key = key.removeprefix(WRAPPER).replace(".base_layer.", ".")
    return re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", key)


def _merged(
    base: Callable[[], Tensor], state: Mapping[str, Tensor], down_key: str, up_key: str, alpha: float
) -> Tensor:
    weight, down, up = base(), state[down_key].float(), state[up_key].float()
    return (weight.float() + alpha / len(down) * (up @ down)).to(weight.dtype)


def explain_keys(shapes: Mapping[str, Sequence[int]], config: MPlugOwlConfig) -> None:
    """Prove on shapes alone that a key list fills a model of `config` and converts both ways. Raises StateError."""
    from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration

    official = meta_state({key: [shape, "float32"] for key, shape in shapes.items()})
    rules = key_map()
    native, report = rules.forward(official)
    with torch.device("meta"):
        own = MPlugOwlForConditionalGeneration(config).state_dict()
    wrong = [key for key in own if key not in native and key != "language_model.lm_head.weight"]
    wrong += [key for key in native if key not in own or own[key].shape != native[key].shape]
    back = rules.backward(native)
    wrong += [key for key in official if key not in report.dropped and key not in back]
    wrong += [key for key in back if official[key].shape != back[key].shape]
    if wrong:
        raise StateError(f"expected every key in the model and back, got differences in {listed(wrong)}", wrong)


logger = logging.getLogger(__name__)


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

    official_config: the config.json where the file has none; without either the sizes are read off the weights;
    lora_alpha: of adapters inside the file; changes: fields of `MPlugOwlConfig` to set. Raises ValueError (StateError)
    listing missing, unexpected and misshapen keys.
    """
    _no_branch(branch)
    written = checkpoint.config if official_config is None else official_config
    lora = (written or {}).get("lora") or {}
    state = plain_names(checkpoint.state, lora_alpha or lora.get("lora_alpha"))
    shapes = {key: tuple(state[key].shape) for key in state if not key.startswith("language_model.")}
    if written is None:
        written = described({key: tuple(state[key].shape) for key in state})
    config = MPlugOwlConfig.from_official(written, shapes, **changes)
    native, report = key_map().forward(state)
    for key, reason in report.dropped.items():
        logger.debug("dropped %s: %s", key, reason)
    return assemble(config, native, dtype, device)


def from_directory(
    path: Path,
    *,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlugOwlForConditionalGeneration:
    """A model directory written by `save_pretrained`, or an official one."""
    written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(path)
    if is_official_config(written):
        return from_official(checkpoint, dtype=dtype, device=device, branch=branch, **changes)
    _no_branch(branch)
    config = MPlugOwlConfig.from_pretrained(path, trust_remote_code=False)
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"expected a field of MPlugOwlConfig, got {name!r}")
        setattr(config, name, value)
    return assemble(config, checkpoint.state, dtype, device)


def assemble(
    config: MPlugOwlConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MPlugOwlForConditionalGeneration:
    """A model of `config` with exactly the weights of `state`, ours by name. Raises StateError for any other set."""
    with torch.device("meta"):
        model = MPlugOwlForConditionalGeneration(config)
    tied = ["language_model.lm_head.weight"] if config.tie_word_embeddings else []
    load_strict(model, state, dtype=dtype, assign=True, optional=tied)
    model.tie_weights()
    model.config.architectures = [type(model).__name__]
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StateError("expected a weight for every parameter, got none for a tied head", tied)
    give_buffers_memory(model.language_model)
    model.generation_config = type(model.generation_config).from_model_config(config)
    return model.to(device).eval()


def give_buffers_memory(language_model: nn.Module) -> None:
    """Compute the buffers that no file holds (rotary frequencies) where the model was built without memory."""
    for name, module in list(language_model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, last = name.rpartition(".")
            fresh = type(module)(language_model.config)
            setattr(language_model.get_submodule(parent), last, fresh)


def _no_branch(branch: Sequence[str] | None) -> None:
    if branch is not None:
        raise ValueError(f"expected no branch for mplug_owl, whose parts only work together, got {list(branch)}")


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

    vision: sizes of a fresh tower, or a transformers directory of a CLIP vision model to copy, at `image_size` pixels;
    abstractor: its sizes; temporal: whether it reads clips; seed: of what is fresh. Raises ValueError for a directory
    without a language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llm = Path(llm)
    _check_talks(llm)
    tower = None
    if isinstance(vision, str | Path):
        found, tower = clip_tower(Path(vision), image_size)
        found.pop("activation")  # QuickGELU, as all published towers
        vision = VisionConfig(**found)
    with no_code_of(llm):
        tokenizer: Any = AutoTokenizer.from_pretrained(llm, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    language_model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype or torch.float32, trust_remote_code=False)
    config = MPlugOwlConfig(
        text_config=language_model.config.to_dict(), vision=vision, abstractor=abstractor, temporal=temporal,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            shell = build_language_model(config.text_sizes)
        model = MPlugOwlForConditionalGeneration(config, shell)
    model.language_model = adopt(language_model)
    model.set_attn_implementation("sdpa")
    if tower is not None:
        missing, unexpected = model.vision.load_state_dict(tower, strict=False)
        strangers = [key for key in missing if ".temporal." not in key] + list(unexpected)
        if strangers:
            raise ValueError(f"expected a CLIP tower in {vision}, got others: {strangers[0]}")
    model.generation_config = type(model.generation_config).from_model_config(config)
    return model.to(dtype).eval(), MPlugOwlProcessor.from_config(config, tokenizer)


def _check_talks(llm: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not (llm / "config.json").is_file():
        raise ValueError(f"expected a transformers directory of a language model, got {llm}; pass llm=DIR")
    kind = json.loads((llm / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"expected a causal language model of transformers in {llm}, got {kind}; pass llm=DIR")
