"""Official mPLUG-Owl weights <-> Plait's layout, both ways bit for bit; the language model keeps transformers' names.

official state -> plain_names (trainer checkpoints unwrapped, LoRA merged) -> KeyMap -> strict load
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.nn.vit import shared_abstractor_rules, vision_rules
from plait.weights.keymap import Drop, KeyMap, Rename, Rule, prefixed
from plait.weights.singleton import Singleton
from plait.weights.state import LazyState, StateError, listed, meta_state

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
