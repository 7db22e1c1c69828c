"""mPLUG-Owl on one's own rows: captions, or answers to questions, about images and videos.

rows -> conversations (`mplug_owl_rows`) -> cross entropy of answers -> job; predictions by `Assistant`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from plait.assistant import Assistant
from plait.data.reading import Reader
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.recipes import mplug_owl
from plait.recipes import mplug_owl_rows as rows
from plait.recipes.finetune import Job, Request
from plait.training.stages import Source, Stage
from plait.types import Sample

FULL_LR, LORA_LR = 1e-5, 2e-4
BATCH, MAX_LENGTH, MAX_ANSWER = 8, 2048, 32


def caption(request: Request) -> Job:
    """Captions, scored by CIDEr."""
    return _job(request, _said(caption=True))


def vqa(request: Request) -> Job:
    """Free answers."""
    return _job(request, _said(caption=False))


JOBS: dict[str, Callable[[Request], Job]] = {"caption": caption, "vqa": vqa}


def _job(request: Request, predict: Callable[[nn.Module, Any, Sequence[Sample]], list[str]]) -> Job:
    model, processor = mplug_owl.loaded(str(request.model))

    def batches() -> Source:
        collate = partial(rows.collate, processor, MAX_LENGTH)
        return Reader(request.train, collate, lambda sample, _: sample, **request.reading)

    def predicted(model: nn.Module, held_out: Sequence[Sample]) -> list[str]:
        was_training = model.training
        try:
            with torch.no_grad():
                return predict(model.eval(), processor, held_out)
        finally:
            model.train(was_training)

    lr = request.lr or (LORA_LR if request.lora else FULL_LR)
    stage = Stage(
        name="finetuning",
        objective=mplug_owl.answer_loss,
        batches=batches,
        batch_size=request.batch_size,
        steps=request.steps,
        epochs=request.epochs,
        peak_lr=lr,
        floor=lr / 20,
        warmup=0.1,
        weight_decay=1e-4,
        clip=1.0,
    )
    return Job(lambda: model, stage, predicted, partial(mplug_owl.save, processor))


def _said(*, caption: bool) -> Callable[[nn.Module, Any, Sequence[Sample]], list[str]]:
    def predict(model: nn.Module, processor: Any, held_out: Sequence[Sample]) -> list[str]:
        assistant = Assistant((model, processor), batch_size=BATCH)
        items = [
            load_image(sample.image) if sample.image is not None else load_frames(sample.video, processor.num_frames)
            for sample in held_out
        ]
        if caption:
            return assistant.caption(items, max_length=MAX_ANSWER)
        questions = [sample.question or "" for sample in held_out]
        return assistant.answer(items, questions, max_length=MAX_ANSWER)

    return predict
