"""Rows of manifests -> conversations of mPLUG-Owl with their media -> batches.

captions | question and answers | messages -> turns with placeholders -> processor.supervised -> ids, labels, pixels

mPLUG-Owl's two stages: see first, with the language model frozen; then follow instructions, with a LoRA on it.

Source: arXiv 2304.14178 and the released finetuning scripts; specification mPLUG-Owl, section 9. `data` is a manifest
(file or directory); rows without a split, or of the split train, are used. Images, videos and text take part alike.

mPLUG-Owl on one's own rows: what `plait.recipes.finetune` needs of the family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.sources import open_samples
from plait.errors import UsageError
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.auto import load_processor
from plait.models.mplug_owl.config import AbstractorConfig, MPlugOwlConfig, VisionConfig, is_official_config
from plait.models.mplug_owl.conversation import IMAGE, VIDEO, Turn
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor, turns_of
from plait.models.mplug_owl.tasks import DESCRIBE, STAGE1, lora_targets, visual_names
from plait.models.mplug_owl.weights import around, from_directory
from plait.recipes.finetune import Talker
from plait.training.data_order import Shuffled
from plait.training.schedules import cosine, linear
from plait.training.stages import Recipe, Stage
from plait.types import Sample

ROLES = {"user": "human", "assistant": "gpt"}


def conversations(data: str, *, described: bool = False, split: str = "train") -> list[Sample]:
    """Rows of a split, or without one, that hold a conversation; described: rows with a caption as well.

    Raises ValueError where none is left.
    """
    rows = [sample for sample in open_samples(data) if sample.split in (None, split)]
    kept = [s for s in rows if s.messages or (s.question and s.answers) or (described and caption_of(s))]
    if not kept:
        wanted = "messages, question and answers" + (", or text" if described else "")
        raise ValueError(f"expected rows with {wanted} in {data}, got none among {len(rows)} rows of split {split!r}")
    return kept


def caption_of(sample: Sample) -> str | None:
    """The first caption of a row with a medium."""
    if sample.image is None and sample.video is None:
        return None
    return (sample.captions or [sample.text])[0]


def conversation_of(sample: Sample) -> list[Turn]:
    """Turns of a row, its medium in the first question where no placeholder is.

    Raises ValueError without turns, and where media and placeholders differ in number.
    """
    mark = IMAGE if sample.image is not None else VIDEO if sample.video is not None else ""
    caption = caption_of(sample)
    turns: list[Turn]
    if sample.messages:
        turns = _turns(sample)
    elif sample.question and sample.answers:
        turns = [(sample.question, sample.answers[0])]
    elif caption:
        turns = [(DESCRIBE.format(kind="image" if sample.image is not None else "video"), caption)]
    else:
        raise ValueError(f"expected messages, a question with answers or a caption in row {sample.id}, got none")
    if mark and not any(mark in question for question, _ in turns):
        turns[0] = (mark + turns[0][0], turns[0][1])
    for kind, name, held in (("image", IMAGE, sample.image), ("video", VIDEO, sample.video)):
        wanted, got = sum(question.count(name) for question, _ in turns), len(_many(held))
        if wanted != got:  # in a batch they would pass to the rows after it
            what = f"{wanted} {kind}s for {wanted} {name} placeholders"
            raise ValueError(f"row {sample.id}: expected {what}, got {got}; give one per placeholder")
    return turns


def _turns(sample: Sample) -> list[Turn]:
    messages = [
        {"from": ROLES.get(m.get("role", ""), m.get("from", "")), "value": _content(m)} for m in sample.messages or ()
    ]
    try:
        return turns_of(messages)
    except ValueError as error:
        raise ValueError(f"row {sample.id}: {error}") from error


def _content(message: dict[str, Any]) -> str:
    content = message.get("content", message.get("value", ""))
    if isinstance(content, str):
        return content
    marks = {"image": IMAGE, "video": VIDEO}
    return "".join(marks.get(part["type"]) or part.get("text", "") for part in content)


def collate(
    processor: MPlugOwlProcessor,
    max_length: int,
    samples: Sequence[Sample],
    rng: np.random.Generator,
    *,
    training: bool = True,
) -> dict[str, Tensor]:
    """A batch with images cropped at random when training, drawn from `rng`; frames of videos lie evenly in time."""
    turns = [conversation_of(sample) for sample in samples]
    pictures = [image for sample in samples for image in _many(sample.image)]
    clips = [load_frames(video, processor.num_frames) for sample in samples for video in _many(sample.video)]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images = [load_image(image).convert("RGB") for image in pictures]
    return dict(
        processor.supervised(turns, images, clips, max_length=max_length, generator=generator, training=training)
    )


def _many(media: Any) -> list[Any]:
    return [] if media is None else list(media) if isinstance(media, list) else [media]


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


def stage1(
    data: str,
    llm: str | None = None,
    init: str | None = None,
    tower: str = "published",
    clip: str | None = None,
    trains: str = "all",
    temporal: bool = False,
    steps: int = 50_000,
    batch_size: int = 256,
    lr: float = 1e-4,
    warmup: int = 2000,
    max_length: int = 512,
    seed: int = 0,
) -> Recipe:
    """Captions of images and videos, language model frozen: rows with `image` or `video` and `captions` or `text`.

    llm: directory of a causal language model to build an untrained Owl around, with a fresh `tower` (published, small,
    tiny) or a CLIP vision model in the directory `clip`; or init: an Owl to go on from. trains: all (tower and
    abstractor, as published), abstractor, or projection. temporal: whether it reads clips. Published: LAION-400M,
    COYO-700M, CC and COCO, 50,000 steps of 2.1 M tokens, AdamW (0.9, 0.98), decay 0.1; no script was released.
    """
    if (llm is None) == (init is None):
        raise UsageError("expected llm=DIR (a language model) or init=DIR (an Owl), got both or none")
    if trains not in STAGE1:
        raise UsageError(f"expected trains among {', '.join(STAGE1)}, got {trains!r}")
    if tower not in TOWERS:
        raise UsageError(f"expected a tower among {', '.join(TOWERS)}, got {tower!r}")
    vision, reader = TOWERS[tower]
    build: Callable[[], Built] = partial(
        around, llm or "", vision=clip or vision, abstractor=reader, temporal=temporal, seed=seed
    )
    model, processor = loaded(init) if init is not None else build()
    samples = conversations(data, described=True)
    stage = Stage(
        name="stage1",
        objective=answer_loss,
        batches=partial(Shuffled, samples, partial(collate, processor, max_length)),
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        warmup=warmup,
        weight_decay=0.1,
        clip=1.0,
        schedule=cosine,
        trainable=tuple(visual_names(model, trains)),
    )
    return Recipe(lambda: model, [stage], partial(save, processor))


def stage2(
    init: str,
    data: str,
    lora: int = 8,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    steps: int | None = None,
    epochs: float | None = 3,
    batch_size: int = 256,
    lr: float = 2e-5,
    warmup: int = 50,
    max_length: int = 2048,
) -> Recipe:
    """Instructions, tower and abstractor frozen: rows with `messages`, or `question` and `answers`, media or none.

    lora: rank of the adapters on queries and values (BLOOM: its fused projection), merged when it is saved; 0 trains
    the whole language model (published rate 1e-5). Published: Alpaca, Vicuna, Baize and LLaVA-150k, batch 256 (the
    script's 32 is a sample), decay 1e-4, linear decay after 50 steps, clipping 1.
    """
    from plait.training.lora import TRAINABLE, add_lora, folded, has_adapter

    model, processor = loaded(init)

    def build() -> MPlugOwlForConditionalGeneration:
        if lora and not has_adapter(model):  # it begins with random numbers: here generators are seeded
            add_lora(model, lora, lora_alpha, targets=lora_targets(model), dropout=lora_dropout)
        return model

    stage = Stage(
        name="stage2",
        objective=answer_loss,
        batches=partial(Shuffled, conversations(data), partial(collate, processor, max_length)),
        batch_size=batch_size,
        steps=steps,
        epochs=None if steps is not None else epochs,
        peak_lr=lr,
        warmup=warmup,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        clip=1.0,
        schedule=linear,
        trainable=TRAINABLE if lora else ("language_model.*",),
    )
    after: Any = (lambda trained, _: folded(trained)) if lora else None
    return Recipe(build, [stage], partial(save, processor), after=after)


def loaded(init: str | None) -> Built:
    """Model and processor of a model directory, ready to train. Raises UsageError where there is none."""
    place = Path(init or "")
    written = read_config(place)
    if written.get("model_type") != MPlugOwlConfig.model_type and not is_official_config(written):
        raise UsageError(f"expected init=DIR with an mPLUG-Owl, got {place}; plait train mplug_owl.stage1 makes one")
    model = from_directory(place)
    model.set_attn_implementation("sdpa")
    return model, load_processor(place)


def read_config(place: Path) -> dict[str, Any]:
    """config.json of a directory, empty where there is none."""
    file = place / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def answer_loss(
    model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of answers, and the share of their positions that are right; the head reads only where some are."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    places = (targets != -100).any(dim=0).nonzero().flatten()
    logits = model(**inputs, logits_to_keep=places, use_cache=False).logits.float()
    targets = targets[:, places]
    kept = targets != -100
    loss = F.cross_entropy(logits[kept], targets[kept], reduction="sum") / kept.sum().clamp(min=1)
    return loss, {"right": (logits.detach().argmax(-1) == targets)[kept].float().mean()}


def save(processor: MPlugOwlProcessor, model: nn.Module, directory: Path) -> None:
    """Weights, configuration and processor."""
    from transformers.utils.logging import disable_progress_bar

    assert isinstance(model, MPlugOwlForConditionalGeneration)
    disable_progress_bar()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


JOBS = Talker(
    load=loaded,
    decode=lambda sample, rng: sample,
    collate=collate,
    measured=partial(collate, training=False),
    objective=answer_loss,
    save=save,
).jobs()
