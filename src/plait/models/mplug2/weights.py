"""Official mPLUG-2 and mPLUG weights <-> Plait's layout; every key that is left behind has its reason here.

official state -> official_names (pretraining spellings) -> KeyMap -> what the model's parts need -> strict load
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.fusion import is_connected
from plait.nn.positions import resize_absolute
from plait.objectives.grounding import coordinate_bias
from plait.weights.keymap import Drop, KeyMap, Rename, Rule, prefixed
from plait.weights.singleton import Singleton
from plait.weights.state import LazyState, StateError, listed, meta_state

_P = "{p:weight|bias}"

POSITIONS = "position numbers, which the configuration determines"
NEVER_RUN = {
    "clip": "CLIP's text tower, which rides along and is never run",
    "projection": "CLIP's image projection, which no task applies",
    "visual_mlp": "an MLP for vision that the released universal layers never call",
    "fusion_embeddings": "embeddings of the fusion module, which is given states",
    "fusion_layer": "a fusion layer before the first that is run",
    "connected": "cross-attention of a connected fusion layer, which has none",
    "latents": "latents of the decoder, which has no use for them",
    "fusion_head": "a masked language head on the fusion module; Plait's is the text encoder's",
}
"""Why tensors of the official files are dead."""


def key_map(config: MPlug2Config, *, base: str = "model.", flat_patches: bool | None = None) -> KeyMap:
    """Rules between an official file and Plait's models of `config`: network, teacher and all heads.

    base: prefix of the network in the target; flat_patches: whether the file's patch embedding has no time, by default
    so in files without temporal modules.
    """
    flat = not config.vision_sizes.temporal if flat_patches is None else flat_patches
    rules: list[Rule] = []
    for mark, prefix in (("", base), ("_m", "teacher.")):
        rules += [
            *prefixed(vision_rules(flat=flat), f"visual_encoder{mark}.visual.", f"{prefix}vision."),
            *prefixed(_clip_text_rules(), f"visual_encoder{mark}."),
            Rename(f"visn_fc{mark}.{_P}", f"{prefix}vision_adapter.proj.{{p}}"),
            Rename(f"visn_layer_norm{mark}.{_P}", f"{prefix}vision_adapter.norm.{{p}}"),
            Rename(f"visn_emb_norm{mark}.{_P}", f"{prefix}universal.norm.{{p}}"),
            *prefixed(text_rules(config), f"text_encoder{mark}.", prefix),
            *prefixed(fusion_rules(config), f"fusion_encoder{mark}.", prefix),
            *prefixed(decoder_rules(config), f"text_decoder{mark}.", f"{prefix}decoder."),
        ]
    return KeyMap([*rules, *_head_rules(), *_grounding_rules(config)])


def vision_rules(*, flat: bool) -> list[Rule]:
    """Rules of the vision encoder (prefix `visual_encoder.visual.`). flat: its patch embedding has no time."""
    block, layer = "transformer.resblocks.{i}.", "layers.{i}."
    rules: list[Rule] = [
        Singleton("conv1.weight", "patch_embedding.weight", native_dims=(2,) if flat else ()),
        Rename("class_embedding", "class_embedding"),
        Rename("positional_embedding", "position_embedding"),
        Rename(f"ln_pre.{_P}", "pre_norm.{p}"),
        Rename(f"ln_post.{_P}", "post_norm.{p}"),
        Drop("proj", NEVER_RUN["projection"]),
        *clip_layer_rules(block, layer),
    ]
    for n in (1, 2):
        theirs, ours = f"{block}lmhra{n}.", f"{layer}temporal{n}."
        rules += [
            Rename(f"{theirs}ln.{_P}", f"{ours}norm.{{p}}"),
            Rename(f"{theirs}{{n:down_proj|conv|up_proj}}.bias", f"{ours}{{n}}.bias"),
            Singleton(f"{theirs}{{n:down_proj|up_proj}}.weight", f"{ours}{{n}}.weight", official_dims=(2, 3, 4)),
            Singleton(f"{theirs}conv.weight", f"{ours}conv.weight", official_dims=(3, 4)),
        ]
    return rules


def clip_layer_rules(theirs: str, ours: str) -> list[Rule]:
    """Rules of one of CLIP's layers."""
    return [
        Rename(f"{theirs}attn.in_proj_{_P}", f"{ours}attn.qkv.{{p}}"),
        Rename(f"{theirs}attn.out_proj.{_P}", f"{ours}attn.out_proj.{{p}}"),
        Rename(f"{theirs}ln_1.{_P}", f"{ours}attn_norm.{{p}}"),
        Rename(f"{theirs}ln_2.{_P}", f"{ours}mlp_norm.{{p}}"),
        Rename(f"{theirs}mlp.c_fc.{_P}", f"{ours}fc1.{{p}}"),
        Rename(f"{theirs}mlp.c_proj.{_P}", f"{ours}fc2.{{p}}"),
    ]


