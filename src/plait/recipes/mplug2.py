"""mPLUG-2's pretraining and every finetuning task, with the published hyperparameters as defaults.

Published for finetuning (released video tasks): AdamW, rate 2e-5 and for the vision encoder 2e-6, weight decay 0.02,
cosine to 1e-6 after 200 steps of warm-up from 1e-6, 10 epochs, no clipping, everything trains, 8 GPUs. Where nothing
was published the docstring says so and the released tasks' values stand in. Source: specification mPLUG-2, sections
2, 10, 12 and 15. `data` is a manifest (file or directory); rows without a split, or of the split train, are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from plait.models.auto import load_config, load_processor
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.family import processor_for
from plait.models.mplug2.model import MPlug2PreTrainedModel
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForGrounding,
    MPlug2ForSequenceClassification,
)
from plait.models.mplug2.weights import from_directory, start_from
from plait.recipes import mplug2_rows as rows
from plait.recipes.mplug2_objectives import Aligned, Distilled, PreTraining, SelfCritical, supervised, two_rates
from plait.recipes.mplug2_small import save
from plait.training.data_order import Shuffled
from plait.training.stages import Recipe, Source, Stage
from plait.types import Sample

FLOOR = 1e-6
PROMPT = "a video of"


def pretraining(
    data: str,
    init: str | None = None,
    preset: str = "base",
    clip: str | None = None,
    bert: str | None = None,
    media: tuple[str, ...] = ("image", "video", "text"),
    steps: int | None = None,
    epochs: float | None = 30,
    batch_size: int = 256,
    lr: float = 1e-4,
    vision_lr: float = 1e-5,
    queue_size: int = 65536,
    alpha: float = 0.4,
    mask_probability: float = 0.15,
    instructions: bool = True,
    universal_sharing: str = "shared",
) -> Recipe:
    """Image-text, video-text and text: contrast and matching, masked and instruction language modelling.

    init: a model directory to go on from; without it random weights of `preset`, or those of the checkpoints clip and
    bert where they fit (as published, CLIP ViT-B/16 or L/14 and uncased BERT). media: kinds of rows, which take turns.
    queue_size: divisible by the batch, 0 for negatives of the batch alone. instructions: whether the decoder is told
    what to write; the saved model then expects to be. Never released; values are the predecessor's (base: 256 pixels,
    these rates, batch 256, 30 epochs). Published data: COCO, Visual Genome, SBU, CC3M, CC12M (14 M image-text pairs),
    WebVid (2 M clips), Wikipedia and Common Crawl. Cost: 0.25 TFLOPs forward a picture, 3.6 a clip (large), several
    times that for all objectives and their gradients; no figure was published.
    """
    if init is not None and (clip or bert):
        raise ValueError(f"expected either init or clip and bert, got {init} and {clip or bert}; leave one out")
    steps, epochs = _length(steps, epochs)
    switches = {"universal_sharing": universal_sharing, "instructions": instructions}
    changes: dict[str, Any] = {"queue_size": queue_size} | switches
    config = MPlug2Config.preset(preset, **changes) if init is None else load_config(init, MPlug2Config)
    processor = processor_for(config) if init is None else load_processor(init)
    if queue_size % batch_size:
        raise ValueError(f"expected a queue_size divisible by batch_size {batch_size}, got {queue_size}")
    stage = _stage(
        "pretraining",
        _objective(processor, alpha, mask_probability),
        partial(_media, data, media, processor, instructions),
        steps,
        epochs,
        batch_size,
        lr,
        vision_lr,
        floor=min(FLOOR, lr / 10),
    )
    old = partial(from_directory, Path(init or ""), model_class=MPlug2ForPreTraining, **changes)
    return _recipe(processor, stage, partial(_fresh, config, clip, bert) if init is None else old)


def _objective(processor: MPlug2Processor, alpha: float, mask_probability: float) -> PreTraining:
    tokenizer = processor.tokenizer
    return PreTraining(
        mask_id=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        special_ids=frozenset(tokenizer.all_special_ids),
        alpha=alpha,
        probability=mask_probability,
    )


def _fresh(config: MPlug2Config, clip: str | None, bert: str | None) -> MPlug2ForPreTraining:
    """Random weights, and what CLIP and BERT have in their place."""
    model = MPlug2ForPreTraining(config)
    if clip or bert:
        start_from(model, clip=clip, bert=bert)
    return model


def _media(data: str, media: Sequence[str], processor: MPlug2Processor, instructions: bool) -> Source:
    found = []
    for medium in media:
        samples = rows.rows_with(data, medium=medium)
        collate: rows.Collate = partial(rows.pairs, processor, True)
        if medium == "text":
            collate = partial(rows.plain_texts, processor)
        found.append(Shuffled(samples, collate if instructions else partial(_without_instruction, collate)))
    return rows.Turns(found, [1] * len(found))


def _without_instruction(collate: rows.Collate, samples: list[Sample], rng: Any) -> dict[str, Any]:
    return {name: value for name, value in collate(samples, rng).items() if not name.startswith("instruction_")}


def captioning(
    init: str,
    data: str,
    prompt: str = PROMPT,
    instructions: bool = False,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 64,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
) -> Recipe:
    """Captions of clips or pictures: rows with `video` or `image` and `captions` or `text`.

    Data: MSRVTT, MSVD. Cost: a clip of 16 frames takes 3.5 TFLOPs forward (large, `plait plan mplug2 caption`) and
    about three times that in training; the released scripts use 8 GPUs. Published (large): CIDEr 80.3 on MSRVTT, 165.8
    on MSVD; batch 4 x 8 GPUs x 2 accumulated, prompt "a video of".
    instructions: whether the model is told to describe, through text encoder and fusion; the saved model then is too.
    """
    collate = partial(rows.captions, load_processor(init), prompt, instructions)
    return _finetuning(
        init, data, collate, "caption", steps, epochs, batch_size, lr, vision_lr, instructions=instructions
    )


def self_critical(
    init: str,
    data: str,
    num_beams: int = 5,
    min_length: int = 8,
    max_length: int = 25,
    steps: int | None = None,
    epochs: float | None = 5,
    batch_size: int = 32,
    lr: float = 1e-6,
    vision_lr: float = 1e-6,
) -> Recipe:
    """Captions made better by their own CIDEr, behind `captioning`: rows as there, all captions are references.

    Published by the predecessor on COCO: CIDEr 137.5 -> 150.4 (base), 141.0 -> 155.1 (large), both rates 1e-6, 5
    epochs. A step searches with `num_beams` beams of min_length to max_length tokens: 3 to 5 times the cost of one of
    captioning.
    """
    processor = load_processor(init)
    samples = [sample for sample in rows.rows_with(data) if rows.medium_of(sample) != "text"]
    objective = SelfCritical(
        processor.decode_text,
        map(rows.captions_of, samples),
        num_beams=num_beams,
        min_length=min_length,
        max_length=max_length,
    )
    source = partial(Shuffled, samples, partial(rows.referenced, processor))
    floor = min(FLOOR, lr / 10)
    stage = _stage("caption", objective, source, *_length(steps, epochs), batch_size, lr, vision_lr, floor)
    build = partial(from_directory, Path(init), model_class=MPlug2ForConditionalGeneration, instructions=False)
    return _recipe(processor, stage, build)


def answering(
    init: str,
    data: str,
    instructions: bool = False,
    distill: bool = True,
    alpha: float = 0.4,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
) -> Recipe:
    """Answers to questions: rows with `video` or `image`, `question` and `answers`.

    instructions: whether questions are framed by what to do; the saved model then frames them as well. distill, alpha:
    momentum distillation, which the released code computes and throws away and this one uses.
    Data: MSRVTT-QA, MSVD-QA, TGIF-FrameQA, VQA v2. Cost: 3.6 TFLOPs forward for a clip of 16 frames, 0.25 for a picture
    (large), three times that in training and again forward for the teacher. Published (large): accuracy 48.0 on
    MSRVTT-QA, 58.1 on MSVD-QA; recalled: VQA v2 81.11 (test-dev).
    """
    processor = load_processor(init)
    samples = rows.rows_with(data, "question", "answers")
    objective = Distilled(alpha, max(1, len(samples) // batch_size)) if distill else supervised
    source = partial(Shuffled, samples, partial(rows.answers, processor, instructions))
    stage = _stage("answering", objective, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    changes = {"distill": distill, "instructions": instructions}
    build = partial(from_directory, Path(init), model_class=MPlug2ForConditionalGeneration, **changes)
    return _recipe(processor, stage, build)


def retrieval(
    init: str,
    data: str,
    queue_size: int = 65536,
    alpha: float = 0.4,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 256,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
) -> Recipe:
    """Text <-> image or video: rows with `image` or `video` and `captions` or `text`; contrast with queues, matching.

    Data: MSRVTT, DiDeMo, LSMDC; COCO, Flickr30k. Cost: 3.3 TFLOPs forward for a clip of 16 frames, 0.2 for a picture
    (large), three times that in training and again forward for the teacher. Published (large, recalled): MSRVTT
    text-to-video R@1 53.1. The recipe was not released; batch and queue are the predecessor's.
    """
    if queue_size % batch_size:
        raise ValueError(f"expected a queue_size divisible by batch_size {batch_size}, got {queue_size}")
    processor = load_processor(init)
    samples = [sample for sample in rows.rows_with(data) if rows.medium_of(sample) != "text"]
    source = partial(Shuffled, samples, partial(rows.pairs, processor, False))
    objective = Aligned(alpha, max(1, len(samples) // batch_size))
    stage = _stage("retrieval", objective, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    build = partial(from_directory, Path(init), model_class=MPlug2ForRetrieval, queue_size=queue_size)
    return _recipe(processor, stage, build)


def grounding(
    init: str,
    data: str,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
) -> Recipe:
    """Boxes of phrases: rows with `image`, `question` or `text` (the phrase) and `boxes` (x0, y0, x1, y1 in pixels).

    Data: RefCOCO, RefCOCO+, RefCOCOg. Cost: 0.25 TFLOPs forward a phrase (large, 224 pixels), three times that in
    training. Published by the predecessor (large, 336 pixels): accuracy at IoU 0.5 of 92.40 on RefCOCO val. The rates
    are those of the released video tasks.
    """
    collate = partial(rows.boxes, load_processor(init))
    return _finetuning(
        init, data, collate, "ground", steps, epochs, batch_size, lr, vision_lr, ("boxes",), MPlug2ForGrounding
    )


def classification(
    init: str,
    data: str,
    task: str = "classify",
    medium: str = "text",
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
) -> Recipe:
    """Labels of texts, pictures or clips (`classify`), or of a text about a picture or clip (`entail`).

    Rows with `label` and what `medium` names; a pair of texts has the second in `text_pair`. Data: Kinetics, ImageNet,
    GLUE, SNLI-VE. Cost: forward 3.2 TFLOPs a clip of 16 frames, 0.17 a picture, 0.01 a sentence (large), three times
    that in training. Published (large, recalled): Kinetics-400 top-1 87.1, ImageNet 87.7; no recipe was released.
    """
    if task not in ("classify", "entail"):
        raise ValueError(f"expected task classify or entail, got {task!r}")
    labels = sorted({sample.label or "" for sample in rows.rows_with(data, "label", medium=medium)})
    collate = partial(rows.classes, load_processor(init), labels)
    changes: dict[str, Any] = {"id2label": dict(enumerate(labels)), "task": task}
    if task == "classify":
        changes["branch"] = (medium,)
    chosen = MPlug2ForSequenceClassification if task == "entail" else None
    return _finetuning(
        init, data, collate, task, steps, epochs, batch_size, lr, vision_lr, ("label",), chosen, medium, **changes
    )


def comparison(
    init: str,
    data: str,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
) -> Recipe:
    """What a text says of several pictures (`compare`): rows with `images` (in every row as many), `text` and `label`.

    Data: NLVR2, two photographs a row. Cost: some 0.4 TFLOPs forward a row (large), three times that in training.
    Published by the predecessor (large): accuracy 84.58 and 84.95 on the two test splits; no recipe was released.
    """
    samples = [sample for sample in rows.rows_with(data, "text", "label") if sample.meta.get("images")]
    counts = {len(sample.meta["images"]) for sample in samples}
    if len(counts) != 1:
        raise ValueError(f"expected rows with images in {data}, as many in each, got {sorted(counts) or 'none'}")
    labels = sorted({sample.label or "" for sample in samples})
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    processor = load_processor(init)
    source = partial(Shuffled, samples, partial(rows.compared, processor, labels, folder))
    stage = _stage("compare", supervised, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    changes: dict[str, Any] = {"id2label": dict(enumerate(labels)), "task": "compare", "num_images": counts.pop()}
    build = partial(from_directory, Path(init), model_class=MPlug2ForSequenceClassification, **changes)
    return _recipe(processor, stage, build)


def _finetuning(
    init: str,
    data: str,
    collate: rows.Collate,
    name: str,
    steps: int | None,
    epochs: float | None,
    batch_size: int,
    lr: float,
    vision_lr: float,
    fields: tuple[str, ...] = (),
    model_class: type[MPlug2PreTrainedModel] | None = MPlug2ForConditionalGeneration,
    medium: str | None = None,
    **changes: Any,
) -> Recipe:
    """A recipe of one supervised stage over the rows that have `fields`."""
    source = partial(Shuffled, rows.rows_with(data, *fields, medium=medium), collate)
    stage = _stage(name, supervised, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    build = partial(from_directory, Path(init), model_class=model_class, **changes)
    return _recipe(load_processor(init), stage, build)


def _length(steps: int | None, epochs: float | None) -> tuple[int | None, float | None]:
    """Steps where they are given, else epochs."""
    return (steps, None) if steps is not None else (None, epochs)


def _stage(
    name: str,
    objective: Any,
    source: Callable[[], Source],
    steps: int | None,
    epochs: float | None,
    batch_size: int,
    lr: float,
    vision_lr: float,
    floor: float = FLOOR,
) -> Stage:
    return Stage(
        name=name,
        objective=objective,
        batches=source,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        peak_lr=lr,
        floor=floor,
        warmup=200 if steps is None or steps > 2000 else 0.1,
        betas=(0.9, 0.999),
        weight_decay=0.02,
        clip=0.0,
        optimizer=partial(two_rates, vision_lr / lr),
    )


def _recipe(processor: MPlug2Processor, stage: Stage, build: Callable[[], nn.Module]) -> Recipe:
    return Recipe(build, [stage], partial(save, processor))
