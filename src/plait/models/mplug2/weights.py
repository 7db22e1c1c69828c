"""Official mPLUG-2 and mPLUG weights <-> Plait's layout, and how models are made of what lies on disk.

official state -> official_names (pretraining spellings) -> KeyMap -> what the model's parts need -> strict load
directory      -> config -> model of the task on the meta device   -> only the tensors its parts need -> strict load
CLIP, BERT     -> vision | text, universal, fusion, decoder of a fresh model: where pretraining begins

Every key that is left behind has its reason here. Source: specification mPLUG-2, sections 12 and 13.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.composition import PARTS
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel, is_connected
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForGrounding,
    MPlug2ForImageClassification,
    MPlug2ForSequenceClassification,
    MPlug2ForVideoClassification,
)
from plait.nn.positions import resize_absolute
from plait.nn.temporal import inflate_patches
from plait.objectives.grounding import coordinate_bias
from plait.weights.files import Checkpoint, LazyState, StateError, listed, load_strict, read_checkpoint
from plait.weights.keymap import Concat, Drop, KeyMap, Rename, Rule, Singleton, count_layers, prefixed

logger = logging.getLogger(__name__)

CLASSES: dict[str, type[MPlug2PreTrainedModel]] = {
    c.__name__: c
    for c in (
        MPlug2ForConditionalGeneration,
        MPlug2ForRetrieval,
        MPlug2ForGrounding,
        MPlug2ForImageClassification,
        MPlug2ForVideoClassification,
        MPlug2ForSequenceClassification,
        MPlug2ForPreTraining,
        MPlug2Model,
    )
}


def from_official(
    checkpoint: Checkpoint,
    *,
    official_config: Mapping[str, Any] | None = None,
    task: str | None = None,
    model_class: type[MPlug2PreTrainedModel] | None = None,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlug2PreTrainedModel:
    """A model from an official file. Only tensors that its task needs are read.

    Args:
        checkpoint: of an mPLUG-2 or mPLUG file, pretraining or finetuned names.
        official_config: the settings of the run where the file holds none.
        task: of `composition.TASKS`, by default all that the class can do.
        model_class: by default what the file or the task is for.
        branch: media to keep, of text, image and video; by default all.
        dtype: of the weights, by default as stored.
        device: where the model goes once it is complete.
        changes: fields of `MPlug2Config`, such as `image_size=384`, `distill=True` or
            `official=True`.

    Returns:
        The model in evaluation mode.

    Raises:
        StateError: listing missing, unexpected and misshapen keys, and tied tensors that differ.
        ValueError: for unknown settings, fields, branches, and a task of another class.
    """
    state = official_names(checkpoint.state)
    shapes = {key: tuple(state[key].shape) for key in state}
    settings = checkpoint.config if official_config is None else official_config
    config = MPlug2Config.from_official(settings, shapes)
    if "prefix_ids" in state:
        # The file itself says its start token; settings, where there are any, may lack it.
        config.grounding_start_id = int(state["prefix_ids"].flatten()[0])
    rules = key_map(config, flat_patches=len(shapes["visual_encoder.visual.conv1.weight"]) == 4)
    config = config.changed(changes if task is None else {**changes, "task": task}, branch)
    # Before the rules, which drop the second name of a tied tensor unseen.
    check_ties(state)
    native, _ = rules.forward(state)
    chosen = model_class or class_for(config, native)
    return assemble(config, chosen, native, dtype, device)


def from_directory(
    path: Path,
    *,
    task: str | None = None,
    model_class: type[MPlug2PreTrainedModel] | None = None,
    branch: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> MPlug2PreTrainedModel:
    """A model directory written by `save_pretrained`, as the class that wrote it or another one of the family.

    Args:
        path: the directory.
        task, model_class, branch, dtype, device, changes: as in `from_official`; a captioner out of
            a pretraining directory is `task="caption"`.

    Returns:
        The model in evaluation mode.

    Raises:
        StateError: listing missing, unexpected and misshapen keys.
        ValueError: for unknown fields and branches, and a task of another class.
    """
    config = MPlug2Config.from_pretrained(path, trust_remote_code=False)
    stored = CLASSES.get((config.architectures or [""])[0], MPlug2Model)
    if model_class not in (None, stored) or task is not None:
        # another class does not have the task of the one that wrote the directory
        changes = {"task": task} | changes
    config = config.changed(changes, branch)
    if model_class is None and task is not None and task not in stored.TASKS:
        model_class = class_for(config, ())
    state: Mapping[str, Tensor] = read_checkpoint(path).state
    # The network saved alone has no prefix; every other class keeps it under `model.`.
    if stored is MPlug2Model:
        state = LazyState({f"model.{key}": partial(state.__getitem__, key) for key in state})
    return assemble(config, model_class or stored, state, dtype, device)


def class_for(config: MPlug2Config, native: Iterable[str]) -> type[MPlug2PreTrainedModel]:
    """The class for `config.task`, or without one for the parts that the file holds.

    Args:
        config: its task and media are read.
        native: keys in Plait's layout; none are needed where there is a task.

    Returns:
        Without a task: pretraining where decoder, masked head and match head are there, else
            generation where a decoder is, else retrieval.
    """
    if config.task is None:
        # Two levels tell the part: `model.decoder`, `alignment.match_head`.
        held = {".".join(key.split(".")[:2]) for key in native}
        if {"model.decoder", "model.masked_lm", "alignment.match_head"} <= held:
            return MPlug2ForPreTraining
        return MPlug2ForConditionalGeneration if "model.decoder" in held else MPlug2ForRetrieval
    if config.task == "classify":
        if "video" in config.modalities:
            return MPlug2ForVideoClassification
        return MPlug2ForImageClassification if config.modalities else MPlug2ForSequenceClassification
    return next(c for c in CLASSES.values() if config.task in c.TASKS)


def assemble(
    config: MPlug2Config,
    model_class: type[MPlug2PreTrainedModel],
    native: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> MPlug2PreTrainedModel:
    """A model with the weights of `native` that its parts need.

    Heads that the file lacks start fresh. A teacher that it lacks is a copy of the student, a
    masked language head one of the decoder's. Position tables are resized to the image size of
    `config`, bilinearly as published.

    Args:
        config: of the model.
        model_class: which of `CLASSES`.
        native: tensors in Plait's layout, read one by one as they are needed.
        dtype: of the weights, by default as stored.
        device: where the model goes.

    Returns:
        The model in evaluation mode, its teacher frozen.

    Raises:
        StateError: for anything else that is missing, unexpected or misshapen.
    """
    with torch.device("meta"):
        model = model_class(config)
    own = model.state_dict()
    # of everything that is no network: projections, queues, classifiers
    fresh: dict[str, Tensor] = {}
    for name, head in model_class.heads(model.config).items():
        head.apply(model._init_weights)
        fresh |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    base = "" if model_class is MPlug2Model else "model."
    # Native keys say `model.` for the network; the bare network has no prefix.
    source = {base + key.removeprefix("model.") if key.startswith("model.") else key: key for key in native}

    def read(key: str) -> Tensor:
        tensor = native[source[key]]
        # The teacher's table too, hence the ending; the released loader resizes both (specification 13).
        if key.endswith("vision.position_embedding"):
            return resize_absolute(tensor, config.vision_sizes.grid, mode="bilinear")
        return tensor

    state: dict[str, Callable[[], Tensor]] = {
        key: partial(read, key) for key in source if key in own or not has_no_use(key, model, base)
    }
    started: set[str] = set()
    # In this order: a copy of the student, then of the decoder head, then fresh; what is left is an error.
    for key in (key for key in own if key not in state):
        origin = key.replace("teacher.", base, 1) if key.startswith("teacher.") else key
        if origin not in source:
            origin = origin.replace("masked_lm.", "decoder.head.", 1)
        if key != origin and origin in source:
            # it will be trained apart from its origin
            state[key] = lambda origin=origin: read(origin).clone()
        elif key in fresh:
            state[key] = partial(fresh.__getitem__, key)
            started.add(key.partition(".")[0])
    if started:
        logger.warning("not in the file, or in part, so fresh: %s", ", ".join(sorted(started)))
    load_strict(model, LazyState(state), dtype=dtype, assign=True)
    model.requires_grad_(True)
    model.freeze_teacher()
    model.config.architectures = [model_class.__name__]
    return model.to(device).eval()


def has_no_use(key: str, model: MPlug2PreTrainedModel, base: str) -> bool:
    """Whether the model does without a native key of a file: a part, a head or temporal modules that it does not have.

    A key that is neither used nor excused here reaches the strict load, which lists it.

    Args:
        key: in Plait's layout.
        model: built, on any device.
        base: prefix of its network, `model.` or nothing.
    """
    if key.startswith(("alignment.", "classifier.")):
        head = getattr(model, key.partition(".")[0], None)
        # `q` is for `queue_pointer`: all of this exists only in a model with queues.
        queued = key.removeprefix("alignment.").startswith(("teacher_", "vision_queue", "text_queue", "id_queue", "q"))
        return head is None or (queued and not model.config.queue_size)
    prefix = "teacher." if key.startswith("teacher.") else base
    network = model if prefix == "" else getattr(model, prefix.removesuffix("."), None)
    if not isinstance(network, MPlug2Model):
        return True
    inner = key.removeprefix(prefix)
    part = inner.partition(".")[0]
    if not hasattr(network, part):
        # Anything else under the network is no part of the family, and is reported.
        return part == "vision_adapter" or part in PARTS
    if part == "vision":
        return ".temporal" in inner and not network.vision.has_temporal
    if part == "universal" and network.universal.latents is None:
        # Universal layers that never see vision have neither cross-attention nor latents nor visual norm.
        return ".cross_attn." in inner or inner.startswith(("universal.latents", "universal.norm."))
    return False


_P = "{p:weight|bias}"

NEVER_RUN = {
    "clip": "CLIP's text tower, which rides along and is never run",
    "projection": "CLIP's image projection, which no task applies",
    "visual_mlp": "an MLP for vision that the released universal layers never call",
    "fusion_embeddings": "embeddings of the fusion module, which is given states",
    "fusion_layer": "a fusion layer before the first that is run",
    "connected": "cross-attention of a connected fusion layer, which has none",
    "latents": "latents of the decoder, which has no use for them",
    "elsewhere": "no part of what is started from this file",
    "fusion_head": "a masked language head on the fusion module; Plait's is the text encoder's",
}
"""Why tensors of the official files are dead."""

# The vision encoder of an official file is a whole CLIP; these stand beside its `visual.`.
CLIP_TEXT_KEYS = (
    "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "transformer.{_:.*}",
    "ln_final.{_:.*}",
)  # fmt: skip
"""Patterns of CLIP's text tower in the vision encoder of an official file."""