def _clip_text_rules() -> list[Rule]:
    names = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight")
    patterns = (*names, "transformer.{_:.*}", "ln_final.{_:.*}")
    return [Drop(name, NEVER_RUN["clip"]) for name in patterns]


def embedding_rules() -> list[Rule]:
    """Rules of BERT's embeddings."""
    return [
        Rename("word_embeddings.weight", "token_embedding.weight"),
        Rename("position_embeddings.weight", "position_embedding.weight"),
        Rename("token_type_embeddings.weight", "type_embedding.weight"),
        Rename(f"LayerNorm.{_P}", "norm.{p}"),
        Drop("position_ids", POSITIONS, restore=_restore_positions),
    ]


def _restore_positions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "position_embedding.weight" not in state:
        return {}
    table = state["position_embedding.weight"]
    return {"position_ids": torch.arange(len(table), device=table.device)[None]}


def layer_rules(theirs: str, ours: str, *, cross: bool = False) -> list[Rule]:
    """Rules of one BERT layer, or of a numbered list of them where the prefixes have a field."""
    rules: list[Rule] = []
    for attention, name in (("attention", "attn"), *([("crossattention", "cross_attn")] if cross else [])):
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
            rules.append(Rename(f"{theirs}{attention}.self.{part}.{_P}", f"{ours}{name}.{letter}_proj.{{p}}"))
        rules.append(Rename(f"{theirs}{attention}.output.dense.{_P}", f"{ours}{name}.out_proj.{{p}}"))
        rules.append(Rename(f"{theirs}{attention}.output.LayerNorm.{_P}", f"{ours}{name}.norm.{{p}}"))
    return [
        *rules,
        Rename(f"{theirs}intermediate.dense.{_P}", f"{ours}fc1.{{p}}"),
        Rename(f"{theirs}output.dense.{_P}", f"{ours}fc2.{{p}}"),
        Rename(f"{theirs}output.LayerNorm.{_P}", f"{ours}mlp_norm.{{p}}"),
    ]


def _numbers(stop: int) -> str:
    """A field for the layer numbers below `stop`."""
    return "{i:" + "|".join(map(str, range(stop))) + "}"


def text_rules(config: MPlug2Config) -> list[Rule]:
    """Rules of the text encoder; its last layers are the universal ones."""
    first = config.num_text_layers
    rules = [*prefixed(embedding_rules(), "embeddings.", "text.embeddings.")]
    if first:
        rules += layer_rules(f"encoder.layer.{_numbers(first)}.", "text.layers.{i}.")
    for k in range(config.num_universal_layers):
        theirs, ours = f"encoder.layer.{first + k}.", f"universal.stacks.shared.{k}."
        rules += [
            *layer_rules(theirs, ours, cross=True),
            Drop(f"{theirs}{{_:intermediate_vision|output_vision}}.{{rest:.*}}", NEVER_RUN["visual_mlp"]),
        ]
    return [
        *rules,
        Rename(f"encoder.layer.{first}.latents", "universal.latents"),
        *prefixed(lm_head_rules("masked_lm.", "text.embeddings."), "cls.predictions."),
    ]


