"""mPLUG-2 on one's own rows: `JOBS`, task -> function (Request) -> Job.

The published stages without queues and teacher; predictions by `Assistant`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from plait.assistant import Assistant
from plait.data.reader import Reader, Source
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.auto import load_processor
from plait.models.mplug2.model import MPlug2PreTrainedModel
from plait.models.mplug2.weights import from_directory
from plait.recipes.finetune import Job, Request, in_evaluation, text_of
from plait.recipes.mplug2 import Tuning, answering, captioning, classification, grounding, retrieval
from plait.training.stages import Recipe
from plait.types import Sample

# The published rate; small matrices that begin at zero need more.
FULL_LR, LORA_LR = 2e-5, 5e-4
BATCH = 8


def retrieval_job(request: Request) -> Job:
    """Contrast and matching without a queue, which some hundred rows would not fill; recall by the contrast alone."""
    init, data, how = _asked(request)
    recipe = retrieval(init, data, queue_size=0, how=how)
    return _job(request, recipe, lambda model, processor, rows: _vectors(model, processor, request.medium, rows))


def caption(request: Request) -> Job:
    """Captions without a prompt, scored by CIDEr: the published one speaks of videos only."""
    init, data, how = _asked(request)
    return _job(request, captioning(init, data, prompt="", how=how), _said("caption"))


def vqa(request: Request) -> Job:
    """Free answers, without a teacher; rows with `question` and `answers`."""
    init, data, how = _asked(request)
    return _job(request, answering(init, data, distill=False, how=how), _said("answer"))


def ground(request: Request) -> Job:
    """Boxes of phrases, scored as shares of width and height."""

    def boxes(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[list[float]]:
        pictures = [load_image(sample.image) for sample in rows]
        phrases = [sample.question or sample.text or "" for sample in rows]
        found = Assistant((model, processor), batch_size=BATCH).ground(pictures, phrases)
        sizes = [picture.size for picture in pictures]
        return [[b[0] / w, b[1] / h, b[2] / w, b[3] / h] for b, (w, h) in zip(found, sizes, strict=True)]

    init, data, how = _asked(request)
    return _job(request, grounding(init, data, how), boxes)


def classify(request: Request) -> Job:
    """A head over one medium; before it, what the model as it came finds most likely among the labels."""
    init, data, how = _asked(request)
    recipe = classification(init, data, medium=request.medium, how=how)
    labels = sorted({sample.label or "" for sample in request.train})

    def classes(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
        assistant = Assistant((model, processor), batch_size=BATCH)
        return [found[0].text for found in assistant.classify(_items(rows, processor.num_frames))]

    def zero_shot(_: nn.Module, rows: Sequence[Sample]) -> list[str] | None:
        whole, processor = from_directory(request.model), load_processor(request.model)
        try:
            assistant = Assistant((whole, processor), batch_size=BATCH)
            found = assistant.classify(_items(rows, processor.num_frames), labels)
        except ValueError:
            # a class that has its own labels, or looks at other media, can do nothing here yet
            return None
        return [one[0].text for one in found]

    return replace(_job(request, recipe, classes), zero_shot=zero_shot)


JOBS: dict[str, Callable[[Request], Job]] = {
    "retrieval": retrieval_job,
    "classify": classify,
    "caption": caption,
    "vqa": vqa,
    "ground": ground,
}


def _asked(request: Request) -> tuple[str, str, Tuning]:
    """init, data and how of the recipes above. A LoRA has no encoder of its own rate, full training a tenth."""
    lr = request.lr or (LORA_LR if request.lora else FULL_LR)
    how = Tuning(
        **asdict(request.reading), steps=request.steps, epochs=request.epochs, batch_size=request.batch_size, lr=lr,
        vision_lr=lr if request.lora else lr / 10,
    )  # fmt: skip
    return str(request.model), request.data, how


def _job(request: Request, recipe: Recipe, predict: Callable[[nn.Module, Any, Sequence[Sample]], Any]) -> Job:
    """A published stage over `request.train` alone: the recipe's own rows may be of other media as well."""
    processor, published = load_processor(request.model), recipe.stages[0]

    def batches() -> Source:
        reader: Any = published.batches()
        return Reader(request.train, reader.collate, reader.decode, reading=request.reading)

    def predicted(model: nn.Module, rows: Sequence[Sample]) -> Any:
        return predict(model, processor, rows)

    # Short runs: a floor in proportion and a tenth of warm-up, not 200 steps.
    stage = replace(published, batches=batches, floor=published.peak_lr / 20, warmup=0.1)
    return Job(recipe.model_builder, stage, in_evaluation(predicted), recipe.save, whole=_heads)


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules of a task's class that are no part of the network, which start fresh."""
    assert isinstance(model, MPlug2PreTrainedModel)
    return tuple(type(model).heads(model.config))


def _said(task: str) -> Callable[[nn.Module, Any, Sequence[Sample]], list[str]]:
    """A function (model, processor, rows) -> texts, by `Assistant.caption` or `Assistant.answer`."""

    def predict(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
        assistant = Assistant((model, processor), batch_size=BATCH)
        items = _items(rows, processor.num_frames)
        if task == "caption":
            return assistant.caption(items)
        return assistant.answer(items, [sample.question or "" for sample in rows])

    return predict


def _items(rows: Sequence[Sample], num_frames: int) -> list[Any]:
    """Pictures, frames or texts of rows, as `Assistant` takes them."""
    return [
        load_image(sample.image)
        if sample.image is not None
        else load_frames(sample.video, num_frames)
        if sample.video is not None
        else sample
        for sample in rows
    ]


def _vectors(model: Any, processor: Any, medium: str, rows: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (rows, dim) of media, and of the words of the same rows, as numpy arrays."""
    media, texts = [], []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        items = _items(part, processor.num_frames)
        made = torch.stack([processor.pixels(x) if medium == "image" else processor.clip(x) for x in items])
        given = {"pixel_values" if medium == "image" else "pixel_values_videos": made.to(model.device)}
        media.append(getattr(model, f"get_{medium}_features")(**given).float().cpu().numpy())
        words = processor.tokenize([text_of(sample) for sample in part], truncation=True)
        found = model.get_text_features(**{name: value.to(model.device) for name, value in words.items()})
        texts.append(found.float().cpu().numpy())
    return np.concatenate(media), np.concatenate(texts)
