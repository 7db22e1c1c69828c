"""Arms of the small mPLUG-Owl2 study: a name says what is routed, what trains, on what, and how large pictures are.

"shared 96 px 16 queries image data tower trains" -> Arm

Batches of the small mPLUG-Owl2 study: questions about drawings, questions about sentences, pictures with names.

drawn examples | snippets -> conversations -> processor.supervised -> augmented pixels, ids, labels on the answers

A small mPLUG-Owl2 out of a small language model: what the study trains, each stage a `Recipe`.

language model -> upcycled, fresh tower -> warm-up (pictures towards embeddings of their names) -> tuning (questions)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.data.pairs import augment
from plait.errors import UsageError
from plait.models.mplug_owl2.config import ADAPTIVE, AbstractorConfig, VisionConfig
from plait.models.mplug_owl2.conversation import IMAGE
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.models.mplug_owl2.upcycle import upcycle
from plait.models.mplug_owl2.weights import resized
from plait.recipes.mplug_owl2 import answer_logits, save
from plait.training.stages import Recipe, Stage
from plait.types import Sample
from plait.weights.files import read_checkpoint
from plait_studies.build.stamps import movie_snippets
from plait_studies.drawings import Drawings, Example

SIDE, PATCH, QUERIES = 64, 8, 8
PARTS = {"both": (0, 0, 0, 0, 1), "image": (0,), "text": (1,)}
"""Data -> what the steps of a turn show: 0 drawings, 1 sentences."""


@dataclass(frozen=True)
class Arm:
    """One model of the study. routed: parts of the decoder with a way each; trains: patterns beside the abstractor.

    trains_vision: the tower too; image_size, num_queries: of the resized warm start; data: a key of `PARTS`.
    """

    routed: tuple[str, ...] = ADAPTIVE
    trains: tuple[str, ...] = (r"re:\.visual\.",)
    trains_vision: bool = False
    image_size: int = SIDE
    num_queries: int = QUERIES
    data: str = "both"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Parameter patterns for `Stage.trainable`."""
        return ("model.abstractor.*", *(("model.vision.*",) if self.trains_vision else ()), *self.trains)


DECODERS = {
    "adaptive all ways": Arm(trains=(r"re:\.(text|visual)\.",)),
    "adaptive": Arm(),
    "shared": Arm(routed=(), trains=(r"re:decoder\.layers\.\d+\.(attn_norm|mlp_norm|attn\.[kv]_proj)\.",)),
    "abstractor only": Arm(routed=(), trains=()),
}
"""What an arm's name begins with. `adaptive` and `shared` train equally many weights, `adaptive all ways` the norms,
keys and values of text as well."""

MAIN = ("adaptive", "shared", "abstractor only")
ALL = (
    "adaptive", "adaptive all ways", "shared", "abstractor only", "adaptive tower trains", "shared tower trains",
    "adaptive image data", "shared image data", "shared text data", "adaptive 48 px", "adaptive 96 px",
    "adaptive 4 queries", "adaptive 16 queries",
)  # fmt: skip

_SWITCH = re.compile(
    r" (?:(?P<image_size>\d+) px|(?P<num_queries>\d+) queries|(?P<data>\w+) data|(?P<tower>tower trains))"
)


def arm_of(name: str) -> Arm:
    """The arm of a name: a key of `DECODERS`, then in any order `N px`, `N queries`, `image data` or `text data`,
    `tower trains`. Raises UsageError for other words, for pictures that patches do not fill, for data that reach
    nothing that trains."""
    begin = next((key for key in DECODERS if f"{name} ".startswith(f"{key} ")), None)
    if begin is None:
        raise UsageError(f"expected an arm that begins with {', '.join(DECODERS)}, got {name!r}")
    arm, rest = DECODERS[begin], name.removeprefix(begin)
    while rest:
        found = _SWITCH.match(rest)
        if found is None:
            raise UsageError(
                f"expected N px, N queries, image data, text data or tower trains in arm {name!r}, got {rest.strip()!r}"
            )
        key, value = next((key, value) for key, value in found.groupdict().items() if value)
        arm = replace(arm, **_change(key, value))
        rest = rest[found.end() :]
    if arm.image_size % PATCH or not arm.image_size or not arm.num_queries:
        raise UsageError(f"expected a multiple of {PATCH} px and some queries, got arm {name!r}")
    if arm.data not in PARTS:
        raise UsageError(f"expected data among {', '.join(PARTS)}, got {arm.data!r} in arm {name!r}")
    if arm.data == "text" and begin in ("adaptive", "abstractor only"):
        raise UsageError(f"expected data with images where only images train, got arm {name!r}")
    return arm


