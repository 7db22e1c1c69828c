"""What a task takes: modules with parameters, FLOPs and memory, and what of an official file it leaves behind.

composition.TABLE -> a model of the task on the meta device -> parameters and FLOPs per part
sizes -> the official file of that size -> weights that no task runs, and those that this one does without
tasks of the paper -> their cells -> the same for each cell, once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from plait.models.mplug2.composition import PARTS, TABLE, path_of
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model, rates
from plait.models.mplug2.paper_tasks import PAPER_TASKS, PaperTask
from plait.models.mplug2.weights import NEVER_RUN, class_for
from plait.nn.bert import BertEmbeddings, BertLayer

CLIP_TEXT = {1024: (768, 12, 768), 768: (512, 12, 512)}
"""Width of the ViT -> width and layers of CLIP's text tower and width of the common space (ViT-L/14 and ViT-B/16)."""

# Of CLIP's text tower in every size (specification 2).
CLIP_VOCABULARY, CLIP_CONTEXT = 49408, 77


@dataclass(frozen=True)
class Workload:
    """What is counted: one item with a question, and texts written about it.

    Attributes:
        tokens: of the question.
        length: tokens of a written text.
        beams: texts kept side by side; the released search has five.
    """

    tokens: int = 20
    length: int = 20
    beams: int = 5


@dataclass
class TaskPlan:
    """What one task takes with one medium.

    Attributes:
        task, medium, about: the cell of `composition.TABLE`, and its description.
        parameters: by part, in the order of the data; heads count as parts.
        flops: by part; heads are left out.
        dead: reason -> parameters of the official file that no task runs.
        unneeded: part -> parameters of the official file that this task does without.
        cross_bytes: of the decoder's keys and values of the encoder states, float32, made once per
            item.
        official_total: parameters of an official file of this size without momentum copies, 0 where
            there is none.
    """

    task: str
    medium: str
    about: str
    parameters: dict[str, int]
    flops: dict[str, int]
    dead: dict[str, int] = field(default_factory=dict)
    unneeded: dict[str, int] = field(default_factory=dict)
    cross_bytes: int = 0

    official_total: int = 0

    @property
    def total(self) -> int:
        """Parameters that the task needs, heads included."""
        return sum(self.parameters.values())


def plan_tasks(task: str, settings: Mapping[str, Any] | None = None) -> list[TaskPlan]:
    """The plan of a task for every medium it can be done with.

    Args:
        task: of `composition.TASKS`.
        settings: `preset` (by default `large`), fields of `Workload` and of `MPlug2Config`, and
            `image_size`.

    Returns:
        One plan per medium, in the order of the table.

    Raises:
        ValueError: for an unknown task, preset or setting.
    """
    config, work = _sizes(settings)
    return [plan_task(task, medium, config, work) for medium in media_of(task)]


def plan_paper(settings: Mapping[str, Any] | None = None) -> list[tuple[PaperTask, TaskPlan | None]]:
    """Every task of the paper with the plan of its cell, which tasks of one cell share.

    Args:
        settings: as `plan_tasks` takes them.

    Returns:
        (task, plan) in the order of `PAPER_TASKS`; None for the plan where Plait has no path for the task.

    Raises:
        ValueError: for an unknown preset or setting.
    """
    config, work = _sizes(settings)
    cells = dict.fromkeys((one.task, one.medium) for one in PAPER_TASKS if one.task and one.medium)
    plans = {cell: plan_task(*cell, config, work) for cell in cells}
    return [(one, plans.get((one.task, one.medium)) if one.task and one.medium else None) for one in PAPER_TASKS]


def _sizes(settings: Mapping[str, Any] | None) -> tuple[MPlug2Config, Workload]:
    """Configuration and workload of the settings of a plan, whose texts count in one and whose rest in the other."""
    given = dict(settings or {})
    sizes = {name: int(given.pop(name)) for name in ("tokens", "length", "beams") if name in given}
    return sized(str(given.pop("preset", "large")), **given), Workload(**sizes)


