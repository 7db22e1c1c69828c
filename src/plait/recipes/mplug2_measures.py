"""What the study of the small mPLUG-2 measures, and the baselines beside it.

model, held-out examples -> hits (0 or 1 per example) -> rows of the table; zero-shot figures; the gap of modalities
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.blocks.attention import eager_attention
from plait.data.drawn_tasks import KINDS, Drawings, Example
from plait.inspect.modality_gap import modality_gap
from plait.models.mplug2.alignment import MPlug2AlignedModel
from plait.models.mplug2.generation import MPlug2ForConditionalGeneration
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import MPlug2Classifier
from plait.recipes.mplug2_batches import asked, pixels_of
from plait.training.optim import AdamW

BATCH = 50
PRIOR_EXAMPLES = 3000
HASH_SIZE = 1 << 13


@dataclass(frozen=True)
class Row:
    """One line of the table. hits: one number per example, in the order of the examples; chance: of guessing."""

    task: str
    arm: str
    hits: tuple[float, ...]
    chance: float | None = None

    @property
    def value(self) -> float:
        """Mean of the hits."""
        return float(np.mean(self.hits))


@torch.no_grad()
def written(
    model: nn.Module,
    processor: MPlug2Processor,
    examples: Sequence[Example],
    *,
    single_frame: bool = False,
    blank: bool = False,
) -> list[str]:
    """What the model writes, greedily, for each example; blank: white pictures instead of the right ones."""
    assert isinstance(model, MPlug2ForConditionalGeneration)
    rng = np.random.default_rng(0)
    texts: list[str] = []
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        if blank:
            some = [Example(e.task, np.full_like(e.frames, 255), e.question, e.answer, e.choices) for e in some]
        pixels = pixels_of(some, processor, rng, single_frame=single_frame)
        ids = model.generate(**pixels, **processor.tokenize(asked(some)), num_beams=1, min_length=1, max_length=8)
        texts += [processor.decode_text(row) for row in ids]
    return texts


def same(text: str, example: Example, processor: MPlug2Processor) -> float:
    """1 where the text is the answer, as the tokenizer would write it; a caption may be any of its references."""
    wanted = example.references or (example.answer,)
    return float(text in {processor.decode_text(processor.answers([answer])["input_ids"][0]) for answer in wanted})


def language_only(drawings: Drawings, task: str, examples: Sequence[Example]) -> tuple[float, ...]:
    """Hits of the most frequent training answer to the same question, else of the task's most frequent one."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for example in drawings.examples(task, "train", PRIOR_EXAMPLES, seed=1):
        seen[example.question][example.answer] += 1
        seen[""][example.answer] += 1
    hits = []
    for example in examples:
        counts = seen.get(example.question) or seen[""]
        hits.append(float(counts.most_common(1)[0][0] == example.answer))
    return tuple(hits)


def majority(answers: Sequence[str], training: Sequence[str]) -> tuple[float, ...]:
    """Hits of the most frequent training answer."""
    most = Counter(training).most_common(1)[0][0]
    return tuple(float(answer == most) for answer in answers)