def _change(key: str, value: str) -> dict[str, object]:
    if key == "tower":
        return {"trains_vision": True}
    return {key: value if key == "data" else int(value)}


TASKS = ("name", "kind", "is_kind", "is_there", "count")
"""Questions about a drawing, and about scenes of several."""

SCENES = ("is_there", "count")
Turn = list[dict[str, str]]


def asked(question: str, answer: str, *, with_image: bool = True) -> Turn:
    """One question and its answer, as `MPlugOwl2Processor.supervised` reads them."""
    return [{"from": "human", "value": IMAGE * with_image + question}, {"from": "gpt", "value": answer}]


def about_text(sample: Sample) -> Turn:
    """What a snippet feels."""
    return asked(f'"{sample.text}" Is this review positive or negative?', sample.label or "", with_image=False)


class Mixture:
    """A step asks about drawings or about sentences, never both: neighbours of one modality, as published.

    drawings, snippets: where examples come from; processor: of the model; data: a key of `PARTS`; strength: of
    augmentation, 0 to 1.
    """

    def __init__(
        self,
        drawings: Drawings,
        snippets: Sequence[Sample],
        processor: MPlugOwl2Processor,
        data: str = "both",
        strength: float = 0.5,
        tasks: Sequence[str] = TASKS,
    ) -> None:
        if data not in PARTS:
            raise ValueError(f"expected data among {', '.join(PARTS)}, got {data!r}")
        self.drawings, self.snippets, self.processor = drawings, snippets, processor
        self.cycle, self.strength, self.tasks = PARTS[data], strength, tuple(tasks)

    def __len__(self) -> int:
        return len(self.drawings.numbers("train")) + len(self.snippets)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """0 for every row of a step about drawings, 1 for sentences; the examples come from the step's generator."""
        turn, place = divmod(step, len(self.cycle))
        order = np.random.default_rng((seed, turn)).permutation(len(self.cycle))
        return [self.cycle[order[place]]] * batch_size

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> input_ids, attention_mask, labels (batch, seq), and pixel_values (batch, 3, side, side) of drawings."""
        if rows[0]:
            chosen = [self.snippets[int(rng.integers(len(self.snippets)))] for _ in rows]
            return dict(self.processor.supervised([about_text(sample) for sample in chosen]))
        examples = [self.drawings.example(self.tasks[rng.integers(len(self.tasks))], "train", rng) for _ in rows]
        return picture_batch(self.processor, examples, rng, self.strength)

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked about, for messages."""
        return [("drawings", "sentences")[row] for row in rows]


def picture_batch(
    processor: MPlugOwl2Processor,
    examples: Sequence[Example],
    rng: np.random.Generator | None = None,
    strength: float = 0.0,
    *,
    with_image: bool = True,
) -> dict[str, Tensor]:
    """Supervised conversations about stills; with_image=False leaves pictures and placeholders out."""
    turns = [asked(e.question, e.answer, with_image=with_image) for e in examples]
    pictures = [_picture(e) for e in examples] if with_image else None
    batch = dict(processor.supervised(turns, pictures))
    if with_image and rng is not None and strength:
        scenes = torch.tensor([e.task in SCENES for e in examples])
        batch["pixel_values"] = _augmented(processor, examples, scenes, rng, strength)
    return batch