def plan_task(task: str, medium: str, config: MPlug2Config, work: Workload | None = None) -> TaskPlan:
    """The plan of a cell of the composition table. Nothing of the model is allocated.

    Args:
        task, medium: the cell.
        config: sizes of the model.
        work: what is counted, by default a question of 20 tokens and five texts of 20.

    Raises:
        ValueError: for a cell that does not exist.
    """
    path = path_of(task, medium)
    # The model of this cell alone: a part that it does not pass is not built, and so not counted.
    only = config.changed({"task": task, "modalities": [] if medium == "text" else [medium]})
    if task == "compare" and config.num_images == 1:
        only = only.changed({"num_images": 2})  # as in NLVR2: one picture is compared with nothing
    with torch.device("meta"):
        # The large model would take 4 GB to be counted; on the meta device it takes none.
        model = class_for(only, ())(only)
    network = model.model
    assert isinstance(network, MPlug2Model)
    parameters = count_parts(network)
    parameters |= {name: count for name, head in model.named_children() if name != "model" if (count := _count(head))}
    flops = count_flops(network, set(path.parts), medium, work or Workload())
    plan = TaskPlan(task, medium, path.about, parameters, flops)
    if "decoder" in path.parts:
        seq = _visual_tokens(only, medium) + ((work or Workload()).tokens if path.uses("text") else 0)
        # 4 bytes a number, keys and values, in every layer of the decoder.
        plan.cross_bytes = 4 * 2 * only.num_decoder_layers * seq * only.dim
    everything = official_parts(config)
    if everything is not None:
        plan.dead = dead_weights(config)
        plan.official_total = sum(everything.values()) + sum(plan.dead.values())
        plan.unneeded = {
            part: left for part, count in everything.items() if (left := count - parameters.get(part, 0)) > 0
        }
    return plan


def _count(module: nn.Module) -> int:
    """Parameters of a module, trained or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_parts(network: MPlug2Model) -> dict[str, int]:
    """Parameters by part, in the order of the data.

    The projection of vision belongs to `vision`; the temporal modules inside its blocks are a part
    of their own.
    """
    counts: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        part = name.partition(".")[0].replace("vision_adapter", "vision")
        counts["temporal" if part == "vision" and ".temporal" in name else part] += parameter.numel()
    return {part: counts[part] for part in PARTS if counts[part]}


def _visual_tokens(config: MPlug2Config, medium: str) -> int:
    """Vision tokens of one item: a class token, and patches of every frame behind the patch embedding.

    (frames - 1) // stride + 1 frames are left by a kernel over time with zero padding
    (specification 3).
    """
    if medium == "text":
        return 0
    sizes = config.vision_sizes
    frames = 1 if medium == "image" else (config.num_frames - 1) // sizes.temporal_stride + 1
    return 1 + frames * sizes.grid**2


def count_flops(network: MPlug2Model, parts: set[str], medium: str, work: Workload) -> dict[str, int]:
    """Floating-point operations by part (a multiplication and an addition are two).

    Args:
        network: on the meta device; its attention implementation becomes `eager`.
        parts: those that the path passes.
        medium: text, image or video; an image counts as one frame.
        work: sizes of question and texts.

    Returns:
        FLOPs of the parts of the network, in the order of the data. Heads behind it are not
            counted.
    """
    # Eager attention is plain matrix products, so every product is counted.
    network.set_attn_implementation("eager")
    network.eval().requires_grad_(False)
    config, attend, flops = network.config, network.attend, {}
    vision = text = torch.empty(0)
    if "vision" in parts:
        frames = 1 if medium == "image" else config.num_frames
        # a text is compared with several pictures, of which each is seen and fused
        images = config.num_images if config.task == "compare" else 1
        clip = torch.empty(images, 3, frames, config.image_size, config.image_size, device="meta")
        vision, flops["vision"] = measured(lambda: network.vision(clip, attend, temporal=False))
        if "temporal" in parts:
            # The encoder runs as one piece: with temporal modules, less without them.
            flops["temporal"] = measured(lambda: network.vision(clip, attend))[1] - flops["vision"]
        if config.has_projection:
            vision, more = measured(lambda: network.vision_adapter(vision))
            flops["vision"] += more
        if config.num_universal_layers:
            vision, flops["universal"] = measured(lambda: network.universal.see(vision, attend))
    if "text" in parts:
        ids = torch.zeros(1, work.tokens, dtype=torch.long, device="meta")
        text, flops["text"] = measured(lambda: network.text(ids, None, attend))
        if config.num_universal_layers:
            text, more = measured(lambda: network.universal.read(text, None, attend))
            flops["universal"] = flops.get("universal", 0) + more
    if "fusion" in parts:
        (vision, text), flops["fusion"] = measured(
            lambda: network.fusion(text.expand(len(vision), -1, -1), None, vision, attend)
        )
        vision = torch.cat([vision, text], dim=1)
    if "decoder" in parts:
        ids = torch.zeros(work.beams, work.length, dtype=torch.long, device="meta")
        vision = vision if "vision" in parts else text  # what the decoder looks at
        _, flops["decoder"] = measured(lambda: network.decoder(ids, vision.expand(work.beams, -1, -1), attend))
        _, once = measured(lambda: network.decoder.cross_keys(vision))
        flops["decoder"] -= (work.beams - 1) * once  # all beams share the keys of their item
    return {part: flops[part] for part in PARTS if part in flops}


def measured(step: Callable[[], Any]) -> tuple[Any, int]:
    """What a step gives, and its FLOPs.

    Args:
        step: run once, without gradient.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = step()
    return out, counter.get_total_flops()


