"""The table of `plait study owl`: results.json of every stage and seed -> summary -> text.

What the small mPLUG-Owl study measures: answers with and without what they are about, and plain text.

model, held-out examples -> 1 or 0 per question and condition | nats per text | 1 or 0 per sentence
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl.processor import MPlugOwlProcessor
from plait.report.tables import format_table
from plait.types import Sample
from plait_studies.drawings import Example
from plait_studies.owl.training import Sights, batch_of, is_clip
from plait_studies.owl2.measures import perplexity
from plait_studies.owl2.report import resampled

CONDITIONS = ("shown", "removed", "shuffled", "one frame")


def summarise(out: Path, seen: Sights, count: int) -> dict[str, Any]:
    """Means over seeds, with bootstrap intervals over questions, and what giving the commonest answer scores."""
    rows = []
    for stage in ("stage1", "stage2"):
        files = sorted(out.glob(f"seed-*/{stage}/results.json"))
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        vqa = {}
        for condition in CONDITIONS:
            hits = {task: hits_of(found, task, condition) for task in seen.tasks if condition in found[0]["vqa"][task]}
            if hits:
                tasks = {task: resampled(values) for task, values in hits.items()}
                vqa[condition] = {"tasks": tasks, **resampled(np.concatenate(list(hits.values())))}
        gain = [np.subtract(*(hits_of(found, task, name) for name in ("shown", "shuffled"))) for task in seen.tasks]
        texts = {k: float(np.mean([perplexity(one["text"][k]) for one in found])) for k in ("snippets", "news")}
        feeling = resampled(np.mean([one["text"]["feeling"] for one in found], axis=0))
        rows.append({"stage": stage, "seeds": len(found), "vqa": vqa, "perplexity": texts, "feeling": feeling,
                     "minus_shuffled": resampled(np.concatenate(gain))})  # fmt: skip
    answers = {task: Counter(e.answer for e in seen.examples(task, "test", count)) for task in seen.tasks}
    questions = {task: counts.total() for task, counts in answers.items()}
    most = {task: counts.most_common(1)[0][1] for task, counts in answers.items()}
    return {
        "rows": rows,
        "questions": questions,
        "majority": {task: most[task] / questions[task] for task in answers}
        | {"all": sum(most.values()) / sum(questions.values())},
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """Accuracy in percent per stage, condition and task, then text. Perplexity after stage 1 is that of the source."""
    tasks = list(summary["questions"])
    lines = []
    for row in summary["rows"]:
        feeling = row["feeling"]
        text = [f"{row['perplexity'][kind]:.1f}" for kind in ("snippets", "news")] + [_percent(feeling)]
        for condition, found in row["vqa"].items():
            shares = [f"{100 * found['tasks'][task]['value']:.1f}" if task in found["tasks"] else "" for task in tasks]
            overall = _percent(found) if len(found["tasks"]) == len(tasks) else ""
            lines.append([row["stage"], condition, *shares, overall, *(text if condition == "shown" else [""] * 3)])
    guess = [f"{100 * summary['majority'][task]:.1f}" for task in (*tasks, "all")]
    lines.append(["", "commonest answer", *guess, "", "", ""])
    lines.append(["", "questions", *(str(summary["questions"][task]) for task in tasks), "", "", "", ""])
    head = ["after", "picture or clip", *tasks, "all (95 %)", "ppl snippets", "ppl news", "feeling (95 %)"]
    gains = [(row["stage"], *(100 * x for x in (row["minus_shuffled"]["value"], *row["minus_shuffled"]["interval"])))
             for row in summary["rows"]]  # fmt: skip
    below = [f"{stage}: shown minus shuffled {value:+.1f} points ({low:+.1f} to {high:+.1f})"
             for stage, value, low, high in gains]  # fmt: skip
    return "\n".join([format_table(head, lines), *below])


def hits_of(found: Sequence[Mapping[str, Any]], task: str, condition: str) -> np.ndarray:
    """Share of seeds that are right, for every question."""
    return np.mean([one["vqa"][task][condition] for one in found], axis=0)


def _percent(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


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
