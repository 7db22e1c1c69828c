"""The loss of ONE-PEACE's stages on one batch: contrast at every step, denoising at every k-th.

batch -> masks (every k-th step) -> image_text_losses | audio_text_losses -> weighted sum, parts as metrics
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.models.one_peace.pretraining import (
    OnePeaceForPreTraining,
    PretrainingLosses,
    audio_text_losses,
    image_text_losses,
)
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.processing import masking
from plait.processing.tokenizers import whole_word_starts
from plait.training.parallel import gather_rows


class Objective:
    """A stage's loss on one batch: contrast always, denoising every k-th step."""

    def __init__(self, modality: str, processor: OnePeaceProcessor, denoise_every: int, denoising: str) -> None:
        self.modality = modality
        self.word_starts = whole_word_starts(processor.tokenizer)
        self.denoise_every = denoise_every
        self.denoising = denoising

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every part of it as a metric."""
        if not isinstance(model, OnePeaceForPreTraining):
            raise ValueError(f"expected a OnePeaceForPreTraining, got {type(model).__name__}")
        is_denoising = bool(self.denoise_every) and step % self.denoise_every == 0
        run = self._pictures if self.modality == "image" else self._sounds
        drawing = torch.Generator().manual_seed(generator.initial_seed())  # masks are drawn on the host
        losses = run(model, batch, is_denoising, drawing)
        correct = losses.contrast.num_correct_b_to_a / len(batch["input_ids"])
        metrics = {"contrast": losses.contrast.loss, "accuracy": correct, "temperature": model.model.temperature()}
        return losses.total, metrics | {f"denoise_{name}": loss for name, loss in losses.denoising.items()}

    def _pictures(
        self, model: OnePeaceForPreTraining, batch: dict[str, Any], is_denoising: bool, generator: torch.Generator
    ) -> PretrainingLosses:
        ids, pixels = batch["input_ids"], batch["pixel_values"]
        masks = None
        if is_denoising:
            grid = (pixels.shape[-1] // 16) ** 2
            draw = partial(masking.image_mask, grid, generator=generator)
            image = torch.stack([draw() for _ in range(len(pixels))])
            text = masking.batch_text_masks(ids, self.word_starts, 0.15, generator)
            masks = {
                "text": text,
                "image": image,
                "vl_text": masking.batch_joint_text_masks(ids, text, 0.4, generator),
                "vl_image": torch.stack([masking.joint_image_mask(mask, generator=generator) for mask in image]),
            }
            masks = {name: mask.to(pixels.device) for name, mask in masks.items()}
        return image_text_losses(
            model, ids, pixels, masks, ids=batch["ids"], denoising=self.denoising, gather=gather_rows
        )

    def _sounds(
        self, model: OnePeaceForPreTraining, batch: dict[str, Any], is_denoising: bool, generator: torch.Generator
    ) -> PretrainingLosses:
        ids, waves, mask = batch["input_ids"], batch["input_values"], batch["audio_mask"]
        frames = None if mask is None else model.model.frame_mask(mask)
        masks = None
        if is_denoising:
            length = int(model.model.num_frames(waves.shape[1]))
            lengths = [length] * len(waves) if frames is None else frames.sum(1).tolist()
            masks = {
                "audio": masking.batch_audio_masks(lengths, 0.55, generator),
                "al_text": masking.batch_text_masks(ids, self.word_starts, 0.4, generator),
                "al_audio": masking.batch_audio_masks(lengths, 0.45, generator),
            }
            masks = {name: drawn.to(waves.device) for name, drawn in masks.items()}
        return audio_text_losses(
            model, ids, waves, masks, frame_mask=frames, ids=batch["ids"], denoising=self.denoising, gather=gather_rows
        )
