"""ONE-PEACE's two pretraining stages (arXiv 2305.11172, section 3.2), with the published rates as defaults.

stage1: pictures + words -> contrast and denoising, everything but audio trains
stage2: sounds + words -> contrast and denoising, audio trains, text and images stay bit for bit what they were

rows -> select -> batches (`plait.data.pairs`) -> masks (every k-th step) -> image_text_losses | audio_text_losses
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.data.pairs import PicturesWithWords, SoundsWithWords, held_out_pairs
from plait.data.reader import Reading, select
from plait.errors import UsageError
from plait.models import directory_of
from plait.models.auto import load_config, load_processor
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import (
    STAGE2_TRAINABLE,
    OnePeaceForPreTraining,
    PretrainingLosses,
    audio_text_losses,
    decays,
    image_text_losses,
    layer_id,
)
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.weights import from_directory
from plait.processing import masking
from plait.processing.images import CLIP_MEAN, CLIP_STD
from plait.processing.tokenizers import clean_caption, encode, subset, whole_word_starts
from plait.processing.waveforms import prepare_waveform
from plait.training.parallel import gather_rows
from plait.training.run import refuse_beside
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample


class Objective:
    """A stage's loss on one batch: contrast always, denoising every k-th step.

    Published training denoises at every step; a larger k saves masked passes on a laptop.

    Args:
        modality: image (stage 1) or audio (stage 2).
        processor: its tokenizer says where words begin, since whole words are masked.
        denoise_every: k; 0 for contrast alone.
        denoising: contrast (published), l2 or smooth_l1.

    Source:
        ONE-PEACE (arXiv 2305.11172), section 3.2; specification one_peace, 6.
    """

    def __init__(self, modality: str, processor: OnePeaceProcessor, denoise_every: int, denoising: str | None) -> None:
        if not denoise_every:
            refuse_beside("denoise_every=0", denoising=denoising)
        if denoising not in (None, "contrast", "l2", "smooth_l1"):
            raise UsageError(f"expected denoising contrast, l2 or smooth_l1, got {denoising!r}")
        self.modality = modality
        self.word_starts = whole_word_starts(processor.tokenizer)
        self.denoise_every = denoise_every
        self.denoising = denoising or "contrast"

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every part of it as a metric.

        Args:
            model: a `OnePeaceForPreTraining`.
            batch: of `PicturesWithWords` or `SoundsWithWords`; `ids` (batch,) say which rows are of one concept.
            step: from 0. generator: its seed alone is used.

        Returns:
            loss (), and contrast, accuracy, temperature and each denoising loss.

        Raises:
            ValueError: for another model.
        """
        if not isinstance(model, OnePeaceForPreTraining):
            raise ValueError(f"expected a OnePeaceForPreTraining, got {type(model).__name__}")
        is_denoising = bool(self.denoise_every) and step % self.denoise_every == 0
        run = self._pictures if self.modality == "image" else self._sounds
        # masks are drawn on the host
        drawing = torch.Generator().manual_seed(generator.initial_seed())
        losses = run(model, batch, is_denoising, drawing)
        correct = losses.contrast.num_correct_b_to_a / len(batch["input_ids"])
        metrics = {"contrast": losses.contrast.loss, "accuracy": correct, "temperature": model.model.temperature()}
        return losses.total, metrics | {f"denoise_{name}": loss for name, loss in losses.denoising.items()}

    def _pictures(
        self, model: OnePeaceForPreTraining, batch: dict[str, Any], is_denoising: bool, generator: torch.Generator
    ) -> PretrainingLosses:
        """Losses of pixel_values (batch, 3, side, side) and input_ids (batch, tokens), with masks where it denoises."""
        ids, pixels = batch["input_ids"], batch["pixel_values"]
        masks = None
        if is_denoising:
            # Patches of 16 pixels in every published size. Ratios of masks are those of specification 6.1.
            grid = (pixels.shape[-1] // 16) ** 2
            draw = partial(masking.image_mask, grid, generator=generator)
            image = torch.stack([draw() for _ in range(len(pixels))])
            text = masking.batch_text_masks(ids, self.word_starts, 0.15, generator)
            masks = {
                "text": text,
                "image": image,
                # Joint masks build on the single ones: the two views of a picture see disjoint patches.
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
        """Losses of input_values (batch, samples) and input_ids; audio_mask (batch, samples) where clips differ."""
        ids, waves, mask = batch["input_ids"], batch["input_values"], batch["audio_mask"]
        frames = None if mask is None else model.model.frame_mask(mask)
        masks = None
        if is_denoising:
            # Masks count frames behind the convolutions, not samples of sound.
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


# Stage 1 has no audio (specification 6.4) and its parameters would get no gradient.
NOT_AUDIO = (r"re:^(?!.*\.audio\.)",)
# Words that prompts and composed captions put around names; a small vocabulary must have them.
TEMPLATES = ("this is a sound of", "and", "a picture of")


@dataclass(frozen=True)
class Size:
    """What a stage takes where it is not set, by the size of its model: rows of a step, its length, drop path."""

    batch_size: int
    steps: int | None = None
    epochs: float | None = None
    drop_path_rate: float = 0.0


# Published for the 4B model (arXiv 2305.11172; specification 6.4); small sizes have a short run without drop path.
STAGE1 = {"4b": Size(32_768, steps=200_000, drop_path_rate=0.4), "small": Size(64, steps=2_000)}
STAGE2 = {"4b": Size(3_072, epochs=10, drop_path_rate=0.4), "small": Size(48, epochs=10)}
# Of 200,000 updates; a run too short for them warms up for the same share of it (specification 6.4).
WARMUP, WARMUP_SHARE = 3000, 0.015


def stage1(
    data: str = "mini",
    preset: str = "nano",
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float = 5e-4,
    floor: float = 1e-6,
    warmup: float | None = None,
    drop_path_rate: float | None = None,
    layer_decay: float = 1.0,
    denoise_every: int = 1,
    denoising: str | None = None,
    composed: float = 0.0,
    augmentation: float | None = None,
    bare_names: float = 1.0,
    full_vocabulary: bool | None = None,
    reading: Reading = Reading(),
) -> Recipe:
    """Stage 1: image-text contrast and, every `denoise_every`-th step (0 = never), the four denoising losses.

    Published (preset=4b): 200,000 updates, batch 32,768, on 1.5 B pairs, AdamW (0.9, 0.98), decay 0.05, clipping 3; the
    rates are those of every size. `plait quickstart` prints settings that suit minutes on two CPU cores.

    Args:
        data: "mini" or any data set with `image` and `text`. preset: a size of `OnePeaceConfig`.
        steps, batch_size: optimiser steps, and rows of each over all processes; without them those of the size, 2,000
            of 64 for small ones.
        lr, floor: peak and last rate. warmup: steps, or a share of the run below 1; without it 3,000 of 200,000.
        drop_path_rate: of the last layer, without it 0.4 for 4b and 0 for small sizes.
        layer_decay: rate of a layer relative to the next one; published 1 for this stage.
        denoise_every: denoising losses in every so-manyth step, as published in each; 0 for contrast alone.
        denoising: contrast (without it), l2 or smooth_l1.
        composed, augmentation, bare_names: as in `plait.data.pairs.PicturesWithWords`; without augmentation the
            published crops of 0.9 to 1 of the area.
        full_vocabulary: all 50264 pieces (4b) instead of those the data uses (any text can be written with either).
        reading: workers, on_bad and most_bad, see `plait.data.reader.Reading`.
    """
    size = STAGE1.get(preset, STAGE1["small"])
    rows = select(data, "anything", lambda _: True, splits=None, reading=reading)
    is_full = preset in STAGE1 if full_vocabulary is None else full_vocabulary
    kept = None if is_full else vocabulary(rows)
    rate = size.drop_path_rate if drop_path_rate is None else drop_path_rate
    vocab_size = 50264 if kept is None else len(kept)
    config = OnePeaceConfig.preset(preset, vocab_size=vocab_size, drop_path_rate=rate)
    processor = OnePeaceProcessor.from_config(config, kept)
    source = partial(
        PicturesWithWords,
        select(rows, "an image and text", lambda s: s.image is not None and bool(s.text), reading=reading),
        processor.captions,
        config.image_size,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        augmentation=augmentation,
        composed=composed,
        bare_names=bare_names,
        held_out=unseen_pairs(rows),
        reading=reading,
    )
    length = steps or size.steps or 0
    stage = Stage(
        name="stage1",
        objective=Objective("image", processor, denoise_every, denoising),
        batches=source,
        batch_size=batch_size or size.batch_size,
        steps=length,
        peak_lr=lr,
        floor=min(floor, lr),
        warmup=warmup if warmup is not None else WARMUP if length > 5 * WARMUP else WARMUP_SHARE,
        trainable=NOT_AUDIO,
        no_decay=no_decay,
        layer_id=partial(layer_id, num_layers=config.num_layers),
        num_layers=config.num_layers,
        layer_decay=layer_decay,
    )
    origin = f"one_peace.stage1 on {Path(data).name}"
    return Recipe(lambda: OnePeaceForPreTraining(config), [stage], partial(save, processor, origin))


def stage2(
    init: str,
    data: str = "mini",
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float = 2e-4,
    floor: float = 1e-6,
    warmup: float = 0.1,
    drop_path_rate: float | None = None,
    layer_decay: float = 1.0,
    denoise_every: int = 1,
    denoising: str | None = None,
    augmentation: float = 0.0,
    shuffle_pairs: bool = False,
    reading: Reading = Reading(),
    seed: int = 0,
) -> Recipe:
    """Stage 2: audio-text contrast and denoising; only audio, the temperature and the decoder train, as published.

    Published: 10 epochs over 2.4 M pairs, batch 3,072.

    Args:
        init: model directory of stage 1. data: "mini" or any data set with `audio` and `text`.
        steps, epochs: length of the run, 10 epochs without either; steps count where both are given.
        batch_size: rows of a step over all processes, without it 3,072 for the 4B model and 48 for small ones.
        lr, floor, warmup: peak and last rate, and warm-up as a share of the run (in steps from 1 on).
        drop_path_rate, layer_decay, denoise_every, denoising: as in `stage1`. augmentation: 0 to 1, of audio.
        shuffle_pairs: the control, every clip with the label of another clip, drawn from `seed`.
        reading: workers, on_bad and most_bad, see `plait.data.reader.Reading`.
    """
    config = load_config(init, OnePeaceConfig)
    size = STAGE2["4b" if config.dim >= OnePeaceConfig.preset("4b").dim else "small"]
    processor = load_processor(init)
    source = partial(
        SoundsWithWords,
        select(data, "audio and text", lambda s: s.audio is not None and bool(s.text), reading=reading),
        processor.captions,
        sampling_rate=config.sampling_rate,
        prepare=partial(
            prepare_waveform,
            sampling_rate=config.sampling_rate,
            max_duration=config.max_audio_seconds,
            min_duration=config.min_audio_seconds,
        ),
        augmentation=augmentation,
        shuffle_seed=seed if shuffle_pairs else None,
        reading=reading,
    )
    stage = Stage(
        name="stage2",
        objective=Objective("audio", processor, denoise_every, denoising),
        batches=source,
        batch_size=batch_size or size.batch_size,
        steps=steps,
        epochs=None if steps is not None else epochs or size.epochs,
        peak_lr=lr,
        floor=min(floor, lr),
        warmup=warmup,
        trainable=tuple(f"re:^{pattern}$" for pattern in STAGE2_TRAINABLE),
        no_decay=no_decay,
        before=(reset_temperature,),
        layer_id=partial(layer_id, num_layers=config.num_layers),
        num_layers=config.num_layers,
        layer_decay=layer_decay,
    )
    origin = f"one_peace.stage2 on {Path(data).name}"
    rate = size.drop_path_rate if drop_path_rate is None else drop_path_rate
    return Recipe(partial(whole_model, init, drop_path_rate=rate), [stage], partial(save, processor, origin))


def whole_model(init: str, **changes: Any) -> OnePeaceForPreTraining:
    """Encoder and decoder of a directory that stage 1 wrote, in float32: what trains in less is the loop's choice."""
    model = from_directory(directory_of(init), dtype=torch.float32, model_class=OnePeaceForPreTraining, **changes)
    assert isinstance(model, OnePeaceForPreTraining)
    return model


def vocabulary(samples: Sequence[Sample]) -> list[int]:
    """Ids of the pieces that the texts of a data set use, and of all bytes."""
    pieces = {piece for row in encode(TEMPLATES) for piece in row}
    for start in range(0, len(samples), 1000):  # texts of a large data set are never held together
        texts = {text for s in samples[start : start + 1000] for text in (s.text, *(s.captions or ())) if text}
        pieces.update(piece for row in encode(map(clean_caption, sorted(texts))) for piece in row)
    return subset(pieces)


def unseen_pairs(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Pairs that are never composed in training, the same that the evaluation asks for.

    They are pairs of a concept with audio and one without, both of test images; none where the data has no audio.
    """
    from plait.evaluation.emergent import concept

    drawn = [concept(s) for s in samples if s.image is not None and s.split == "test"]
    sounding = {concept(s) for s in samples if s.audio is not None and s.split == "test"} & set(drawn)
    return held_out_pairs(sorted(sounding), list(dict.fromkeys(drawn))) if sounding else []


def no_decay(name: str, parameter: Tensor) -> bool:
    """Parameters without weight decay: `decays` corrects a defect of the released list (specification 6.5)."""
    return not decays(name, parameter.ndim)


def reset_temperature(model: nn.Module) -> None:
    """Stage 2 starts from the initial temperature, as published."""
    assert isinstance(model, OnePeaceForPreTraining)
    with torch.no_grad():
        model.model.logit_scale.fill_(math.log(model.config.logit_scale_init))


def save(processor: OnePeaceProcessor, origin: str, model: nn.Module, directory: Path) -> None:
    """Weights, configuration and processor; `plait.load` reads the encoder, stage 2 the whole."""
    save_pair(processor, model, directory)
    card = {"trained_by": origin, "parameters": sum(p.numel() for p in model.parameters())}
    (directory / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
