"""mPLUG-Owl2's two stages: the visual ways beside a frozen language model, then everything on text and images.

rows -> select -> decoded talks (`plait.data.conversation`; crops in pretraining) -> processor.captioned | supervised
    -> ids, mask, labels, pixels -> answer_loss; joint: batches of one modality and of similar length

Source: arXiv 2311.04257 and the released finetuning scripts; specification mPLUG-Owl2, section 10. Rows without a
split, or of the split train, are used. `init` is a model directory: an official one, or what `plait upcycle LLAMA_DIR
DST` writes. `JOBS` is the family on one's own rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data import conversation
from plait.data.conversation import Talk, conversation_of, holds_conversation, num_learned
from plait.data.order import Grouped
from plait.data.reader import Reader, Reading, Source, select
from plait.errors import UsageError
from plait.media.image import load_image
from plait.models import directory_of
from plait.models.auto import load
from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.conversation import IMAGE
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.models.mplug_owl2.tasks import (
    ABSTRACTOR,
    TOWER,
    decays,
    lora_saved,
    lora_targets,
    pretraining_names,
    vision_depth,
    without_tower,
)
from plait.models.mplug_owl2.weights import resized
from plait.processing.videos import training_image
from plait.reading import read_json
from plait.recipes.finetune import Talker
from plait.training.optim import parameter_groups
from plait.training.run import refuse_beside
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample

IMAGE_WORDS = 128
"""What an image counts when rows are grouped by length, as in the released sampler."""

DESCRIBE = "Describe what you see."
FRAMES = 8
# Of the second stage and the LoRA script (specification 10.2, 10.3); 224 pixels are the first stage's.
JOINT_SIZE, PATCH, ABSTRACTOR_LR = 448, 14, 2e-5
Built = tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]


def length_of(sample: Sample) -> int:
    """Words of a conversation, negative without media, as the released sampler counts, images with `IMAGE_WORDS`."""
    words = sum(len(turn["value"].split()) for turn in conversation_of(sample, DESCRIBE)) or 1
    return -words if sample.image is None and sample.video is None else words + IMAGE_WORDS


def read_caption(processor: MPlugOwl2Processor, sample: Sample, rng: np.random.Generator) -> tuple[str, Tensor]:
    """Pretraining: one of the row's captions without a question, and a random crop, mirrored half the time.

    Args:
        processor: gives the side of the image. sample: a row with `image`. rng: of caption, crop and mirror.

    Returns:
        The caption, and pixels (3, side, side).
    """
    said = sample.captions or [sample.text or ""]
    side, draw = processor.image_processor.size["height"], random.Random(int(rng.integers(1 << 62)))
    pixels = training_image(load_image(sample.image), side, draw, augment=False)
    return said[int(rng.integers(len(said)))], pixels


def read_talk(num_frames: int, sample: Sample, rng: np.random.Generator) -> Talk:
    """A conversation with its images; a clip is `num_frames` images in a row where its placeholder stands."""
    talk = conversation.read_talk(sample, rng, describe=DESCRIBE, num_frames=num_frames, is_drawn=True)
    turns, pictures, stills, clips = [], [], iter(talk.pictures), iter(talk.clips)
    for turn in talk.turns:
        pieces = conversation.MARKS.split(turn["value"])
        for place, piece in enumerate(pieces):
            if piece in (conversation.IMAGE, conversation.VIDEO):
                shown = [next(stills)] if piece == conversation.IMAGE else next(clips)
                pictures += shown
                pieces[place] = IMAGE * len(shown)
        turns.append({**turn, "value": "".join(pieces)})
    return Talk(turns, tuple(pictures))


def captioned(
    processor: MPlugOwl2Processor, max_length: int, parts: list[tuple[str, Tensor]], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Image, caption, end; every piece of the caption and its end is learned.

    Args:
        max_length: tokens. parts: of `read_caption`. rng: unused; every collate has one.

    Returns:
        input_ids, attention_mask and labels (batch, seq), pixel_values (batch, 3, side, side).
    """
    captions, pixels = zip(*parts, strict=True)
    return {**processor.captioned(list(captions), max_length=max_length), "pixel_values": torch.stack(pixels)}