def key_map(config: MPlug2Config, *, base: str = "model.", flat_patches: bool | None = None) -> KeyMap:
    """Rules between an official file and Plait's models of `config`: network, teacher and all heads.

    Args:
        config: numbers of layers decide which keys are universal, run or dead.
        base: prefix of the network in the target.
        flat_patches: whether the file's patch embedding has no time; by default so without temporal
            modules.

    Returns:
        Rules that convert in both directions.
    """
    flat = not config.vision_sizes.temporal if flat_patches is None else flat_patches
    rules: list[Rule] = []
    # Momentum copies carry `_m` behind the name of their module; keys inside are the same.
    for mark, prefix in (("", base), ("_m", "teacher.")):
        rules += [
            *prefixed(vision_rules(flat=flat), f"visual_encoder{mark}.visual.", f"{prefix}vision."),
            *(Drop(f"visual_encoder{mark}.{name}", NEVER_RUN["clip"]) for name in CLIP_TEXT_KEYS),
            Rename(f"visn_fc{mark}.{_P}", f"{prefix}vision_adapter.proj.{{p}}"),
            Rename(f"visn_layer_norm{mark}.{_P}", f"{prefix}vision_adapter.norm.{{p}}"),
            Rename(f"visn_emb_norm{mark}.{_P}", f"{prefix}universal.norm.{{p}}"),
            *prefixed(text_rules(config), f"text_encoder{mark}.", prefix),
            *prefixed(fusion_rules(config), f"fusion_encoder{mark}.", prefix),
            *prefixed(decoder_rules(config), f"text_decoder{mark}.", f"{prefix}decoder."),
        ]
    rules += [
        Rename(f"{{n:vision|text}}_proj.{_P}", "alignment.{n}_proj.{p}"),
        Rename(f"{{n:vision|text}}_proj_m.{_P}", "alignment.teacher_{n}_proj.{p}"),
        Rename(f"itm_head.{_P}", "alignment.match_head.{p}"),
        Rename("temp", "alignment.temperature_parameter"),
        Rename("image_queue", "alignment.vision_queue"),
        Rename("text_queue", "alignment.text_queue"),
        Rename("idx_queue", "alignment.id_queue"),
        Rename("queue_ptr", "alignment.queue_pointer"),
    ]
    # Grounding files of mPLUG store their coordinate tokens as buffers (specification 7.3).
    reason = "a constant of the coordinate tokens, which the configuration determines"
    for name in ("prefix_ids", "target_ids", "bbox_prob_mask"):
        rules.append(Drop(name, reason, restore=partial(_restore_grounding, config, name)))
    return KeyMap(rules)


