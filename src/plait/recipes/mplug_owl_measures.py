"""What the small mPLUG-Owl study measures: answers with and without what they are about, and plain text.

model, held-out examples -> 1 or 0 per question and condition | nats per text | 1 or 0 per sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plait.data.drawn_tasks import Example
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.recipes.mplug_owl_sights import is_clip
from plait.recipes.mplug_owl_small import batch_of
from plait.types import Sample

BATCH = 20
FEELINGS = ("negative", "positive")


def asked(
    model: MPlugOwlForConditionalGeneration, processor: MPlugOwlProcessor, examples: Sequence[Example]
) -> dict[str, list[int]]:
    """Condition -> 1 where the answer is right.

    `shown` as it is; `removed`: the question alone; `shuffled`: the picture or clip of the next example; for clips
    also `one frame`: their second frame, over and over.
    """
    frames = [example.frames for example in examples]
    conditions = {"shown": frames, "shuffled": [*frames[1:], frames[0]]}
    if is_clip(examples[0]):
        conditions["one frame"] = [np.repeat(clip[1:2], len(clip), axis=0) for clip in frames]
    found = {
        name: answered(model, processor, [replace(e, frames=given) for e, given in zip(examples, pages, strict=True)])
        for name, pages in conditions.items()
    }
    return found | {"removed": _unseen(model, processor, examples)}


def answered(
    model: MPlugOwlForConditionalGeneration,
    processor: MPlugOwlProcessor,
    examples: Sequence[Example],
    *,
    shown: bool = True,
) -> list[int]:
    """1 where greedy decoding writes exactly the answer and ends, for each example.

    One forward pass tells: every position of the answer prefers the right piece, given the right ones before it.
    """
    hits: list[int] = []
    for start in range(0, len(examples), BATCH):
        logits, labels = _answers(model, batch_of(processor, examples[start : start + BATCH], shown=shown))
        hits += ((logits.argmax(-1) == labels) | (labels == -100)).all(1).int().tolist()
    return hits


def _unseen(
    model: MPlugOwlForConditionalGeneration, processor: MPlugOwlProcessor, examples: Sequence[Example]
) -> list[int]:
    """As `answered` without pictures, where every pair of question and answer needs asking only once."""
    once = {(example.question, example.answer): example for example in examples}
    hits = dict(zip(once, answered(model, processor, list(once.values()), shown=False), strict=True))
    return [hits[example.question, example.answer] for example in examples]


def felt(model: MPlugOwlForConditionalGeneration, processor: MPlugOwlProcessor, samples: Sequence[Sample]) -> list[int]:
    """1 where the right feeling is the likelier answer about a snippet."""
    hits: list[int] = []
    for start in range(0, len(samples), BATCH):
        chosen, scores = samples[start : start + BATCH], []
        for feeling in FEELINGS:
            logits, labels = _answers(model, batch_of(processor, (), [replace(one, label=feeling) for one in chosen]))
            scores.append(F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100).sum(1))
        best = torch.stack(scores).argmin(0).tolist()
        hits += [int(FEELINGS[i] == sample.label) for i, sample in zip(best, chosen, strict=True)]
    return hits


def nats(
    model: MPlugOwlForConditionalGeneration, processor: MPlugOwlProcessor, texts: Sequence[str]
) -> list[tuple[float, int]]:
    """Negative log likelihood and number of predicted pieces of each text: its perplexity is exp(sum / sum)."""
    found: list[tuple[float, int]] = []
    for start in range(0, len(texts), BATCH):
        rows = [torch.tensor(processor.tokenizer(text)["input_ids"]) for text in texts[start : start + BATCH]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        logits, labels = _answers(model, batch)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        found += list(zip(loss.sum(1).tolist(), (labels != -100).sum(1).tolist(), strict=True))
    return found


def _answers(model: MPlugOwlForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (batch, places, vocabulary) and labels (batch, places), where a row of the batch has something to say."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    places = (labels != -100).any(dim=0).nonzero().flatten()
    return model(**batch, logits_to_keep=places, use_cache=False).logits.float(), labels[:, places]