def talked(
    processor: MPlugOwl2Processor,
    max_length: int,
    talks: list[Talk],
    rng: np.random.Generator | None = None,
    *,
    training: bool = True,
) -> dict[str, Tensor]:
    """Conversations with labels on answers and their ends; pixels only where a row has media; nothing is drawn."""
    pictures = [picture for talk in talks for picture in talk.pictures]
    return dict(processor.supervised([talk.turns for talk in talks], pictures, max_length=max_length))


def pretrain(
    init: str,
    data: str,
    image_size: int | None = 224,
    num_queries: int | None = None,
    train_vision: bool = True,
    layer_decay: float = 0.9,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 8192,
    accumulation: int = 1,
    lr: float = 1e-4,
    floor: float = 1e-6,
    warmup: float = 1000,
    max_length: int = 256,
    reading: Reading = Reading(),
) -> Recipe:
    """Captions of images; tower, abstractor and the ways that images brought train, the language model stays.

    Rows with `image` and `captions` or `text`. Published: about 400 M pairs of CC3M, CC12M, COCO, COYO, LAION and
    DataComp, 42,500 steps of 8,192 pairs (arXiv 2311.04257; specification mPLUG-Owl2, 10.2).

    Args:
        image_size, num_queries: the checkpoint is resized to them, None for its own.
        train_vision: False freezes the tower.
        layer_decay: rate of a tower layer relative to the next one; published 0.9, "crucial".
        steps, epochs: length of the run; 42,500 steps without either.
        batch_size, accumulation: rows of a step over all processes, and micro batches that it is split into.
        lr, floor, warmup: peak rate, last rate, steps of warm-up (a share of the run below 1).

    Raises:
        UsageError: where init is no mPLUG-Owl2, and for a layer_decay outside (0, 1].
    """
    steps = 42_500 if steps is None and epochs is None else steps
    _check(layer_decay)
    model, processor = loaded(init, image_size, num_queries)
    names = pretraining_names(model)
    rows = select(
        data, "an image and text or captions", lambda s: s.image is not None and bool(s.captions or s.text),
        reading=reading,
    )  # fmt: skip
    collate, decode = partial(captioned, processor, max_length), partial(read_caption, processor)
    source = partial(Reader, rows, collate, decode, reading=reading)
    stage = replace(
        _stage(model, "pretrain", source, batch_size, (lr, floor, warmup, layer_decay), steps, epochs),
        accumulation=accumulation,
        trainable=tuple(name for name in names if train_vision or not name.startswith(TOWER)),
    )
    return Recipe(lambda: model, [stage], partial(save_pair, processor))


