"""What the study of the small mPLUG-2 measures, and the baselines beside it.

model, held-out examples -> hits (0 or 1 per example) -> rows of the table; zero-shot figures; the gap of modalities
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.drawn_tasks import KINDS, Example
from plait.inspect.modality_gap import modality_gap
from plait.models.mplug2.alignment import MPlug2AlignedModel
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import MPlug2Classifier, MPlug2ForConditionalGeneration
from plait.nn.attention import eager_attention
from plait.recipes.mplug2_batches import asked, pixels_of
from plait.training.optim import AdamW

BATCH, FEW = 50, 8
PRIOR_EXAMPLES = 3000
Hits = tuple[float, ...]


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
    """What the model writes, greedily, for each example; options as in `_inputs`."""
    assert isinstance(model, MPlug2ForConditionalGeneration)
    texts: list[str] = []
    for inputs in _inputs(processor, examples, single_frame, blank):
        ids = model.generate(**inputs, num_beams=1, min_length=1, max_length=8)
        texts += [processor.decode_text(row) for row in ids]
    return texts


@torch.no_grad()
def chosen(
    model: nn.Module,
    processor: MPlug2Processor,
    examples: Sequence[Example],
    choices: Sequence[tuple[str, ...]],
    *,
    single_frame: bool = False,
    blank: bool = False,
) -> list[str]:
    """The likeliest of each example's choices by the model's own `rank_answers`."""
    assert isinstance(model, MPlug2ForConditionalGeneration)
    size = BATCH if len(set(choices)) == 1 else FEW  # the choices of all questions of a batch are scored for each
    best: list[str] = []
    inputs_of = _inputs(processor, examples, single_frame, blank, size)
    for start, inputs in zip(range(0, len(examples), size), inputs_of, strict=True):
        own = choices[start : start + size]
        answers = list(dict.fromkeys(choice for some in own for choice in some))
        made = processor.answers(answers)
        found = model.rank_answers(answer_ids=made["input_ids"], answer_mask=made["attention_mask"], **inputs)
        for order, some in zip(found.indices.tolist(), own, strict=True):
            best.append(next(answers[i] for i in order if answers[i] in some))
    return best


def _inputs(
    processor: MPlug2Processor, examples: Sequence[Example], single_frame: bool, blank: bool, size: int = BATCH
) -> Iterator[dict[str, Any]]:
    """Batches of pixels and questions; single_frame: one frame of a clip; blank: white pictures for the right ones."""
    rng = np.random.default_rng(0)
    for start in range(0, len(examples), size):
        some = examples[start : start + size]
        if blank:
            some = [replace(example, frames=np.full_like(example.frames, 255)) for example in some]
        yield {**pixels_of(some, processor, rng, single_frame=single_frame), **processor.tokenize(asked(some))}


def same(text: str, example: Example, processor: MPlug2Processor) -> float:
    """1 where the text is the answer, as the tokenizer would write it; a caption may be any of its references."""
    wanted = example.references or (example.answer,)
    return float(text in {processor.decode_text(processor.answers([answer])["input_ids"][0]) for answer in wanted})


def guessed(
    training: Sequence[Example], examples: Sequence[Example], choices: Sequence[Sequence[str]], *, by_question: bool
) -> tuple[float, ...]:
    """Hits of the answer that was most frequent in training among each example's choices.

    by_question: most frequent for the same question, where training had it; a caption may be any of its references.
    """
    seen: dict[str | None, Counter[str]] = defaultdict(Counter)
    for example in training:
        for answer in example.references or (example.answer,):
            seen[example.question][answer] += 1
            seen[None][answer] += 1
    hits = []
    for example, own in zip(examples, choices, strict=True):
        counts = (seen.get(example.question) if by_question else None) or seen[None]
        best = max(own or counts, key=lambda answer: counts[answer])
        hits.append(float(best in (example.references or (example.answer,))))
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


def tf_idf(training: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], steps: int = 300) -> Hits:
    """Hits of logistic regression on tf-idf of words and word pairs, the usual baseline for short texts.

    L2 penalty as of scikit-learn's default (C = 1). Words and pairs that training lacks are left out.
    """
    features = [[_words(text) for text, _ in rows] for rows in (training, test)]
    seen = Counter(feature for own in features[0] for feature in own)
    number = {feature: i for i, feature in enumerate(seen)}
    idf = {feature: 1 + math.log((1 + len(training)) / (1 + count)) for feature, count in seen.items()}
    bags = [_bags([{f: idf[f] for f in own if f in idf} for own in some], number) for some in features]
    y, n = torch.tensor([label for _, label in training]), len(training)
    table = torch.zeros(len(number), int(y.max()) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(_summed(table, bags[0]), y) + table.square().sum() / (2 * n)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = _summed(table, bags[1]).argmax(1).tolist()
    return tuple(float(found == label) for found, (_, label) in zip(said, test, strict=True))


def _words(text: str) -> set[str]:
    words = text.lower().split()
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def _bags(weights: Sequence[Mapping[str, float]], number: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of features, where each text begins, and weights of which each text's have length 1."""
    norms = [math.sqrt(sum(value**2 for value in own.values())) for own in weights]
    starts = torch.tensor([0, *(len(own) for own in weights[:-1])]).cumsum(0)
    ids = torch.tensor([number[feature] for own in weights for feature in own], dtype=torch.long)
    return ids, starts, torch.tensor([v / norm for own, norm in zip(weights, norms, strict=True) for v in own.values()])


def _summed(table: Tensor, bags: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ids, starts, weights = bags
    return nn.functional.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weights)


def line(x: Tensor, labels: Sequence[int], x_test: Tensor, labels_test: Sequence[int], steps: int = 300) -> Hits:
    """Hits of logistic regression on vectors (n, dim), each brought to length 1."""
    x, x_test, y = (nn.functional.normalize(x, dim=1), nn.functional.normalize(x_test, dim=1), torch.tensor(labels))
    layer = nn.Linear(x.shape[1], int(y.max()) + 1)
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
        return tuple((layer(x_test).argmax(1) == torch.tensor(labels_test)).float().tolist())


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