def _picture(example: Example) -> Any:
    from PIL import Image

    return Image.fromarray(example.frames[0])


def _augmented(
    processor: MPlugOwl2Processor,
    examples: Sequence[Example],
    scenes: Tensor,
    rng: np.random.Generator,
    strength: float,
) -> Tensor:
    pixels = torch.from_numpy(np.stack([e.frames[0] for e in examples])).permute(0, 3, 1, 2).float().div(255)
    for chosen, amount in ((~scenes, strength), (scenes, 0.3 * strength)):
        if chosen.any():
            pixels[chosen] = augment(pixels[chosen], amount, rng)
    image = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
    return (pixels - mean) / std


class NamedPictures:
    """Single drawings with the number of their name: what the fresh tower begins with.

    Every step shows drawings of different things as far as there are enough.
    """

    def __init__(self, drawings: Drawings, processor: MPlugOwl2Processor, strength: float = 0.7) -> None:
        self.drawings, self.strength = drawings, strength
        image = processor.image_processor
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
        self.numbers = drawings.numbers("train")
        self.names_of_things = names_of(drawings)
        place = {name: i for i, name in enumerate(self.names_of_things)}
        self.labels = {number: place[drawings.rows[number].text or ""] for number in self.numbers}

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Numbers of drawings, none twice in a batch that is smaller than the data."""
        epoch, place = divmod(step * batch_size, len(self.numbers))
        order = [
            int(i) for turn in (epoch, epoch + 1) for i in np.random.default_rng((seed, turn)).permutation(self.numbers)
        ]
        return order[place : place + batch_size]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> pixel_values (batch, 3, side, side), labels (batch,) numbers of names."""
        frames = np.stack([np.asarray(self.drawings.pictures[row]) for row in rows])
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255)
        pixels = augment(pixels, self.strength, rng) if self.strength else pixels
        labels = torch.tensor([self.labels[row] for row in rows])
        return {"pixel_values": (pixels - self.mean) / self.std, "labels": labels}

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of the drawings."""
        return [self.drawings.rows[row].id for row in rows]


def names_of(drawings: Drawings) -> list[str]:
    """Every name once, in order."""
    return sorted({row.text or "" for row in drawings.rows})


VISUAL = ("model.vision.", "model.abstractor.")
SHARPNESS = 20.0


@cache
def drawings(size: int = SIDE) -> Drawings:
    """The shipped drawings at a size in pixels."""
    return Drawings([s for s in read_manifest(cached_mini()) if s.image is not None], size, 1)


@cache
def snippets(split: str) -> tuple[Sample, ...]:
    """Movie snippets of a split."""
    return tuple(sample for sample in movie_snippets() if sample.split == split)


def fresh(
    llm: Path, routed: tuple[str, ...] = (), seed: int = 0
) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """The upcycled language model with a fresh tower of 192 x 4 layers over 8 x 8 patches."""
    vision = VisionConfig(dim=192, num_heads=6, num_layers=4, mlp_dim=768, image_size=SIDE, patch_size=PATCH)
    reader = AbstractorConfig(num_queries=QUERIES, num_heads=6, num_layers=2, mlp_dim=512, grid_size=SIDE // PATCH)
    model, processor = upcycle(llm, vision=vision, abstractor=reader, routed=routed, seed=seed)
    with torch.no_grad():  # an end vector as long as the words it stands among
        model.model.abstractor.end.mul_(model.model.token_embedding.weight.square().mean().sqrt())
    model.set_attn_implementation("sdpa")
    return model, processor


def begin(llm: Path, warm: Path, arm: Arm) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """An arm's model before tuning: every way a copy of the language model, tower and abstractor of the warm-up."""
    model, processor = fresh(llm, arm.routed)
    found = read_checkpoint(warm).state
    visual = {key: found[key] for key in found if key.startswith(VISUAL)}
    missing, unexpected = model.load_state_dict(visual, strict=False)
    strangers = [key for key in missing if key.startswith(VISUAL)] + unexpected
    if strangers:
        raise ValueError(f"expected the tower and abstractor of this study in {warm}, got others: {strangers[0]}")
    if (arm.image_size, arm.num_queries) != (SIDE, QUERIES):
        model = resized(model, image_size=arm.image_size, num_queries=arm.num_queries)
        model.set_attn_implementation("sdpa")
        processor = MPlugOwl2Processor.from_config(model.config, processor.tokenizer)
    return model, processor


