"""What the small mPLUG-Owl2 study measures on drawings of a style, and on sentences, that training never showed.

model, held-out examples -> 1 or 0 per question, with the picture, without it, with another's | nats per text
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plait.data.drawn_tasks import Drawings, Example
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.recipes.mplug_owl2_batches import TASKS, about_text, picture_batch
from plait.types import Sample

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