def vision_rules(*, flat: bool) -> list[Rule]:
    """Rules of the vision encoder (prefix `visual_encoder.visual.`).

    Args:
        flat: whether its patch embedding has no time: (C, 3, P, P) instead of (C, 3, t, P, P).
    """
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
            # Convolutions of 1 x 1 x 1 are linear layers here, and the depthwise one keeps its time axis alone.
            Singleton(f"{theirs}{{n:down_proj|up_proj}}.weight", f"{ours}{{n}}.weight", official_dims=(2, 3, 4)),
            Singleton(f"{theirs}conv.weight", f"{ours}conv.weight", official_dims=(3, 4)),
        ]
    return rules


def clip_layer_rules(theirs: str, ours: str) -> list[Rule]:
    """Rules of one of CLIP's layers, or of a numbered list of them where the prefixes have a field.

    theirs, ours: prefixes on either side. Queries, keys and values lie packed in one tensor in
    both.
    """
    return [
        Rename(f"{theirs}attn.in_proj_{_P}", f"{ours}attn.qkv.{{p}}"),
        Rename(f"{theirs}attn.out_proj.{_P}", f"{ours}attn.out_proj.{{p}}"),
        Rename(f"{theirs}ln_1.{_P}", f"{ours}attn_norm.{{p}}"),
        Rename(f"{theirs}ln_2.{_P}", f"{ours}mlp_norm.{{p}}"),
        Rename(f"{theirs}mlp.c_fc.{_P}", f"{ours}fc1.{{p}}"),
        Rename(f"{theirs}mlp.c_proj.{_P}", f"{ours}fc2.{{p}}"),
    ]


