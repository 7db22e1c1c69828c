"""The two pretraining stages of ONE-PEACE as losses of one batch (arXiv 2305.11172, section 3.2; specification 6).

batch -> full passes (contrast, teacher) -> masked passes (student) -> weighted sum of losses
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plait.models.one_peace.model import Encoded
from plait.models.one_peace.pretraining import Denoised, OnePeaceForPreTraining
from plait.objectives.contrastive import ContrastiveOutput, contrastive_loss
from plait.objectives.denoising import denoising_contrast, denoising_l2, denoising_smooth_l1
from plait.processing.masking import preserve_ids

Masks = Mapping[str, Tensor]
"""Masked units per pass and modality, (batch, units) bool without CLS: keys such as `text`, `image`, `vl_text`."""

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""(batch, ...) -> (world * batch, ...) without gradient, and the place of the local rows in it."""

IMAGE_TEXT_WEIGHTS = {"text": 0.5, "image": 1.0, "vl_text": 0.5, "vl_image": 0.5}
AUDIO_TEXT_WEIGHTS = {"audio": 1.0, "al_text": 0.5, "al_audio": 0.5}

DENOISING: dict[str, Callable[..., Tensor]] = {
    "contrast": denoising_contrast,
    "l2": denoising_l2,
    "smooth_l1": denoising_smooth_l1,
}
"""The published objective and the two regressions it is compared with."""


@dataclass(slots=True)
class PretrainingLosses:
    """total: the weighted sum; contrast; denoising: unweighted losses by pass; the rest for inspection and parity."""

    total: Tensor
    contrast: ContrastiveOutput
    denoising: dict[str, Tensor] = field(default_factory=dict)
    teachers: dict[str, Encoded] = field(default_factory=dict)
    students: dict[str, Denoised] = field(default_factory=dict)


def image_text_losses(
    model: OnePeaceForPreTraining,
    input_ids: Tensor,
    pixel_values: Tensor,
    masks: Masks | None = None,
    *,
    ids: Tensor | None = None,
    weights: Mapping[str, float] = IMAGE_TEXT_WEIGHTS,
    denoising: str = "contrast",
    chunk_size: int | None = None,
    gather: Gather | None = None,
) -> PretrainingLosses:
    """Stage 1: itc + 0.5 text + 1.0 image + 0.5 joint text + 0.5 joint image denoising.

    input_ids: (batch, tokens); pixel_values: (batch, 3, side, side); masks: for `text`, `image`, `vl_text`, `vl_image`,
    None for contrast alone; ids: (batch,) identities, equal where several rows describe one thing;
    gather: collects rows of all processes.
    """
    text = model.model.encode(input_ids)
    image = model.model.encode(pixel_values=pixel_values)
    contrast = _contrast(model, (text, "text"), (image, "image"), ids=ids, chunk_size=chunk_size, gather=gather)
    losses = PretrainingLosses(contrast.loss, contrast)
    if masks is None:
        return losses
    with torch.no_grad():
        joint = model.model.encode(input_ids, pixel_values)
    inputs = {"text": {"input_ids": input_ids}, "image": {"pixel_values": pixel_values}}
    passes = {"text": text, "image": image, "vl": joint}
    return _add_denoising(model, losses, inputs, passes, masks, weights, denoising)


def audio_text_losses(
    model: OnePeaceForPreTraining,
    input_ids: Tensor,
    input_values: Tensor,
    masks: Masks | None = None,
    *,
    frame_mask: Tensor | None = None,
    ids: Tensor | None = None,
    weights: Mapping[str, float] = AUDIO_TEXT_WEIGHTS,
    denoising: str = "contrast",
    chunk_size: int | None = None,
    gather: Gather | None = None,
) -> PretrainingLosses:
    """Stage 2: atc + 1.0 audio + 0.5 joint text + 0.5 joint audio denoising; the text side has no gradient.

    The audio-only student learns from the joint audio-text teacher, as published.
    input_values: (batch, samples); frame_mask: (batch, frames) bool; masks: for `audio`, `al_text`, `al_audio`.
    """
    with torch.no_grad():
        text = model.model.encode(input_ids)
    audio = model.model.encode(input_values=input_values, frame_mask=frame_mask)
    contrast = _contrast(model, (text, "text"), (audio, "audio"), ids=ids, chunk_size=chunk_size, gather=gather)
    losses = PretrainingLosses(contrast.loss, contrast)
    losses.teachers |= {"text": text, "audio_full": audio}
    if masks is None:
        return losses
    with torch.no_grad():
        joint = model.model.encode(input_ids, input_values=input_values, frame_mask=frame_mask)
    inputs = {"text": {"input_ids": input_ids}, "audio": {"input_values": input_values, "frame_mask": frame_mask}}
    return _add_denoising(model, losses, inputs, {"audio": joint, "al": joint}, masks, weights, denoising)


def _contrast(
    model: OnePeaceForPreTraining,
    a: tuple[Encoded, str],
    b: tuple[Encoded, str],
    *,
    ids: Tensor | None,
    chunk_size: int | None,
    gather: Gather | None,
) -> ContrastiveOutput:
    """Contrast of the CLS vectors of two passes, each with the modality to read."""
    x, y = (model.model.project(encoded.features[m], m) for encoded, m in (a, b))
    x_all, y_all, ids_all, offset = None, None, None, 0
    if gather is not None:
        (x_all, offset), (y_all, _) = gather(x), gather(y)
        ids_all = None if ids is None else gather(ids)[0]
    scale = model.model.temperature()
    return contrastive_loss(
        x, y, scale, a_all=x_all, b_all=y_all, offset=offset, ids=ids, ids_all=ids_all, chunk_size=chunk_size
    )


def _add_denoising(
    model: OnePeaceForPreTraining,
    losses: PretrainingLosses,
    inputs: Mapping[str, Mapping[str, Tensor | None]],
    teachers: Mapping[str, Encoded],
    masks: Masks,
    weights: Mapping[str, float],
    objective: str,
) -> PretrainingLosses:
    """Run a masked pass against every teacher and add its losses to the total. inputs: of `denoise`, by modality."""
    if objective not in DENOISING:
        raise ValueError(f"expected a denoising objective among {sorted(DENOISING)}, got {objective!r}")
    for name, teacher in teachers.items():
        # A pass is called after its modality, or `vl` / `al` for text with image / audio.
        names = {m: m if name == m else f"{name}_{m}" for m in inputs if name in (m, "vl", "al")}
        real = {m: None if (mask := teacher.masks[m]) is None else mask[:, 1:] for m in names}
        keep = {m: preserve_ids(masks[key], real[m]) for m, key in names.items()}
        given = {field: value for m in names for field, value in inputs[m].items()}
        student = model.denoise(keep, teacher, **given)
        losses.teachers[name], losses.students[name] = teacher, student
        for m, key in names.items():
            target = teacher.features[m][:, 1:].detach()
            loss = DENOISING[objective](student.student[m][:, 1:], target, masks[key], real[m])
            losses.denoising[key] = loss
            losses.total = losses.total + weights[key] * loss
    return losses
