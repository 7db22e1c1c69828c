"""Build mPLUG-2 models from weights on disk: official files of mPLUG-2 and mPLUG, and model directories.

checkpoint -> config -> model of the task on the meta device -> only the tensors its parts need -> strict load
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.composition import PARTS
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.generation import MPlug2ForConditionalGeneration
from plait.models.mplug2.grounding import MPlug2ForGrounding
from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.tasks import (
    MPlug2ForImageClassification,
    MPlug2ForSequenceClassification,
    MPlug2ForVideoClassification,
)
from plait.models.mplug2.weights import check_ties, key_map, official_names, resize_positions
from plait.weights.files import Checkpoint, read_checkpoint
from plait.weights.state import LazyState, load_strict

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


def is_official(keys: Iterable[str]) -> bool:
    """Whether these are keys of an official mPLUG-2 or mPLUG file."""
    found = {key.partition(".")[0] for key in keys if not key.startswith("model.")}
    return "visual_encoder" in found and bool({"text_encoder", "text_decoder"} & found)


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

    official_config: the settings of the run where the file holds none; task: of `composition.TASKS`, by default all
    that the class can do; model_class: by default what the file or the task is for; branch: media to keep, of text,
    image and video; changes: fields of `MPlug2Config`, such as `image_size=384`, `distill=True` or `official=True`.
    Raises ValueError (StateError) listing missing, unexpected and misshapen keys.
    """
    state = official_names(checkpoint.state)
    shapes = {key: tuple(state[key].shape) for key in state}
    settings = checkpoint.config if official_config is None else official_config
    image_size = changes.pop("image_size", None)
    config = MPlug2Config.from_official(settings, shapes)
    if "prefix_ids" in state:
        config.grounding_start_id = int(state["prefix_ids"].flatten()[0])
    rules = key_map(config, flat_patches=len(shapes["visual_encoder.visual.conv1.weight"]) == 4)
    config = changed(config, {**changes, **({} if task is None else {"task": task})}, image_size, branch)
    check_ties(state)
    native, report = rules.forward(state)
    for key, reason in report.dropped.items():
        logger.debug("dropped %s: %s", key, reason)
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

    task, model_class, branch and changes as in `from_official`: a captioner out of a pretraining directory is
    `task="caption"`.
    """
    config = MPlug2Config.from_pretrained(path, trust_remote_code=False)
    stored = CLASSES.get((config.architectures or [""])[0], MPlug2Model)
    image_size = changes.pop("image_size", None)
    if model_class not in (None, stored) or task is not None:
        changes = {"task": task} | changes  # another class does not have the task of the one that wrote the directory
    config = changed(config, changes, image_size, branch)
    if model_class is None and task is not None and task not in stored.TASKS:
        model_class = class_for(config, ())
    state: Mapping[str, Tensor] = read_checkpoint(path).state
    if stored is MPlug2Model:
        state = LazyState({f"model.{key}": partial(state.__getitem__, key) for key in state})
    return assemble(config, model_class or stored, state, dtype, device)


def changed(
    config: MPlug2Config, changes: Mapping[str, Any], image_size: int | None, branch: Sequence[str] | None
) -> MPlug2Config:
    """`config` with other fields. Raises ValueError for a field that does not exist and a branch that it lacks."""
    unknown = [name for name in changes if not hasattr(config, name)]
    if unknown:
        raise ValueError(f"expected fields of MPlug2Config, got {', '.join(unknown)}")
    fields = config.to_dict()
    if {"num_labels", "id2label"} & set(changes):
        fields = {name: value for name, value in fields.items() if name not in ("num_labels", "id2label", "label2id")}
    fields |= changes
    if image_size is not None:
        fields["vision"] = {**fields["vision"], "image_size": image_size}
    if branch is not None:
        missing = [m for m in branch if m not in ("text", *config.modalities)]
        if missing or not branch:
            raise ValueError(
                f"expected branches among text, {', '.join(config.modalities)}, got {', '.join(missing) or 'none'}"
            )
        fields["modalities"] = [m for m in config.modalities if m in branch]
    for name in ("model_type", "transformers_version"):
        fields.pop(name, None)
    return MPlug2Config(**fields)


def class_for(config: MPlug2Config, native: Iterable[str]) -> type[MPlug2PreTrainedModel]:
    """The class for `config.task`, or without one for the parts that the file holds, native keys."""
    if config.task is None:
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

    Heads that the file lacks start fresh, a teacher that it lacks as a copy of the student, a masked language head as
    one of the decoder's; position tables are resized to the image size of `config`. Raises StateError for anything else
    that is missing, unexpected or misshapen.
    """
    with torch.device("meta"):
        model = model_class(config)
    base = "" if model_class is MPlug2Model else "model."
    own = model.state_dict()
    names = {base + key.removeprefix("model.") if key.startswith("model.") else key: key for key in native}
    source = LazyState({key: partial(native.__getitem__, name) for key, name in names.items()})
    kept = source.select(key for key in source if key in own or not has_no_use(key, model, base))
    state: dict[str, Callable[[], Tensor]] = {}
    resized = resize_positions(kept, config)
    for key in resized:
        state[key] = partial(resized.__getitem__, key)
    fresh = fresh_heads(model)
    for key in (key for key in own if key not in state):
        origin = key.replace("teacher.", base, 1) if key.startswith("teacher.") else key
        origin = origin.replace("masked_lm.", "decoder.head.", 1) if origin not in resized else origin
        if key != origin and origin in source:
            state[key] = partial(_copy, resize_positions(source.select([origin]), config), origin)
        elif key in fresh:
            state[key] = partial(fresh.__getitem__, key)
    if started := sorted({key.partition(".")[0] for key in fresh if key in state and key not in resized}):
        logger.warning("not in the file, or in part, so fresh: %s", ", ".join(started))
    load_strict(model, LazyState(state), dtype=dtype, assign=True)
    model.requires_grad_(True)
    model.freeze_teacher()
    model.config.architectures = [model_class.__name__]
    return model.to(device).eval()


def _copy(state: Mapping[str, Tensor], key: str) -> Tensor:
    return state[key].clone()


def fresh_heads(model: MPlug2PreTrainedModel) -> dict[str, Tensor]:
    """Initial values of everything that is no network: projections, queues, classifiers."""
    values: dict[str, Tensor] = {}
    for name, head in type(model).heads(model.config).items():
        head.apply(model._init_weights)
        values |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    return values


def has_no_use(key: str, model: MPlug2PreTrainedModel, base: str) -> bool:
    """Whether the model does without a native key of a file: a part, a head or temporal modules that it does not have.

    base: prefix of its network.
    """
    if key.startswith(("alignment.", "classifier.")):
        head = getattr(model, key.partition(".")[0], None)
        queued = key.removeprefix("alignment.").startswith(("teacher_", "vision_queue", "text_queue", "id_queue", "q"))
        return head is None or (queued and not model.config.queue_size)
    prefix = "teacher." if key.startswith("teacher.") else base
    network = model if prefix == "" else getattr(model, prefix.removesuffix("."), None)
    if not isinstance(network, MPlug2Model):
        return True
    inner = key.removeprefix(prefix)
    part = inner.partition(".")[0]
    if not hasattr(network, part):
        return part == "vision_adapter" or part in PARTS
    if part == "vision":
        return ".temporal" in inner and not network.vision.has_temporal
    if part == "universal" and network.universal.latents is None:
        return ".cross_attn." in inner or inner.startswith(("universal.latents", "universal.norm."))
    return False