def joint(
    init: str,
    data: str,
    image_size: int | None = None,
    num_queries: int | None = None,
    lora: int = 0,
    lora_alpha: float | None = None,
    lora_dropout: float | None = None,
    train_vision: bool = True,
    layer_decay: float = 0.9,
    abstractor_lr: float | None = None,
    steps: int | None = None,
    epochs: float | None = 1,
    batch_size: int = 256,
    micro_batch: int = 2,
    accumulation: int = 1,
    frames: int = 8,
    lr: float | None = None,
    floor: float = 1e-7,
    warmup: float = 250,
    max_length: int = 2048,
    reading: Reading = Reading(),
) -> Recipe:
    """Instructions with images, clips or text alone; everything trains, or adapters, abstractor and tower.

    Rows with `messages`, `question` and `answers`, or a medium with `text` or `captions`. Published: 4,800 steps of 256
    on 1.2 M instructions, 448 pixels, one epoch.

    Args:
        image_size, num_queries: the checkpoint is resized to them; without image_size towers of patches of 14 to the
            published 448 pixels.
        lora: rank of adapters on every linear layer of the language model but its head (published 128), merged when
            saved; 0 trains everything.
        lora_alpha, lora_dropout: of the adapters, twice the rank and 0.05 without them, as published.
        train_vision: False freezes the tower, as the released scripts do.
        layer_decay: rate of a tower layer relative to the next one.
        abstractor_lr: its own rate, without it 2e-5 beside adapters, else lr.
        micro_batch: rows of equal length together.
        frames: of a clip.
        lr: peak rate, without it 2e-5, with adapters 1e-4.
        max_length: tokens of a conversation.
    """
    from plait.training.lora import TRAINABLE, folded

    _check(layer_decay, frames)
    if not lora:
        refuse_beside("lora=0", lora_alpha=lora_alpha, lora_dropout=lora_dropout)
    model, processor = loaded(init, image_size, num_queries, published=JOINT_SIZE)
    # Of the released scripts: full 2e-5, LoRA 1e-4 (specification 10.3).
    rate = lr or (1e-4 if lora else 2e-5)
    rows = select(
        data, "messages, a question with answers, or a medium with text or captions",
        partial(holds_conversation, captions=True), measure=length_of, reading=reading,
    )  # fmt: skip
    order = Grouped(rows.measures, micro_batch)
    collate, decode = partial(talked, processor, max_length), partial(read_talk, frames)
    source = partial(Reader, rows, collate, decode, reading=reading, order=order)
    stage = replace(
        _stage(model, "joint", source, batch_size, (rate, floor, warmup, layer_decay), steps, epochs),
        accumulation=accumulation,
        trainable=TRAINABLE if lora else () if train_vision else tuple(without_tower(model)),
        # The scale is relative, so the abstractor follows the same warm-up and cosine.
        optimizer=partial(two_rates, (abstractor_lr or (ABSTRACTOR_LR if lora else rate)) / rate),
    )
    dropout = 0.05 if lora_dropout is None else lora_dropout
    build = partial(_adapted, model, lora, lora_alpha, dropout, train_vision)
    after: Any = (lambda trained, _: folded(trained)) if lora else None
    return Recipe(build, [stage], partial(save_pair, processor), after=after)


def _check(layer_decay: float, frames: int = 8) -> None:
    """Raise UsageError for settings with which nothing would be learned, or seen."""
    if not 0 < layer_decay <= 1:
        said = f"got {layer_decay}; 1 gives every layer one rate, the published value is 0.9"
        raise UsageError(f"expected layer_decay above 0 and at most 1, {said}")
    if frames < 1:
        raise UsageError(f"expected frames of at least 1, got {frames}; the default is 8")


def _adapted(
    model: MPlugOwl2ForConditionalGeneration, rank: int, alpha: float | None, dropout: float, train_vision: bool
) -> MPlugOwl2ForConditionalGeneration:
    """The model with its adapters, which begin with random numbers: called where generators are seeded."""
    from plait.training.lora import add_lora, has_adapter

    if rank and not has_adapter(model):
        whole, targets = lora_saved(train_vision), lora_targets(model)
        add_lora(model, rank, alpha, targets=targets, whole=whole, dropout=dropout)
    return model


def loaded(
    init: str, image_size: int | None = None, num_queries: int | None = None, *, published: int | None = None
) -> Built:
    """Model and processor of a model directory or an official one, resized where asked.

    published: the side in pixels that a published tower, one of patches of 14, gets where none is asked for. Raises
    UsageError where there is no mPLUG-Owl2.
    """
    place = directory_of(init)
    written = place / "config.json"
    kind = read_json(written).get("model_type") if written.is_file() else None
    if not str(kind).startswith(MPlugOwl2Config.model_type):
        found = init if kind is None else f"{init} with {kind!r}"
        raise UsageError(f"expected init=DIR with an mPLUG-Owl2, got {found}; plait upcycle LLAMA_DIR DST makes one")
    model, processor = load(place)
    if image_size is None and published is not None and model.config.vision_sizes.patch_size == PATCH:
        image_size = published
    sizes = (image_size or model.config.image_size, num_queries or model.config.abstractor_sizes.num_queries)
    if sizes != (model.config.image_size, model.config.abstractor_sizes.num_queries):
        model = resized(model, image_size=sizes[0], num_queries=sizes[1])
        processor = MPlugOwl2Processor.from_config(
            model.config, processor.tokenizer, template=processor.template, answer_end=processor.answer_end
        )
    model.set_attn_implementation("sdpa")
    return model, processor


