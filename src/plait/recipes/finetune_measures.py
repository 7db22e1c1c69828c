"""What a finetuned model is worth: predictions of rows -> one number with an interval, beside the trivial answer.

retrieval: (media, texts) vectors (n, dim) each · classify, vqa, caption: a text per row · ground: a box per row
chat: nats per row, the negative log likelihood of all its answers
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plait.media.image import load_image
from plait.metrics.bootstrap import bootstrap_mean, bootstrap_ratio
from plait.metrics.boxes import box_hits
from plait.metrics.captions import caption_scores
from plait.metrics.retrieval import chance_at_k, hits_at_k
from plait.metrics.vqa import evalai
from plait.types import Sample

Values = tuple[str, Sequence[float]]


def score(task: str, found: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """The metric of a task: `{metric, value, interval}`, the interval by the percentile bootstrap over rows (95 %).

    retrieval: recall at 1, the mean of both directions; classify, vqa: accuracy; caption: CIDEr; ground: share of boxes
    with an IoU of at least 0.5; chat: bits per byte of the answers, an end counted as a byte: low is good, and models
    with other vocabularies can be compared.
    """
    if task == "chat":
        sizes = [sum(map(len, _spoken(sample))) for sample in samples]
        interval = bootstrap_ratio([float(nats) / math.log(2) for nats in found], sizes)
        found = {"value": interval.estimate, "interval": [interval.lower, interval.upper], "about": "low is good"}
        return {"metric": "bits per byte", **found}
    name, values = _VALUES[task](found, samples)
    interval = bootstrap_mean([float(value) for value in values])
    return {"metric": name, "value": interval.estimate, "interval": [interval.lower, interval.upper]}


def trivial(task: str, train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, Any]:
    """What needs no model: chance, the most frequent label, answer or caption of the training rows, their mean box,
    for conversations the frequencies of single bytes."""
    if task == "retrieval":
        same = same_concept(test)
        chance = float(np.mean([chance_at_k(int(row.sum()), len(test), 1) for row in same]))
        return {"metric": "recall@1", "value": chance, "interval": [chance, chance], "about": "chance"}
    if task == "ground":
        box = np.mean([shares(sample) for sample in train], axis=0)
        return {**score(task, [box] * len(test), test), "about": "the mean box"}
    if task == "chat":
        seen = Counter(byte for sample in train for answer in _spoken(sample) for byte in answer)
        total = seen.total() + 256
        nats = [-sum(math.log((seen[b] + 1) / total) for answer in _spoken(s) for b in answer) for s in test]
        return {**score(task, nats, test), "about": "bytes by how often they are met, low is good"}
    said = Counter(word for sample in train for word in _words(task, sample))
    commonest = said.most_common(1)[0][0]
    return {**score(task, [commonest] * len(test), test), "about": f"always {commonest!r:.60}"}


def same_concept(samples: Sequence[Sample]) -> np.ndarray:
    """(n, n) bool: which rows have the same label, or without one the same text."""
    names = np.array([sample.label or text_of(sample) for sample in samples])
    return names[:, None] == names[None]


def text_of(sample: Sample) -> str:
    """The words of a row: its text, else its first caption. Raises ValueError, naming the row, without either."""
    words = sample.text or next(iter(sample.captions or ()), None)
    if not words:
        raise ValueError(f"expected text or captions in row {sample.id!r}, got neither")
    return words


def shares(sample: Sample) -> list[float]:
    """The first box of a row as shares of the width and height of its picture."""
    box = (sample.boxes or [[]])[0]
    if len(box) != 4:
        raise ValueError(f"expected a box x0, y0, x1, y1 in row {sample.id!r}, got {sample.boxes}")
    width, height = load_image(sample.image).size
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


def _spoken(sample: Sample) -> list[bytes]:
    """What the assistant says in a row, each answer with one byte for its end."""
    said = []
    for message in sample.messages or ():
        if message.get("role", message.get("from")) in ("assistant", "gpt"):
            content = message.get("content", message.get("value", ""))
            parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            said.append("".join(parts).encode() + b"\0")
    if not said:
        raise ValueError(f"expected messages with an answer of the assistant in row {sample.id!r}, got none")
    return said


def _words(task: str, sample: Sample) -> Sequence[str]:
    if task == "classify":
        return [sample.label or ""]
    return sample.answers or () if task == "vqa" else sample.captions or [sample.text or ""]


def _recall(found: Any, samples: Sequence[Sample]) -> Values:
    media, texts = (np.asarray(vectors, np.float64) for vectors in found)
    same = same_concept(samples)
    both = hits_at_k(media @ texts.T, same, 1) + hits_at_k(texts @ media.T, same.T, 1).astype(np.float64)
    return "recall@1", (both / 2).tolist()


def _labels(found: Any, samples: Sequence[Sample]) -> Values:
    return "accuracy", [said == sample.label for said, sample in zip(found, samples, strict=True)]


def _answers(found: Any, samples: Sequence[Sample]) -> Values:
    right = [{evalai(answer) for answer in sample.answers or ()} for sample in samples]
    return "accuracy", [evalai(said) in answers for said, answers in zip(found, right, strict=True)]


def _captions(found: Any, samples: Sequence[Sample]) -> Values:
    references = [sample.captions or [sample.text or ""] for sample in samples]
    return "CIDEr", caption_scores(list(found), references).cider


def _boxes(found: Any, samples: Sequence[Sample]) -> Values:
    return "accuracy@0.5", box_hits(np.asarray(found), np.asarray([shares(s) for s in samples])).astype(float).tolist()


_VALUES: dict[str, Callable[[Any, Sequence[Sample]], Values]] = {
    "retrieval": _recall,
    "classify": _labels,
    "vqa": _answers,
    "caption": _captions,
    "ground": _boxes,
}