@torch.no_grad()
def classified(
    model: nn.Module, inputs: Sequence[Mapping[str, Tensor]], labels: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """Hits of a classifier over batches."""
    assert isinstance(model, MPlug2Classifier)
    hits: list[float] = []
    for batch, wanted in zip(inputs, labels, strict=True):
        logits = model(**batch).logits
        assert logits is not None
        hits += (logits.argmax(-1) == torch.tensor(wanted)).float().tolist()
    return tuple(hits)


def tf_idf(training: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], steps: int = 300) -> tuple[float, ...]:
    """Hits of logistic regression on tf-idf of words and word pairs (hashed), the usual baseline for short texts."""
    counts = [_hashed([text for text, _ in rows]) for rows in (training, test)]
    share = (counts[0] > 0).float().mean(0)
    idf = (1 / share.clamp_min(1 / len(training))).log() + 1
    x, x_test = (nn.functional.normalize(count * idf, dim=1) for count in counts)
    y = torch.tensor([label for _, label in training])
    layer = nn.Linear(HASH_SIZE, int(y.max()) + 1)
    nn.init.zeros_(layer.weight)
    optimizer = AdamW(layer.parameters(), lr=0.05, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(y), (512,), generator=generator)
        loss = nn.functional.cross_entropy(layer(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return tuple((layer(x_test).argmax(1) == torch.tensor([label for _, label in test])).float().tolist())


def _hashed(texts: Sequence[str]) -> Tensor:
    from zlib import crc32

    counts = torch.zeros(len(texts), HASH_SIZE)
    for row, text in zip(counts, texts, strict=True):
        words = text.lower().split()
        for feature in (*words, *(f"{a} {b}" for a, b in pairwise(words))):
            row[crc32(feature.encode()) % HASH_SIZE] += 1
    return counts


@torch.no_grad()
def vectors(model: nn.Module, encode: str, values: Tensor | Sequence[str], processor: MPlug2Processor) -> Tensor:
    """Unit vectors of pixels (image, video) or texts."""
    assert isinstance(model, MPlug2AlignedModel)
    parts = []
    for start in range(0, len(values), BATCH):
        some = values[start : start + BATCH]
        inputs = {f"pixel_values{'_videos' if encode == 'video' else ''}": some}
        if encode == "text":
            inputs = dict(processor.tokenize(list(some)))
        parts.append(getattr(model, f"get_{encode}_features")(**inputs))
    return torch.cat(parts)


def zero_shot(
    model: nn.Module, processor: MPlug2Processor, examples: Sequence[Example], names: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """Clips or pictures against texts, without training for either: hits by name of the measure.

    examples: one per entry of `names`. name_r1: the nearest of all names is the right one; clip_r1: the reverse; kind:
    the nearest of the kinds' names is right (empty where an example has no kind).
    """
    medium = "video" if len(examples[0].frames) > 1 else "image"
    pixels = next(iter(pixels_of(examples, processor).values()))
    seen = vectors(model, medium, pixels, processor)
    scores = seen @ vectors(model, "text", names, processor).T
    found: dict[str, tuple[float, ...]] = {}
    own = torch.arange(len(names))
    equal = torch.tensor([[a == b for b in names] for a in names])
    found["name_r1"] = tuple(equal[own, scores.argmax(1)].float().tolist())
    found["clip_r1"] = tuple(equal[own, scores.argmax(0)].float().tolist())
    kinds = list(KINDS.values())
    if all(example.answer in kinds for example in examples):
        nearest = (seen @ vectors(model, "text", kinds, processor).T).argmax(1).tolist()
        found["kind"] = tuple(float(kinds[n] == e.answer) for n, e in zip(nearest, examples, strict=True))
    return found


def gap(
    model: nn.Module, processor: MPlug2Processor, examples: Sequence[Example], names: Sequence[str]
) -> dict[str, float]:
    """Distance between the centroids of pictures and names, and how well a line tells the two apart (0.5 = not)."""
    pixels = next(iter(pixels_of(examples, processor).values()))
    both = {
        "image": vectors(model, "image", pixels, processor),
        "text": vectors(model, "text", names, processor),
    }
    measured = modality_gap({name: rows.numpy() for name, rows in both.items()})
    return {"centroid_distance": measured["gap"]["image-text"], "separability": separability(*both.values())}


def separability(first: Tensor, second: Tensor) -> float:
    """Held-out accuracy of a line that tells two sets of vectors (n, dim) apart; every other row trains."""
    x = torch.cat([first, second])
    y = torch.cat([torch.ones(len(first)), -torch.ones(len(second))])
    train = torch.arange(len(x)) % 2 == 0
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    a = x[train]
    weights = torch.linalg.solve(a.T @ a + 1e-3 * torch.eye(a.shape[1]), a.T @ y[train])
    return float(((x[~train] @ weights > 0) == (y[~train] > 0)).float().mean())


@torch.no_grad()
def looked_at(model: nn.Module, processor: MPlug2Processor, example: Example, text: str) -> np.ndarray:
    """Where the decoder's last layer looks while it writes `text`: (frames, grid, grid) shares, mean over heads and
    tokens."""
    assert isinstance(model, MPlug2ForConditionalGeneration)
    inputs: dict[str, Any] = {**pixels_of([example], processor), **processor.tokenize(asked([example]))}
    encoded = model.encode(**inputs)
    states, mask = encoded.states()
    ids = processor.answers([text])["input_ids"]
    shares: list[Tensor] = []
    recording = _recording(shares, states.shape[1])
    model.model.decoder.hidden(ids, model.model.decoder.cross_keys(states), recording, cross_mask=mask)
    grid, frames = model.config.vision_sizes.grid, len(example.frames)
    patches = shares[-1].mean((0, 1, 2))[1 : 1 + frames * grid * grid]
    return patches.view(frames, grid, grid).numpy()


def _recording(shares: list[Tensor], length: int) -> Callable[..., Tensor]:
    """Eager attention that keeps the probabilities of attention over `length` keys."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
        if k.shape[2] == length:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            if key_mask is not None:
                scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
            shares.append(scores.softmax(-1))
        return eager_attention(q, k, v, bias, key_mask)

    return attend


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain numbers."""
    return [{"task": r.task, "arm": r.arm, "value": r.value, "n": len(r.hits), "chance": r.chance} for r in rows]