def official_parts(config: MPlug2Config) -> dict[str, int] | None:
    """Parameters by part of the modules that the released tasks run.

    Returns:
        None for sizes that nothing was released of: widths without a CLIP, and mPLUG.
    """
    if config.vision_sizes.dim not in CLIP_TEXT or config.is_predecessor:
        return None
    whole = config.changed({"task": None, "modalities": ["image", "video"]})
    with torch.device("meta"):
        return count_parts(MPlug2Model(whole))


def dead_weights(config: MPlug2Config) -> dict[str, int]:
    """Parameters of an official file of this size, by the reason for which no task runs them.

    The released model builds them all the same: CLIP's text tower, MLPs for vision beside the
    shared ones, fusion layers below the first that runs, latents in the decoder (specification
    mPLUG-2, sections 2 and 4 to 6).

    Args:
        config: of a published size; its vision width is a key of `CLIP_TEXT`.

    Returns:
        Reason, as `weights.NEVER_RUN` words it, to parameters; reasons without any are left out.
    """
    width, layers, common = CLIP_TEXT[config.vision_sizes.dim]
    # Attention 4 w^2 + 4 w, MLP 8 w^2 + 5 w, two norms 4 w.
    clip_layer = 12 * width**2 + 13 * width  # attention and MLP of four widths, biases, two norms
    clip = CLIP_VOCABULARY * width + CLIP_CONTEXT * width + layers * clip_layer + 2 * width + width * common + 1
    # Two linear layers with biases, and a norm.
    mlp = 2 * config.dim * config.mlp_dim + config.mlp_dim + config.dim + 2 * config.dim
    with torch.device("meta"):
        layer = _count(BertLayer(config.dim, config.num_heads, config.mlp_dim, cross=True, **rates(config)))
        embeddings = _count(BertEmbeddings(config.vocab_size, config.dim, config.max_positions, config.num_types))
    count = {
        "clip": clip,
        "projection": config.vision_sizes.dim * common,
        "visual_mlp": 2 * config.num_universal_layers * mlp,  # in the text encoder and, never called, in the decoder
        "fusion_embeddings": embeddings,
        "fusion_layer": (config.stored_fusion_layers - config.num_fusion_layers) * layer,
        "latents": config.num_latents * config.dim,
    }
    return {NEVER_RUN[name]: number for name, number in count.items() if number}


def media_of(task: str) -> tuple[str, ...]:
    """What a task can be done with.

    Raises:
        ValueError: for a task that does not exist.
    """
    row = next((row for name, row in TABLE.items() if name == task), None)
    if row is None:
        raise ValueError(f"expected a task among {', '.join(TABLE)}, got {task}")
    return tuple(row)


def sized(preset: str, **changes: Any) -> MPlug2Config:
    """A preset with other fields; `image_size` changes the images.

    Raises:
        ValueError: for an unknown preset or field.
    """
    return MPlug2Config.preset(preset).changed(changes)
