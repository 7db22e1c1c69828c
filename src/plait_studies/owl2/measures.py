"""What the small mPLUG-Owl2 study measures on drawings of a style, and on sentences, that training never showed.

model, held-out examples -> 1 or 0 per question, with the picture, without it, with another's | nats per text

Where the decoder looks, layer by layer: on the picture, on the words before, on the first position.

held-out questions -> eager attention weights -> shares per layer and maps -> a picture (mPLUG-Owl2, section 4.4)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.types import Sample
from plait_studies.drawings import Drawings, Example
from plait_studies.owl2.training import TASKS, about_text, picture_batch

BATCH = 25
CONDITIONS = ("image", "removed", "shuffled")
CHOICE_TASKS = tuple(task for task in TASKS if task != "name")  # a name may be anything
FEELINGS = ("negative", "positive")


def autocast(model: MPlugOwl2ForConditionalGeneration, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`, on the model's device."""
    return torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)


@torch.no_grad()
def answered(
    model: MPlugOwl2ForConditionalGeneration, processor: MPlugOwl2Processor, examples: Sequence[Example], condition: str
) -> list[int]:
    """1 where greedy decoding writes exactly the answer and ends, for each example.

    Greedy decoding does so exactly where every position of the answer and its end prefers the right piece, given the
    right pieces before it: one forward pass tells. condition: `image`, `removed` (the question alone) or `shuffled`
    (the picture of another example).
    """
    if condition == "shuffled":
        frames = [example.frames for example in examples]
        examples = [replace(e, frames=other) for e, other in zip(examples, [*frames[1:], frames[0]], strict=True)]
    hits: list[int] = []
    for start in range(0, len(examples), BATCH):
        batch = picture_batch(processor, examples[start : start + BATCH], with_image=condition != "removed")
        logits, labels = _shifted(model, batch)
        right = (logits.argmax(-1) == labels) | (labels == -100)
        hits += right.all(1).int().tolist()
    return hits


@torch.no_grad()
def ranked(
    model: MPlugOwl2ForConditionalGeneration, processor: MPlugOwl2Processor, examples: Sequence[Example]
) -> list[int]:
    """1 where the right one of an example's choices is the likeliest answer, its end included.

    Fairer than `answered` to a model that never learnt to write the bare answer. Raises ValueError without choices.
    """
    hits: list[int] = []
    for example in examples:
        if example.choices is None:
            raise ValueError(f"expected questions with choices, got {example.task!r}")
        batch = picture_batch(processor, [replace(example, answer=choice) for choice in example.choices])
        hits.append(int(example.choices[int(_losses(model, batch)[0].argmin())] == example.answer))
    return hits


@torch.no_grad()
def nats(
    model: MPlugOwl2ForConditionalGeneration, processor: MPlugOwl2Processor, texts: Sequence[str]
) -> list[tuple[float, int]]:
    """Negative log likelihood and number of predicted pieces of each text: its perplexity is exp(sum / sum)."""
    found = []
    for start in range(0, len(texts), BATCH):
        rows = [processor.tokenizer(text)["input_ids"] for text in texts[start : start + BATCH]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        loss, counts = _losses(model, {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask > 0, -100)})
        found += list(zip(loss.tolist(), counts.tolist(), strict=True))
    return found


@torch.no_grad()
def felt(
    model: MPlugOwl2ForConditionalGeneration, processor: MPlugOwl2Processor, samples: Sequence[Sample]
) -> list[int]:
    """1 where the right feeling is the likelier answer about a snippet."""
    hits: list[int] = []
    for start in range(0, len(samples), BATCH):
        chosen = samples[start : start + BATCH]
        scores = []
        for feeling in FEELINGS:
            turns = [about_text(replace(sample, label=feeling)) for sample in chosen]
            scores.append(_losses(model, dict(processor.supervised(turns)))[0])
        best = torch.stack(scores).argmin(0).tolist()
        hits += [int(FEELINGS[number] == sample.label) for number, sample in zip(best, chosen, strict=True)]
    return hits


