"""ONE-PEACE's two pretraining stages (arXiv 2305.11172, section 3.2), sized for a laptop by default.

stage1: pictures + words -> contrast and denoising, everything but audio trains
stage2: sounds + words -> contrast and denoising, audio trains, text and images stay bit for bit what they were
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.data.pairs import PicturesWithWords, SoundsWithWords, held_out_pairs
from plait.models.auto import load_config, load_processor
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import STAGE2_TRAINABLE, OnePeaceForPreTraining, decays
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.weights import from_directory
from plait.processing.images import CLIP_MEAN, CLIP_STD
from plait.processing.tokenizers import encode, subset
from plait.processing.waveforms import prepare_waveform
from plait.recipes.one_peace_objective import Objective
from plait.training.stages import Recipe, Stage
from plait.types import Sample

NOT_AUDIO = (r"re:^(?!.*\.audio\.)",)
TEMPLATES = ("this is a sound of", "and", "a picture of")


def stage1(
    data: str = "mini",
    preset: str = "nano",
    steps: int = 2400,
    batch_size: int = 64,
    lr: float = 1e-3,
    denoise_every: int = 8,
    denoising: str = "contrast",
    composed: float = 0.15,
    augmentation: float = 0.7,
    bare_names: float = 0.8,
    full_vocabulary: bool = False,
) -> Recipe:
    """Stage 1: image-text contrast every step, the four denoising losses every `denoise_every`-th step (0 = never).

    data: "mini" or a directory with manifest.jsonl; preset: a size of `OnePeaceConfig`; denoising: contrast, l2 or
    smooth_l1; composed, augmentation, bare_names: see `plait.data.pairs`; full_vocabulary: keep all 50264 pieces
    instead of those the data uses (any text can be written with either).
    Published: 200,000 updates, batch 32,768, on 1.5 B pairs; this default is minutes on two CPU cores.
    """
    root = data_directory(data)
    samples = list(read_manifest(root / "manifest.jsonl"))
    kept = None if full_vocabulary else vocabulary(samples)
    config = OnePeaceConfig.preset(preset, vocab_size=50264 if kept is None else len(kept))
    processor = OnePeaceProcessor.from_config(config, kept)
    source = partial(
        PicturesWithWords,
        [s for s in samples if s.image is not None and _trains(s)],
        processor.tokenize,
        config.image_size,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        augmentation=augmentation,
        composed=composed,
        bare_names=bare_names,
        held_out=unseen_pairs(samples),
    )
    stage = Stage(
        name="stage1",
        objective=Objective("image", processor, denoise_every, denoising),
        batches=source,
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 500,
        trainable=NOT_AUDIO,
        no_decay=no_decay,
    )
    origin = f"one_peace.stage1 on {root.name}"
    return Recipe(lambda: OnePeaceForPreTraining(config), [stage], partial(save, processor, origin))


def stage2(
    init: str,
    data: str = "mini",
    steps: int = 320,
    batch_size: int = 48,
    lr: float = 2e-3,
    denoise_every: int = 8,
    denoising: str = "contrast",
    augmentation: float = 0.5,
    shuffle_pairs: bool = False,
    seed: int = 0,
) -> Recipe:
    """Stage 2: audio-text contrast and denoising; only audio, the temperature and the decoder train, as published.

    init: model directory of stage 1; shuffle_pairs: the control, every clip with the label of another clip.
    Published: 10 epochs over 2.4 M pairs, batch 3,072.
    """
    root = data_directory(data)
    config = load_config(init, OnePeaceConfig)
    processor = load_processor(init)
    source = partial(
        SoundsWithWords,
        [s for s in read_manifest(root / "manifest.jsonl") if s.audio is not None and _trains(s)],
        processor.tokenize,
        sampling_rate=config.sampling_rate,
        prepare=partial(
            prepare_waveform,
            sampling_rate=config.sampling_rate,
            max_duration=config.max_audio_seconds,
            min_duration=config.min_audio_seconds,
        ),
        augmentation=augmentation,
        shuffle_seed=seed if shuffle_pairs else None,
    )
    stage = Stage(
        name="stage2",
        objective=Objective("audio", processor, denoise_every, denoising),
        batches=source,
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 200,
        warmup=0.1,
        trainable=tuple(f"re:^{pattern}$" for pattern in STAGE2_TRAINABLE),
        no_decay=no_decay,
        before=(reset_temperature,),
    )
    origin = f"one_peace.stage2 on {root.name}"
    return Recipe(lambda: whole_model(init), [stage], partial(save, processor, origin))


def whole_model(init: str) -> OnePeaceForPreTraining:
    """Encoder and decoder of a directory that stage 1 wrote, in float32: what trains in less is the loop's choice."""
    model = from_directory(Path(init), dtype=torch.float32, model_class=OnePeaceForPreTraining)
    assert isinstance(model, OnePeaceForPreTraining)
    return model


def _trains(sample: Sample) -> bool:
    return bool(sample.text) and sample.split in (None, "train")


def data_directory(data: str) -> Path:
    """A data set directory: the shipped one, unpacked once, or a path. Raises ValueError where there is no manifest."""
    root = cached_mini() if data == "mini" else Path(data)
    if not (root / "manifest.jsonl").exists():
        raise ValueError(
            f"expected 'mini' or a directory with manifest.jsonl, got {data}; make one with plait data from-folder"
        )
    return root


def vocabulary(samples: Sequence[Sample]) -> list[int]:
    """Ids of the pieces that the texts of a data set use, and of all bytes."""
    texts = {text for s in samples for text in (s.text, *(s.captions or ())) if text}
    return subset(piece for row in encode([*sorted(texts), *TEMPLATES]) for piece in row)


def unseen_pairs(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Pairs that are never composed in training, the same that the evaluation asks for."""
    from plait.evaluation.emergent import concept

    drawn = [concept(s) for s in samples if s.image is not None and s.split == "test"]
    sounding = {concept(s) for s in samples if s.audio is not None and s.split == "test"} & set(drawn)
    return held_out_pairs(sorted(sounding), list(dict.fromkeys(drawn))) if sounding else []


def no_decay(name: str, parameter: Tensor) -> bool:
    """Parameters without weight decay, by Plait's corrected list."""
    return not decays(name, parameter.ndim)


def reset_temperature(model: nn.Module) -> None:
    """Stage 2 starts from the initial temperature, as published."""
    assert isinstance(model, OnePeaceForPreTraining)
    with torch.no_grad():
        model.model.logit_scale.fill_(math.log(model.config.logit_scale_init))


def save(processor: OnePeaceProcessor, origin: str, model: nn.Module, directory: Path) -> None:
    """Weights, configuration and processor; `plait.load` reads the encoder, stage 2 the whole."""
    assert isinstance(model, OnePeaceForPreTraining)
    disable_progress_bar()  # of writing one small file
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    card = {"trained_by": origin, "parameters": sum(p.numel() for p in model.parameters())}
    (directory / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