def text_rules(config: MPlug2Config) -> list[Rule]:
    """Rules of the text encoder; its last layers are the universal ones.

    Args:
        config: `num_text_layers` and `num_universal_layers` are read.
    """
    first = config.num_text_layers
    rules = [*prefixed(embedding_rules(), "embeddings.", "text.embeddings.")]
    if first:
        # Numbers are spelled out, so that a field never swallows a universal layer.
        numbers = "|".join(map(str, range(first)))
        rules += layer_rules(f"encoder.layer.{{i:{numbers}}}.", "text.layers.{i}.")
    for k in range(config.num_universal_layers):
        # the file's last layers, which alone have cross-attention
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
    """Rules of the fusion module: the last layers of the stored stack.

    Args:
        config: numbers of layers, and the stride, which decides whose cross-attention is dead.
    """
    start = config.stored_fusion_layers - config.num_fusion_layers
    rules: list[Rule] = [
        Drop("embeddings.{_:.*}", NEVER_RUN["fusion_embeddings"]),
        Drop("cls.{_:.*}", NEVER_RUN["fusion_head"]),
    ]
    if start:
        numbers = "|".join(map(str, range(start)))
        rules.append(Drop(f"encoder.layer.{{i:{numbers}}}.{{_:.*}}", NEVER_RUN["fusion_layer"]))
    for k in range(config.num_fusion_layers):
        theirs, connected = f"encoder.layer.{start + k}.", is_connected(k, config.fusion_stride)
        rules += layer_rules(theirs, f"fusion.layers.{k}.", cross=not connected)
        if connected:
            rules.append(Drop(f"{theirs}crossattention.{{_:.*}}", NEVER_RUN["connected"]))
    return rules