def warm_up(llm: Path, steps: int, *, batch_size: int = 64, lr: float = 1e-3, seed: int = 0) -> Recipe:
    """Tower and abstractor alone: the mean of an image's positions moves to the embedding of its name.

    Stands for the CLIP tower and the 348 M pairs that the published model begins with; every arm begins here.
    """
    model, processor = fresh(llm, seed=seed)
    source = NamedPictures(drawings(), processor)
    names: list[list[int]] = [processor.tokenizer(" " + name)["input_ids"] for name in source.names_of_things]
    stage = _stage("warm-up", partial(towards_names, names), lambda: source, steps, batch_size, lr)
    stage = replace(stage, trainable=("model.vision.*", "model.abstractor.*"), weight_decay=0.05)
    return Recipe(lambda: model, [stage], partial(save, processor))


def tuning(
    llm: Path, warm: Path, arm: Arm, steps: int, *, batch_size: int = 16, lr: float = 5e-4, full: bool = False
) -> Recipe:
    """Joint tuning of one arm on questions about drawings and sentences.

    full: everything trains, in every arm, as in the paper; for a GPU.
    """
    model, processor = begin(llm, warm, arm)
    source = Mixture(drawings(arm.image_size), snippets("train"), processor, arm.data)
    stage = _stage("tuning", answer_loss, lambda: source, steps, batch_size, lr)
    patterns = () if full else arm.patterns
    return Recipe(lambda: model, [replace(stage, trainable=patterns)], partial(save, processor))


def answer_loss(
    model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of answers; the head reads labelled positions only.

    A batch of sentences moves nothing where only pictures' weights train: its gradients of 0 need no backward pass.
    """
    assert isinstance(model, MPlugOwl2ForConditionalGeneration)
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    reaches = "pixel_values" in batch or not all(name.startswith(VISUAL) or ".visual." in name for name, _ in trained)
    with torch.set_grad_enabled(reaches and torch.is_grad_enabled()):
        logits, labels = answer_logits(model, batch)
        loss = F.cross_entropy(logits, labels)
    if not reaches:
        loss = loss + 0.0 * sum(weight.sum() for _, weight in trained)
    return loss, {"right": (logits.detach().argmax(-1) == labels).float().mean()}


def towards_names(
    names: list[list[int]], model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of all names is it: cosine between the image's mean position and mean embeddings, and their distance."""
    assert isinstance(model, MPlugOwl2ForConditionalGeneration)
    words, middle = name_vectors(model, names)
    positions = model.model.encode_images(batch["pixel_values"])[:, :-1].float()
    logits = SHARPNESS * F.normalize(positions.mean(1) - middle, dim=-1) @ F.normalize(words - middle, dim=-1).T
    goal = words[batch["labels"]]
    distance = (positions - goal[:, None]).square().mean() / goal.square().mean()
    loss = F.cross_entropy(logits, batch["labels"]) + 0.1 * distance
    return loss, {"right": (logits.argmax(-1) == batch["labels"]).float().mean(), "distance": distance.detach()}


@torch.no_grad()
def name_vectors(model: MPlugOwl2ForConditionalGeneration, names: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Mean token embedding of every name (names, dim), and of the vocabulary (dim,)."""
    table = model.model.token_embedding.weight
    return torch.stack([table[ids].mean(0) for ids in names]), table.mean(0)


def _stage(name: str, objective: Any, source: Callable[[], Any], steps: int, batch_size: int, lr: float) -> Stage:
    return Stage(
        name=name,
        objective=objective,
        batches=source,
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 100,
        weight_decay=0.0,
        clip=1.0,
    )
