"""mPLUG-Owl's two stages: see first, with the language model frozen; then follow instructions, with a LoRA on it.

rows -> select -> talks (`plait.data.conversation`) -> processor.supervised -> ids, labels, pixels -> answer_loss

Source: arXiv 2304.14178 and the released finetuning scripts; specification mPLUG-Owl, section 9. Rows without a split,
or of the split train, are used. Images, videos and text take part alike. `JOBS` is the family on one's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.conversation import VIDEO as NEUTRAL
from plait.data.conversation import Talk, holds_conversation, num_learned, read_talk
from plait.data.reader import Reader, Reading, Source, select
from plait.errors import UsageError
from plait.models import directory_of
from plait.models.auto import load
from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig, is_official_config
from plait.models.mplug_owl.conversation import SYSTEM, VIDEO
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor, turns_of
from plait.models.mplug_owl.tasks import DESCRIBE, STAGE1, language_names, lora_targets, visual_names
from plait.models.mplug_owl.weights import around
from plait.reading import read_json
from plait.recipes.finetune import Talker
from plait.training.run import refuse_beside
from plait.training.schedules import cosine, linear
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample

Built = tuple[MPlugOwlForConditionalGeneration, MPlugOwlProcessor]

TOWERS: dict[str, tuple[VisionConfig, AbstractorConfig]] = {
    "published": (VisionConfig(), AbstractorConfig()),
    "small": (
        VisionConfig(dim=192, num_heads=6, num_layers=4, mlp_dim=768, image_size=64, patch_size=8),
        AbstractorConfig(num_queries=8, num_heads=6, num_layers=2, mlp_dim=512),
    ),
    "tiny": (
        VisionConfig(dim=32, num_heads=2, num_layers=2, mlp_dim=64, image_size=16, patch_size=4),
        AbstractorConfig(num_queries=4, num_heads=2, num_layers=1, mlp_dim=48),
    ),
}
"""Fresh towers by name: sizes of tower and abstractor."""

# 2.1 M a step as published; a power of two, so that any number of processes divides its rows.
TOKENS = 1 << 21


def stage1(
    data: str,
    llm: str | None = None,
    init: str | None = None,
    tower: str | None = None,
    clip: str | None = None,
    trains: str = "all",
    temporal: bool | None = None,
    steps: int = 50_000,
    batch_size: int | None = None,
    tokens: int | None = None,
    lr: float = 1e-4,
    floor: float = 0.0,
    warmup: int = 2000,
    max_length: int = 512,
    reading: Reading = Reading(),
    seed: int = 0,
) -> Recipe:
    """Captions of images and videos, language model frozen: rows with `image` or `video` and `captions` or `text`.

    Published: LAION-400M, COYO-700M, CC and COCO, 50,000 steps of 2.1 M tokens, AdamW (0.9, 0.98), decay 0.1; no script
    was released.

    Args:
        llm: directory of a causal language model to build an untrained Owl around, instead of init.
        init: an Owl to go on from, which has a tower.
        tower: published (without it), small or tiny, the size of a fresh tower.
        clip: a directory with a CLIP vision model instead of a fresh tower.
        temporal: whether a fresh tower reads clips.
        trains: all (tower and abstractor, as published), abstractor, or projection.
        steps, lr, floor, warmup: steps, peak and last rate, steps of warm-up.
        batch_size: rows of a step over all processes, instead of tokens.
        tokens: of a step, of which rows hold max_length at most; without it and batch_size 2**21, the published 2.1 M,
            which are 4,096 rows.
        max_length: tokens of a conversation. seed: of fresh weights.

    Raises:
        UsageError: for both of batch_size and tokens, both or none of llm and init, and unknown names of trains and
            tower.
    """
    if (llm is None) == (init is None):
        raise UsageError("expected llm=DIR (a language model) or init=DIR (an Owl), got both or none")
    if trains not in STAGE1:
        raise UsageError(f"expected trains among {', '.join(STAGE1)}, got {trains!r}")
    if (tower or "published") not in TOWERS:
        raise UsageError(f"expected a tower among {', '.join(TOWERS)}, got {tower!r}")
    if batch_size is not None:
        refuse_beside(f"batch_size={batch_size}", tokens=tokens)
    rows = batch_size or max(1, (TOKENS if tokens is None else tokens) // max_length)
    if init is not None:
        refuse_beside(f"init={init}, which has them", tower=tower, clip=clip, temporal=temporal)
        model, processor = loaded(init)
    else:
        vision, abstractor = TOWERS[tower or "published"]
        model, processor = around(
            llm or "", vision=clip or vision, abstractor=abstractor, temporal=bool(temporal), seed=seed
        )
    stage = Stage(
        name="stage1",
        objective=answer_loss,
        batches=_batches(data, processor, max_length, reading, captions=True),
        weight=num_learned,
        batch_size=rows,
        steps=steps,
        peak_lr=lr,
        floor=min(floor, lr),
        warmup=warmup,
        weight_decay=0.1,
        # Of the released finetuning script; for this stage the authors only say that it is like finetuning.
        clip=1.0,
        schedule=cosine,
        trainable=tuple(visual_names(model, trains)),
    )
    return Recipe(lambda: model, [stage], partial(save_pair, processor))


def stage2(
    init: str,
    data: str,
    lora: int = 8,
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
    steps: int | None = None,
    epochs: float | None = 3,
    batch_size: int = 256,
    lr: float | None = None,
    warmup: int = 50,
    max_length: int = 2048,
    reading: Reading = Reading(),
) -> Recipe:
    """Instructions, tower and abstractor frozen: rows with `messages`, or `question` and `answers`, media or none.

    Published: Alpaca, Vicuna, Baize and LLaVA-150k, batch 256 (the script's 32 is a sample), decay 1e-4, linear decay
    after 50 steps, clipping 1.

    Args:
        init: an Owl, as stage 1 writes it or an official one.
        lora: rank on queries and values (BLOOM: its fused projection), merged when it is saved; 0 trains the whole
            language model. lora_alpha, lora_dropout: of it, 32 and 0.05 as
            published.
        steps, epochs: length of the run; steps count where both are given.
        batch_size, warmup: rows over all processes, steps of warm-up. lr: peak rate, without it the scripts' 2e-5 with
            a LoRA and 1e-5 for the whole language model.
        max_length: tokens of a conversation.

    Raises:
        UsageError: where init is no mPLUG-Owl.
    """
    from plait.training.lora import TRAINABLE, add_lora, folded, has_adapter

    if not lora:
        refuse_beside("lora=0", lora_alpha=lora_alpha, lora_dropout=lora_dropout)
    model, processor = loaded(init)

    def build() -> MPlugOwlForConditionalGeneration:
        if lora and not has_adapter(model):
            # it begins with random numbers: here generators are seeded
            alpha, dropout = 32.0 if lora_alpha is None else lora_alpha, 0.05 if lora_dropout is None else lora_dropout
            add_lora(model, lora, alpha, targets=lora_targets(model), dropout=dropout)
        return model

    stage = Stage(
        name="stage2",
        objective=answer_loss,
        batches=_batches(data, processor, max_length, reading, captions=False),
        weight=num_learned,
        batch_size=batch_size,
        steps=steps,
        epochs=None if steps is not None else epochs,
        peak_lr=lr or (2e-5 if lora else 1e-5),
        warmup=warmup,
        # Trainer's defaults, linear decay too: the script's cosine is not connected (specification 9).
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        clip=1.0,
        schedule=linear,
        trainable=TRAINABLE if lora else tuple(language_names(model)),
    )
    after: Any = (lambda trained, _: folded(trained)) if lora else None
    return Recipe(build, [stage], partial(save_pair, processor), after=after)


def read(processor: MPlugOwlProcessor, sample: Sample, rng: np.random.Generator) -> Talk:
    """One row decoded, its turns as pairs of a question and its answer.

    Args:
        processor: gives the number of frames of a clip. sample: the row. rng: passed on; nothing is drawn here.

    Raises:
        ValueError: names the row, where its turns are no such pairs or media and placeholders differ in number.
    """
    talk = read_talk(sample, rng, describe=DESCRIBE, num_frames=processor.num_frames)
    said = [{**turn, "value": turn["value"].replace(NEUTRAL, VIDEO)} for turn in talk.turns]
    system = said.pop(0)["value"] if said[0]["from"] == "system" else None
    try:
        return replace(talk, turns=turns_of(said), system=system)
    except ValueError as error:
        raise ValueError(f"row {sample.id}: {error}") from error


def collate(
    processor: MPlugOwlProcessor,
    max_length: int,
    talks: Sequence[Talk],
    rng: np.random.Generator,
    *,
    training: bool = True,
) -> dict[str, Tensor]:
    """A batch, with images cropped at random when training, as `rng` says.

    Args:
        max_length: tokens of a conversation. talks: of `read`. training: whether images are cropped at random.

    Returns:
        What the model's forward takes, `labels` (batch, tokens) with -100 where nothing is learned.
    """
    # Crops draw from torch, the reader from numpy: one number carries the randomness over.
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pictures = [picture for talk in talks for picture in talk.pictures]
    clips = [clip for talk in talks for clip in talk.clips]
    turns = [talk.turns for talk in talks]
    system = [SYSTEM if talk.system is None else talk.system for talk in talks]
    how: dict[str, Any] = {"system": system, "max_length": max_length, "generator": generator, "training": training}
    return dict(processor.supervised(turns, pictures, clips, **how))


def _batches(
    data: str, processor: MPlugOwlProcessor, max_length: int, reading: Reading, *, captions: bool
) -> Callable[[], Source]:
    """The source of a stage; captions: whether rows with a caption alone take part."""
    wanted = "messages, question and answers" + (", or text" if captions else "")
    rows = select(data, wanted, partial(holds_conversation, captions=captions), reading=reading)
    return partial(Reader, rows, partial(collate, processor, max_length), partial(read, processor), reading=reading)


def loaded(init: str | None) -> Built:
    """Model and processor of a model directory, ready to train. Raises UsageError where there is none."""
    place = directory_of(init or "")
    written = read_config(place)
    if written.get("model_type") != MPlugOwlConfig.model_type and not is_official_config(written):
        raise UsageError(f"expected init=DIR with an mPLUG-Owl, got {place}; plait train mplug_owl.stage1 makes one")
    model, processor = load(place)
    # The fused kernel: training needs no maps of attention.
    model.set_attn_implementation("sdpa")
    return model, processor


def read_config(place: Path) -> dict[str, Any]:
    """config.json of a directory, empty where there is none."""
    file = place / "config.json"
    return read_json(file) if file.is_file() else {}


def answer_loss(
    model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy, the mean over learned positions, and the share of them that are right; the head reads only there.

    A batch without any costs nothing; the loop weighs batches by what they learn (`Stage.weight`).

    Args:
        model: an Owl. batch: of `collate`. step, generator: unused.

    Returns:
        loss (), and {"right": ()}.

    Source:
        Specification mPLUG-Owl, 5.2 and 9: next-token cross entropy is the only objective.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    # The state at position i predicts token i + 1.
    targets = batch["labels"][:, 1:]
    places = (targets != -100).any(dim=0).nonzero().flatten()
    logits = model(**inputs, logits_to_keep=places, use_cache=False).logits.float()
    targets = targets[:, places]
    kept = targets != -100
    # At least 1: a batch whose answers were all cut off gives 0, not NaN.
    loss = F.cross_entropy(logits[kept], targets[kept], reduction="sum") / kept.sum().clamp(min=1)
    right = (logits.detach().argmax(-1) == targets)[kept].sum() / kept.sum().clamp(min=1)
    return loss, {"right": right}


JOBS = Talker(
    load=loaded,
    read=read,
    collate=collate,
    objective=answer_loss,
).jobs()