def _shifted(model: MPlugOwl2ForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (batch, seq - 1, vocabulary) in float32 and the labels (batch, seq - 1) that they predict."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = batch.pop("labels")
    return model(**batch, use_cache=False).logits[:, :-1].float(), labels[:, 1:]


def _losses(model: MPlugOwl2ForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits, labels = _shifted(model, batch)
    loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return loss.sum(1), (labels != -100).sum(1)


def measured(
    model: MPlugOwl2ForConditionalGeneration,
    processor: MPlugOwl2Processor,
    drawings: Drawings,
    sentences: Sequence[Sample],
    news: Sequence[str],
    count: int,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Everything about one model: {"vqa": {task: {condition: hits}}, "ranked": {task: hits}, "text": {...}}.

    count: questions per task.
    """
    model.eval()
    vqa: dict[str, dict[str, list[int]]] = {}
    chosen: dict[str, list[int]] = {}
    with autocast(model, dtype):
        for task in TASKS:
            examples = drawings.examples(task, "test", count)
            vqa[task] = {condition: answered(model, processor, examples, condition) for condition in CONDITIONS}
            if task in CHOICE_TASKS:
                chosen[task] = ranked(model, processor, examples)
        text = {
            "snippets": nats(model, processor, [sample.text or "" for sample in sentences]),
            "news": nats(model, processor, news),
            "feeling": felt(model, processor, sentences),
        }
    return {"vqa": vqa, "ranked": chosen, "text": text}


def majority(drawings: Drawings, count: int) -> dict[str, float]:
    """Accuracy of always giving the most frequent answer of a task's test questions."""
    found = {}
    for task in TASKS:
        answers = Counter(example.answer for example in drawings.examples(task, "test", count))
        found[task] = answers.most_common(1)[0][1] / count
    return found


def perplexity(found: Sequence[Sequence[float]]) -> float:
    """exp(nats per piece) over texts."""
    sums = np.asarray(found, dtype=np.float64).sum(0)
    return float(np.exp(sums[0] / sums[1]))


TASK, COUNT = "is_there", 24
SHOWN = 4
COLOURS = ("#0b7a75", "#d1495b", "#5b5f97", "#b0741d")
INK, PALE, VISUAL = "#22252b", "#d9dce2", "#0b7a75"
CELL = 5


@torch.no_grad()
def attention_of(
    model: MPlugOwl2ForConditionalGeneration, processor: MPlugOwl2Processor, examples: Sequence[Example]
) -> dict[str, Any]:
    """Mean attention over heads and questions.

    Returns {"visual", "text", "first"}: per layer the share of its attention that the position which predicts the
    answer gives to the picture's positions, to words, and to the sequence's first position (where attention rests
    that needs nothing); {"maps"}: (layers, seq, seq) of the first question, {"is_image"}: (seq,) its picture.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    shares, first_maps, first_image = [], None, None
    try:
        for example in examples:
            batch = {name: value.to(model.device) for name, value in picture_batch(processor, [example]).items()}
            asked = int((batch["labels"][0] != -100).long().argmax())  # ids before the answer
            ids = batch["input_ids"][:, :asked]
            found = model(ids, pixel_values=batch["pixel_values"], use_cache=False, output_attentions=True).attentions
            assert found is not None
            maps = torch.stack([layer[0].float().mean(0) for layer in found]).cpu()  # (layers, seq, seq)
            is_image = torch.eq(ids[0], model.config.image_token).cpu()
            shares.append(shares_of(maps[:, -1], is_image))
            if first_maps is None:
                first_maps, first_image = maps, is_image
    finally:
        model.set_attn_implementation(before)
    assert first_maps is not None and first_image is not None
    mean = torch.stack(shares).mean(0)
    names = ("visual", "text", "first")
    return {name: mean[i].tolist() for i, name in enumerate(names)} | {
        "maps": first_maps.numpy(),
        "is_image": first_image.tolist(),
    }


def shares_of(weights: Tensor, is_image: Tensor) -> Tensor:
    """weights: (layers, keys) of one query; is_image: (keys,) -> (3, layers): on the picture, on words, on key 0."""
    first = torch.zeros_like(is_image)
    first[0] = True
    kinds = (is_image & ~first, ~is_image & ~first, first)
    return torch.stack([weights[:, kind].sum(1) for kind in kinds])


def draw_attention(found: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Arm -> `attention_of`: left the share on the picture per layer, right maps of some layers. Writes a PNG."""
    arms = list(found)
    layers, length = np.asarray(found[arms[0]]["maps"]).shape[:2]
    chosen = [round(i * (layers - 1) / (SHOWN - 1)) for i in range(SHOWN)] if layers > SHOWN else list(range(layers))
    side, gap, left, top = max(CELL * length, 150), 16, 560, 60
    width, height = left + len(chosen) * (side + gap) + gap, top + len(arms) * (side + 44) + 30
    page = Image.new("RGB", (width, max(height, 430)), "white")
    pen = ImageDraw.Draw(page)
    _curves(pen, found, (60, top, left - 60, max(height, 430) - 90))
    for row, arm in enumerate(arms):
        for column, layer in enumerate(chosen):
            corner = (left + column * (side + gap), top + row * (side + 44))
            pen.text((corner[0], corner[1] - 20), f"{arm}: layer {layer + 1}", INK, _font(13))
            page.paste(_map(found[arm]["maps"][layer], side), corner)
            _marks(pen, corner, side, found[arm]["is_image"])
    note = "rows ask, columns answer; bars: the picture's positions; the darker, the more attention (square root)"
    pen.text((left, page.height - 26), note, INK, _font(12))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
    return path


def _curves(pen: ImageDraw.ImageDraw, found: Mapping[str, Mapping[str, Any]], box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    most = max(max(one["visual"]) for one in found.values())
    highest = max(0.05, np.ceil(20 * most) / 20)
    pen.text((x0 - 40, y0 - 42), "share of the answer's attention on the picture", INK, _font(15))
    for tick in np.linspace(0, highest, 6):
        y = y1 - (y1 - y0) * tick / highest
        pen.line((x0, y, x1, y), PALE)
        pen.text((x0 - 36, y - 7), f"{100 * tick:.0f} %", INK, _font(12))
    for colour, (arm, one) in zip(COLOURS, found.items(), strict=False):
        values = one["visual"]
        step = (x1 - x0) / max(1, len(values) - 1)
        points = [(x0 + i * step, y1 - (y1 - y0) * value / highest) for i, value in enumerate(values)]
        pen.line(points, colour, 3, joint="curve")
        place = list(found).index(arm)
        pen.line((x0 + 150 * place, y1 + 50, x0 + 150 * place + 24, y1 + 50), colour, 4)
        pen.text((x0 + 150 * place + 30, y1 + 42), arm, INK, _font(13))
    count = len(next(iter(found.values()))["visual"])
    for layer in sorted({1, count, *range(5, count, 5)}):
        x = x0 + (x1 - x0) * (layer - 1) / max(1, count - 1)
        pen.text((x - 5, y1 + 6), str(layer), INK, _font(12))
    pen.text((x0, y1 + 22), "layer", INK, _font(12))


def _map(weights: np.ndarray, side: int) -> Image.Image:
    """(seq, seq) weights -> an image, white for 0, the square root darker."""
    strength = np.sqrt(np.asarray(weights, dtype=np.float32).clip(0, 1))[..., None]
    dark, white = np.array([13, 59, 102], np.float32), np.float32(255)
    pixels = (white * (1 - strength) + dark * strength).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _marks(pen: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, is_image: Sequence[bool]) -> None:
    (x, y), cell = corner, side / len(is_image)
    pen.rectangle((x, y, x + side, y + side), outline=PALE)
    places = [i for i, held in enumerate(is_image) if held]
    start, end = cell * places[0], cell * (places[-1] + 1)
    pen.rectangle((x + start, y - 4, x + end, y - 1), VISUAL)
    pen.rectangle((x - 4, y + start, x - 1, y + end), VISUAL)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