def decoder_rules(config: MPlug2Config) -> list[Rule]:
    """Rules of the decoder (prefix `text_decoder.`).

    Every layer has cross-attention. Latents and MLPs for vision ride along in the last ones, unused
    (specification 6).
    """
    return [
        *prefixed(embedding_rules(), "bert.embeddings.", "embeddings."),
        *layer_rules("bert.encoder.layer.{i}.", "layers.{i}.", cross=True),
        Drop("bert.encoder.layer.{i}.latents", NEVER_RUN["latents"]),
        Drop("bert.encoder.layer.{i}.{_:intermediate_vision|output_vision}.{rest:.*}", NEVER_RUN["visual_mlp"]),
        *prefixed(lm_head_rules("head.", "embeddings."), "cls.predictions."),
    ]


def embedding_rules() -> list[Rule]:
    """Rules of BERT's embeddings; `position_ids`, 0 to 511, is stored in the files and made again for them."""
    return [
        Rename("word_embeddings.weight", "token_embedding.weight"),
        Rename("position_embeddings.weight", "position_embedding.weight"),
        Rename("token_type_embeddings.weight", "type_embedding.weight"),
        Rename(f"LayerNorm.{_P}", "norm.{p}"),
        Drop("position_ids", "position numbers, which the configuration determines", restore=_restore_positions),
    ]


