"""Rows of one's own for ONE-PEACE: decoded, collated, and the stage that trains on them.

row -> part (pixels or waveform, words) -> tensors -> Stage; a model that was trained -> outputs, in evaluation mode
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.pairs import augment
from plait.data.reader import Reader
from plait.errors import UsageError
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.models.auto import load_config
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import decays, layer_id
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.processing.images import square
from plait.recipes.finetune import (
    Request,
)
from plait.training.stages import Stage
from plait.types import Sample

# 2e-4 is stage 2's published peak too; a LoRA, which begins at zero, needs more.
FULL_LR, LORA_LR = 2e-4, 2e-3
BATCH = 32


def task_stage(
    request: Request, processor: OnePeaceProcessor, collate: Any, objective: Any, *, read: bool, embeds: bool = True
) -> Stage:
    """A stage over the rows asked for: `collate` -> `objective`.

    read: whether text is read beside the medium; embeds: whether projections and temperature are used.
    """
    lr = request.lr or (LORA_LR if request.lora else FULL_LR)

    def decode(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        return part_of(processor, request.medium, sample)

    num_layers = load_config(request.model, OnePeaceConfig).num_layers
    stage = Stage(
        name=request.task,
        objective=objective,
        batches=lambda: Reader(request.train, collate, decode, reading=request.reading),
        batch_size=request.batch_size,
        steps=request.steps,
        epochs=request.epochs,
        peak_lr=lr,
        floor=lr / 100,
        warmup=0.1,
        # Parameters that the task never reaches get no gradient; frozen, they need no optimiser state.
        trainable=(_used(request.medium, read, embeds=embeds),),
        # A LoRA of peft renames modules that train whole; the list knows the plain names.
        no_decay=lambda name, parameter: not decays(name.replace(".modules_to_save.default", ""), parameter.ndim),
        layer_id=lambda name: layer_id(name.removeprefix("vision."), num_layers),
        num_layers=num_layers,
        layer_decay=request.layer_decay,
    )
    if (setting := request.setting) is None:
        return stage
    return replace(
        stage,
        floor=min(setting.floor, lr),
        warmup=setting.warmup,
        betas=setting.betas,
        eps=setting.eps,
        weight_decay=setting.weight_decay,
        clip=0.0,  # no published finetuning clips (specification 7)
    )


def _used(medium: str, reads_text: bool, embeds: bool) -> str:
    """A pattern of everything but other modalities and, for a head, what embeds alone needs."""
    idle = [m for m in ("text", "image", "audio") if m != medium and not (m == "text" and reads_text)]
    unused = [rf"\.({'|'.join(idle)})\."] + ([] if embeds else ["projections", "logit_scale"])
    return f"re:^(?!.*({'|'.join(unused)}))"


def part_of(processor: OnePeaceProcessor, medium: str, sample: Sample) -> dict[str, Any]:
    """One row, decoded: its image (3, side, side) in [0, 1] or its waveform (samples,), and its words."""
    part: dict[str, Any] = {"sample": sample, "texts": sample.captions or [sample.text or ""]}
    part["concept"] = sample.label or part["texts"][0]
    if medium == "image":
        part["pixels"] = square(load_image(sample.image).convert("RGB"), processor.image_size, (0, 0, 0), (1, 1, 1))
    elif medium == "audio":
        part["wave"] = load_audio(sample.audio, processor.sampling_rate)
    return part


def media_of(
    parts: list[dict[str, Any]],
    medium: str,
    processor: OnePeaceProcessor,
    strength: float = 0.0,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """pixel_values, or input_values and audio_attention_mask where clips differ in length; augmented with `rng`."""
    if medium == "image":
        pixels = torch.stack([part["pixels"] for part in parts])
        pixels = augment(pixels, strength, rng) if strength and rng is not None else pixels
        image = processor.image_processor
        mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
        return {"pixel_values": (pixels - mean) / std}
    waves = [part["wave"] for part in parts]
    if strength and rng is not None:
        # Shifted in a circle by up to a quarter: nothing of a short clip is lost.
        waves = [np.roll(wave, int(rng.uniform(-0.25, 0.25) * strength * len(wave))) for wave in waves]
    made = processor.feature_extractor(waves, processor.sampling_rate)
    mask = torch.as_tensor(made["audio_attention_mask"]).bool()
    values = {"input_values": torch.as_tensor(made["input_values"])}
    return values if mask.all() else {**values, "audio_attention_mask": mask}


def inputs_of(
    parts: list[dict[str, Any]],
    medium: str,
    processor: OnePeaceProcessor,
    is_asked: bool,
    strength: float = 0.0,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """What the head's encoder reads: the medium, and the question or text where it counts."""
    words = [part["sample"].question or part["sample"].text or "" for part in parts]
    texts = processor.captions(words) if is_asked or medium == "text" else {}
    return {**texts, **(media_of(parts, medium, processor, strength, rng) if medium != "text" else {})}


def run_quietly(model: nn.Module, inputs: dict[str, Tensor], method: str = "forward") -> Any:
    """Call a method in evaluation mode, without gradients, inputs and outputs moved."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.no_grad():
        out = getattr(model, method)(**{name: value.to(device) for name, value in inputs.items()})
    model.train(was_training)
    return out.float().cpu() if isinstance(out, Tensor) else {k: v.float().cpu() for k, v in out.items()}


def slices(rows: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """`rows` in slices of at most `BATCH`."""
    return (rows[i : i + BATCH] for i in range(0, len(rows), BATCH))


def need(medium: str, known: Sequence[str], task: str) -> None:
    """Raise UsageError unless `medium` is among `known`."""
    if medium not in known:
        raise UsageError(f"expected {' or '.join(known)} for {task} with one_peace, got {medium}; set medium")