def fusion_rules(config: MPlug2Config) -> list[Rule]:
    """Rules of the fusion module: the last layers of the stored stack."""
    start = config.stored_fusion_layers - config.num_fusion_layers
    rules: list[Rule] = [
        Drop("embeddings.{_:.*}", NEVER_RUN["fusion_embeddings"]),
        Drop("cls.{_:.*}", NEVER_RUN["fusion_head"]),
    ]
    if start:
        rules.append(Drop(f"encoder.layer.{_numbers(start)}.{{_:.*}}", NEVER_RUN["fusion_layer"]))
    for k in range(config.num_fusion_layers):
        theirs, connected = f"encoder.layer.{start + k}.", is_connected(k, config.fusion_stride)
        rules += layer_rules(theirs, f"fusion.layers.{k}.", cross=not connected)
        if connected:
            rules.append(Drop(f"{theirs}crossattention.{{_:.*}}", NEVER_RUN["connected"]))
    return rules


def decoder_rules(config: MPlug2Config) -> list[Rule]:
    """Rules of the decoder (prefix `text_decoder.`)."""
    return [
        *prefixed(embedding_rules(), "bert.embeddings.", "embeddings."),
        *layer_rules("bert.encoder.layer.{i}.", "layers.{i}.", cross=True),
        Drop("bert.encoder.layer.{i}.latents", NEVER_RUN["latents"]),
        Drop("bert.encoder.layer.{i}.{_:intermediate_vision|output_vision}.{rest:.*}", NEVER_RUN["visual_mlp"]),
        *prefixed(lm_head_rules("head.", "embeddings."), "cls.predictions."),
    ]


def lm_head_rules(ours: str, embeddings: str) -> list[Rule]:
    """Rules of a language head `ours` whose table is the token table of `embeddings`; both are prefixes."""
    return [
        Rename(f"transform.dense.{_P}", f"{ours}dense.{{p}}"),
        Rename(f"transform.LayerNorm.{_P}", f"{ours}norm.{{p}}"),
        Rename("bias", f"{ours}bias"),
        Drop(
            "decoder.{_:weight|bias}",
            "a second name of the token table and of the bias",
            restore=partial(_restore_ties, ours, embeddings),
        ),
    ]