def _restore_positions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`position_ids` (1, positions) where there is a position table, else nothing."""
    if "position_embedding.weight" not in state:
        return {}
    table = state["position_embedding.weight"]
    return {"position_ids": torch.arange(len(table), device=table.device)[None]}


def layer_rules(theirs: str, ours: str, *, cross: bool = False) -> list[Rule]:
    """Rules of one BERT layer, or of a numbered list of them where the prefixes have a field.

    Args:
        theirs, ours: prefixes on either side.
        cross: whether it has cross-attention.
    """
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


def lm_head_rules(ours: str, embeddings: str) -> list[Rule]:
    """Rules of a language head whose table is the token table of its embeddings.

    Args:
        ours: prefix of the head.
        embeddings: prefix of the embeddings that hold its table.
    """
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
    """The second names of table and bias, where the head `ours` is there."""
    if f"{ours}bias" not in state:
        return {}
    return {"decoder.weight": state[f"{embeddings}token_embedding.weight"], "decoder.bias": state[f"{ours}bias"]}


def _restore_grounding(config: MPlug2Config, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One of the three constants of a grounding file, for a grounding model, else nothing.

    prefix_ids: (1,); target_ids: (bins + 1,); bbox_prob_mask: (vocab,), -10000 outside the
    coordinate tokens.
    """
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

    Pretraining files hold `text_encoder.bert.*` and `fusion_encoder.bert.*` or `.fusion.*`. The
    rule is that of the released loader; the content of a real file is not verified (specification
    13).

    Args:
        key: of an official file.
        official: repeat the released loader, which loses every fusion tensor that needs no new
            name: so finetuning from a finetuned file silently starts without its fusion module.

    Returns:
        The name, or None for a tensor that the released loader loses.
    """
    if "decode" in key or not ("fusion" in key or "bert" in key):
        return key
    name = key.replace("fusion.", "").replace("bert.", "")
    return None if official and name == key and "fusion" in key else name


def official_names(state: LazyState) -> LazyState:
    """The state under the names of finetuned files; nothing is read yet.

    Raises:
        StateError: where two keys get one name.
    """
    names = {key: finetuning_name(key) or key for key in state}
    doubled = [key for key, name in names.items() if name != key and name in state]
    if doubled:
        raise StateError(f"expected one tensor per name, got two of {listed(doubled)}; remove one of each", doubled)
    return LazyState({name: partial(state.__getitem__, key) for key, name in names.items()})


def check_ties(state: Mapping[str, Tensor]) -> None:
    """Check that the file's two names of a token table or bias hold the same numbers.

    One of them is dropped on loading, so a difference would vanish unseen.

    Raises:
        StateError: naming the key that differs.
    """
    for key in state:
        for head, whole in ((".cls.predictions.decoder.weight", ".bert.embeddings.word_embeddings.weight"),
                            (".cls.predictions.decoder.bias", ".cls.predictions.bias")):  # fmt: skip
            if key != f"text_decoder{head}" or f"text_decoder{whole}" not in state:
                continue
            if not torch.equal(state[key], state[f"text_decoder{whole}"]):
                raise StateError(f"expected {key} to equal text_decoder{whole}, got other numbers", [key])


def start_from(
    model: MPlug2PreTrainedModel, *, clip: str | Path | None = None, bert: str | Path | None = None
) -> list[str]:
    """Put the weights of a CLIP and a BERT checkpoint into a fresh model, in place.

    Args:
        model: of any class of the family; a teacher is made equal to it afterwards.
        clip, bert: files or directories that `plait.weights` reads.

    Returns:
        Names of the parameters of its network that stay fresh.

    Raises:
        ValueError: where a file is of another model or another size.

    Source: the released initialisation (specification mPLUG-2, section 12).
    """
    network = model if isinstance(model, MPlug2Model) else model.model
    assert isinstance(network, MPlug2Model)
    found: dict[str, Tensor] = {}
    if clip is not None:
        found |= clip_weights(network, read_checkpoint(clip).state)
    if bert is not None:
        found |= bert_weights(network, read_checkpoint(bert).state)
    own = dict(network.named_parameters())
    wrong = [f"{n} {tuple(t.shape)} for {tuple(own[n].shape)}" for n, t in found.items() if t.shape != own[n].shape]
    if wrong:
        raise StateError(f"expected weights of the model's size, got {listed(wrong)}", wrong)
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)
    update: Any = getattr(model, "update_teacher", None)
    if getattr(model, "teacher", None) is not None and update is not None:
        update(0.0)
    return [name for name in own if name not in found]


def clip_weights(network: MPlug2Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the vision encoder by their native names.

    Args:
        network: its depth, grid and patch embedding decide what is fitted.
        state: of OpenAI's CLIP as released, or of transformers' CLIP.

    Raises:
        ValueError: for a checkpoint without a ViT, or one of another depth.
    """
    # OpenAI's own names are those that mPLUG-2 kept; transformers has others.
    is_released = "visual.conv1.weight" in state
    rules = prefixed(vision_rules(flat=True), "visual.", "vision.") if is_released else _transformers_clip()
    named = LazyState({key.removeprefix("vision_model."): partial(state.__getitem__, key) for key in state})
    native, _ = KeyMap([*rules, Drop("{_:.*}", NEVER_RUN["elsewhere"])]).forward(named)
    if "vision.class_embedding" not in native:
        raise ValueError(f"expected a CLIP checkpoint with a ViT, got keys such as {listed(list(state)[:3])}")
    found = {name: native[name] for name in native}
    layers = count_layers(found, "vision.layers.")
    if layers != len(network.vision.layers):
        raise ValueError(f"expected a ViT of {len(network.vision.layers)} layers, got {layers}")
    # The released code resizes CLIP's table into a stray attribute and begins with positions of zero; this does not.
    kernel = network.vision.patch_embedding.kernel_size[0]
    # CLIP saw stills: its kernel goes to the middle frame, the others begin at zero (specification 13).
    patches = found["vision.patch_embedding.weight"]
    found["vision.patch_embedding.weight"] = inflate_patches(patches[:, :, 0], kernel)
    table = found["vision.position_embedding"]
    found["vision.position_embedding"] = resize_absolute(table, network.vision.grid, mode="bilinear")
    return found