def answer_loss(
    model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy, the mean over learned positions, and the share of them that are right.

    A batch without any costs nothing; the loop weighs batches by what they learn (`Stage.weight`).

    Args:
        model: an mPLUG-Owl2. batch: of `talked` or `captioned`. step, generator: unused.

    Returns:
        loss (), and {"right": ()}.

    Source:
        Specification mPLUG-Owl2, 5 and 10.1: no auxiliary loss, no label smoothing.
    """
    assert isinstance(model, MPlugOwl2ForConditionalGeneration)
    logits, labels = answer_logits(model, batch)
    loss = F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))
    return loss, {"right": (logits.detach().argmax(-1) == labels).sum() / max(1, len(labels))}


def two_rates(abstractor_scale: float, model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW with layer-wise rates in the tower; the abstractor learns `abstractor_scale` times as fast as the rest.

    Args:
        abstractor_scale: 1 for one rate; the released LoRA script has 2e-5 beside 1e-4.
        model: its trainable parameters are taken. stage: gives rates, betas, eps, decay and depths.
    """
    named = list(model.named_parameters())
    how: dict[str, Any] = {
        "weight_decay": stage.weight_decay, "no_decay": stage.no_decay, "layer_id": stage.layer_id,
        "num_layers": stage.num_layers, "layer_decay": stage.layer_decay,
    }  # fmt: skip
    rest = parameter_groups([one for one in named if not one[0].startswith(ABSTRACTOR)], **how)
    reader = parameter_groups([one for one in named if one[0].startswith(ABSTRACTOR)], **how)
    for group in reader:
        group["lr_scale"] *= abstractor_scale
    return torch.optim.AdamW([*rest, *reader], stage.peak_lr, betas=stage.betas, eps=stage.eps)


def _stage(
    model: MPlugOwl2ForConditionalGeneration,
    name: str,
    source: Callable[[], Source],
    batch_size: int,
    rates: tuple[float, float, float, float],
    steps: int | None,
    epochs: float | None,
) -> Stage:
    """A stage with the published optimiser. rates: peak, floor, warm-up, layer decay; steps go before epochs.

    A run shorter than five times the warm-up warms up for a tenth of it.
    """
    peak, floor, warmup, decay = rates
    num_layers = model.config.vision_sizes.num_layers
    depth, decayed = vision_depth(num_layers), decays(model)
    return Stage(
        name=name,
        objective=answer_loss,
        batches=source,
        weight=num_learned,
        batch_size=batch_size,
        steps=steps,
        epochs=None if steps is not None else epochs,
        peak_lr=peak,
        # A peak below the published floor would rise in the cosine's descent.
        floor=min(floor, peak),
        warmup=0.1 if steps is not None and warmup >= 1 and steps < 5 * warmup else warmup,
        betas=(0.9, 0.98),
        # Published optimiser (specification 10.2); the released finetuning scripts have 1e-8 and (0.9, 0.999).
        eps=1e-6,
        no_decay=lambda name, parameter: not decayed(name.replace("modules_to_save.default.", ""), parameter),
        clip=1.0,
        optimizer=partial(two_rates, 1.0),
        # peft renames modules that train whole beside a LoRA; depth goes by the plain name.
        layer_id=lambda name: depth(name.replace("modules_to_save.default.", "")),
        num_layers=num_layers,
        layer_decay=decay,
    )


def answer_logits(model: MPlugOwl2ForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (answers, vocabulary) in float32 and labels (answers,) of every position that predicts an answer's."""
    states = model.model(batch["input_ids"], batch["attention_mask"], pixel_values=batch.get("pixel_values"))
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    # Only positions that predict an answer meet the vocabulary: logits are the widest tensor.
    return model.lm_head(states.last_hidden_state[:, :-1][kept]).float(), labels[kept]


JOBS = Talker(
    load=loaded,
    read=lambda processor, sample, rng: read_talk(FRAMES, sample, rng),
    collate=talked,
    objective=answer_loss,
    full_lr=2e-5,
    lora_lr=1e-4,
).jobs()