def _restore_ties(ours: str, embeddings: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if f"{ours}bias" not in state:
        return {}
    return {"decoder.weight": state[f"{embeddings}token_embedding.weight"], "decoder.bias": state[f"{ours}bias"]}


def _head_rules() -> list[Rule]:
    """The contrastive and matching heads, their teacher and queues."""
    return [
        Rename(f"{{n:vision|text}}_proj.{_P}", "alignment.{n}_proj.{p}"),
        Rename(f"{{n:vision|text}}_proj_m.{_P}", "alignment.teacher_{n}_proj.{p}"),
        Rename(f"itm_head.{_P}", "alignment.match_head.{p}"),
        Rename("temp", "alignment.temperature_parameter"),
        Rename("image_queue", "alignment.vision_queue"),
        Rename("text_queue", "alignment.text_queue"),
        Rename("idx_queue", "alignment.id_queue"),
        Rename("queue_ptr", "alignment.queue_pointer"),
    ]


def _grounding_rules(config: MPlug2Config) -> list[Rule]:
    reason = "a constant of the coordinate tokens, which the configuration determines"
    return [
        Drop(name, reason, restore=partial(_restore_grounding, config, name))
        for name in ("prefix_ids", "target_ids", "bbox_prob_mask")
    ]


def _restore_grounding(config: MPlug2Config, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if config.task != "ground":
        return {}
    start, bins = config.grounding_start_id, config.grounding_bins
    made = {
        "prefix_ids": torch.tensor([start]),
        "target_ids": torch.arange(start + 1, start + bins + 2),
        "bbox_prob_mask": coordinate_bias(config.vocab_size, bins, start + 1),
    }
    return {name: made[name]}


def finetuning_name(key: str, *, official: bool = False) -> str | None:
    """The name in a finetuned file of a tensor of a pretraining file.

    Pretraining files hold `text_encoder.bert.*` and `fusion_encoder.bert.*` or `.fusion.*`. `official` repeats the
    released loader, which loses (None) every fusion tensor that needs no new name: so finetuning from a finetuned file
    silently starts without its fusion module.
    """
    if "decode" in key or not ("fusion" in key or "bert" in key):
        return key
    name = key.replace("fusion.", "").replace("bert.", "")
    return None if official and name == key and "fusion" in key else name


def official_names(state: LazyState) -> LazyState:
    """The state under the names of finetuned files. Raises StateError where two keys get one name."""
    names = {key: finetuning_name(key) or key for key in state}
    doubled = [key for key, name in names.items() if name != key and name in state]
    if doubled:
        raise StateError(f"expected one tensor per name, got two of {listed(doubled)}; remove one of each", doubled)
    return LazyState({name: partial(state.__getitem__, key) for key, name in names.items()})


def check_ties(state: Mapping[str, Tensor]) -> None:
    """Raise StateError where the file's two names of a token table or bias hold different numbers."""
    for key in state:
        for head, whole in ((".cls.predictions.decoder.weight", ".bert.embeddings.word_embeddings.weight"),
                            (".cls.predictions.decoder.bias", ".cls.predictions.bias")):  # fmt: skip
            if key != f"text_decoder{head}" or f"text_decoder{whole}" not in state:
                continue
            if not torch.equal(state[key], state[f"text_decoder{whole}"]):
                raise StateError(f"expected {key} to equal text_decoder{whole}, got other numbers", [key])


def resize_positions(state: Mapping[str, Tensor], config: MPlug2Config) -> LazyState:
    """A converted state whose position tables fit the image size of `config`, resized bilinearly as published."""
    readers: dict[str, Callable[[], Tensor]] = {key: partial(state.__getitem__, key) for key in state}
    for key in state:
        if key.endswith("vision.position_embedding"):
            readers[key] = partial(_resized, state, key, config.vision_sizes.grid)
    return LazyState(readers)


def _resized(state: Mapping[str, Tensor], key: str, grid: int) -> Tensor:
    return resize_absolute(state[key], grid, mode="bilinear")


def dead_keys(keys: Iterable[str], config: MPlug2Config, *, flat_patches: bool | None = None) -> dict[str, str]:
    """Official keys that no task of Plait reads, with the reason."""
    found = key_map(config, flat_patches=flat_patches).explain(keys)
    reasons = {key: rule.reason for key, rule in found.items() if isinstance(rule, Drop)}
    return {key: reason for key, reason in reasons.items() if reason in NEVER_RUN.values()}


def explain_keys(shapes: Mapping[str, tuple[int, ...]], config: MPlug2Config) -> None:
    """Prove on shapes alone that a key list converts both ways: each key comes back with its shape, or is dead.

    Raises StateError listing what does not.
    """
    state = meta_state({finetuning_name(k) or k: [s, "float32"] for k, s in shapes.items()})
    rules = key_map(config)
    native, report = rules.forward(state)
    back = rules.backward(native)
    kept = [key for key in state if report.dropped.get(key) not in NEVER_RUN.values()]
    wrong = [key for key in kept if key not in back or back[key].shape != state[key].shape]
    wrong += [key for key in back if key not in state]
    if wrong:
        raise StateError(f"expected every key back with its shape, got differences in {listed(wrong)}", wrong)


def grid_of(table_shape: tuple[int, ...]) -> int:
    """Patches along one side of a position table with a class row."""
    return math.isqrt(table_shape[0] - 1)