def _transformers_clip() -> list[Rule]:
    """Rules of transformers' CLIP without `vision_model.`, whose queries, keys and values lie apart."""
    theirs, ours = "encoder.layers.{i}.", "vision.layers.{i}."
    qkv = tuple(f"{theirs}self_attn.{letter}_proj.{_P}" for letter in "qkv")
    embeddings = "embeddings."
    return [
        Rename(f"{embeddings}class_embedding", "vision.class_embedding"),
        Rename(f"{embeddings}position_embedding.weight", "vision.position_embedding"),
        Singleton(f"{embeddings}patch_embedding.weight", "vision.patch_embedding.weight", native_dims=(2,)),
        Rename(f"pre_layrnorm.{_P}", "vision.pre_norm.{p}"),
        Rename(f"post_layernorm.{_P}", "vision.post_norm.{p}"),
        Concat(qkv, f"{ours}attn.qkv.{{p}}"),
        Rename(f"{theirs}self_attn.out_proj.{_P}", f"{ours}attn.out_proj.{{p}}"),
        Rename(f"{theirs}layer_norm1.{_P}", f"{ours}attn_norm.{{p}}"),
        Rename(f"{theirs}layer_norm2.{_P}", f"{ours}mlp_norm.{{p}}"),
        Rename(f"{theirs}mlp.fc1.{_P}", f"{ours}fc1.{{p}}"),
        Rename(f"{theirs}mlp.fc2.{_P}", f"{ours}fc2.{{p}}"),
    ]


def bert_weights(network: MPlug2Model, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of everything that begins as a part of BERT, by native names.

    Text encoder, with the universal layers behind it, and decoder take BERT's layers from the first
    on; the fusion module takes BERT's last ones. Cross-attention and latents have no counterpart
    and stay fresh.

    Args:
        network: whose parameters are to be filled.
        state: of a BERT with its language head, older or newer names.

    Raises:
        ValueError: for another model, or one of too few layers.
    """
    # The first published BERT files call a norm's weight gamma and its bias beta.
    older = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    named = {re.sub("|".join(older), lambda m: older[m[0]], key).removeprefix("bert."): key for key in state}
    rules = [
        *prefixed(embedding_rules(), "embeddings.", "embeddings."),
        *layer_rules("encoder.layer.{i}.", "layers.{i}."),
        *prefixed(lm_head_rules("head.", "embeddings."), "cls.predictions."),
        Drop("{_:.*}", NEVER_RUN["elsewhere"]),
    ]
    native, _ = KeyMap(rules).forward(LazyState({n: partial(state.__getitem__, key) for n, key in named.items()}))
    layers = count_layers(native, "layers.")
    if not layers or "embeddings.token_embedding.weight" not in native:
        raise ValueError(f"expected a BERT checkpoint, got keys such as {listed(list(state)[:3])}")
    config, own = network.config, dict(network.named_parameters())
    text, universal = config.num_text_layers, config.num_universal_layers
    wanted = max(text + universal, config.num_decoder_layers, config.num_fusion_layers)
    if wanted > layers:
        raise ValueError(f"expected a BERT of at least {wanted} layers, got {layers}")
    places: dict[str, str] = {}
    for name in own:
        part, _, inner = name.partition(".")
        layer = re.fullmatch(r"(?:stacks\.\w+\.|layers\.)(\d+)\.(.*)", inner)
        if layer is not None and part in ("text", "universal", "fusion", "decoder"):
            # As released: layers 18 to 23 of bert-large become the fusion layers that run.
            first = {"universal": text, "fusion": layers - config.num_fusion_layers}.get(part, 0)
            places[name] = f"layers.{first + int(layer[1])}.{layer[2]}"
        elif part in ("text", "decoder") and inner.startswith(("embeddings.", "head.")):
            places[name] = inner
        elif part == "masked_lm":
            places[name] = f"head.{inner}"
    # Universal layers apart have MLPs narrower than BERT's, at equal parameters: those stay fresh.
    narrow = {n for n in own if n.startswith("universal.") and ".fc" in n and config.universal_sharing == "apart"}
    return {name: native[place] for name, place in places.items() if place in native and name not in narrow}
