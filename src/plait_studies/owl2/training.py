"""What `plait study owl2` trains: arms of a small mPLUG-Owl2 out of a small language model, each stage a `Recipe`.

language model -> upcycled, fresh tower -> warm-up (pictures towards embeddings of their names) -> tuning (questions)

An arm's name says what is routed, what trains, on what, and how large pictures are:
"shared 96 px 16 queries image data tower trains" -> Arm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.order import Shuffled
from plait.data.pairs import augment
from plait.data.reader import Reader, as_it_is
from plait.errors import UsageError
from plait.models.auto import load as load_any
from plait.models.mplug_owl2.config import ADAPTIVE, AbstractorConfig, VisionConfig
from plait.models.mplug_owl2.conversation import IMAGE
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.models.mplug_owl2.upcycle import upcycle
from plait.models.mplug_owl2.weights import resized
from plait.recipes.mplug_owl2 import answer_logits
from plait.training.stages import Recipe, save_pair
from plait.types import Sample
from plait.weights.files import read_checkpoint
from plait_studies import training
from plait_studies.drawings import Example
from plait_studies.training import Questions, as_pixels, drawings, in_turn, normalised, review, stage, towards_words

SIDE, PATCH, QUERIES = 64, 8, 8  # of the warm-up; arms may be resized from it
TOWER = VisionConfig(dim=192, num_heads=6, num_layers=4, mlp_dim=768, image_size=SIDE, patch_size=PATCH)
PARTS = {"both": (0, 0, 0, 0, 1), "image": (0,), "text": (1,)}
"""Data -> what the steps of a turn show: 0 drawings, 1 sentences."""


@dataclass(frozen=True)
class Arm:
    """One model of the study.

    Args:
        routed: parts of the decoder with a way each.
        trains: patterns of parameters that train beside the abstractor.
        trains_vision: whether the tower trains too.
        image_size, num_queries: of the resized warm start.
        data: a key of `PARTS`.
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

ALL = (
    "adaptive", "adaptive all ways", "shared", "abstractor only", "adaptive tower trains", "shared tower trains",
    "adaptive image data", "shared image data", "shared text data", "adaptive 48 px", "adaptive 96 px",
    "adaptive 4 queries", "adaptive 16 queries",
)  # fmt: skip

_SWITCH = re.compile(
    r" (?:(?P<image_size>\d+) px|(?P<num_queries>\d+) queries|(?P<data>\w+) data|(?P<tower>tower trains))"
)


def arm_of(name: str) -> Arm:
    """The arm of a name.

    Args:
        name: a key of `DECODERS`, then in any order `N px`, `N queries`, `image data` or `text data`, `tower trains`.

    Raises:
        UsageError: for other words, for pictures that patches do not fill, for data that reach nothing that trains.

    Example:
        >>> arm_of("shared 96 px 16 queries").image_size
        96
    """
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
        if key == "tower":
            arm = replace(arm, trains_vision=True)
        else:
            arm = replace(arm, **{key: value if key == "data" else int(value)})
        rest = rest[found.end() :]
    if arm.image_size % PATCH or not arm.image_size or not arm.num_queries:
        raise UsageError(f"expected a multiple of {PATCH} px and some queries, got arm {name!r}")
    if arm.data not in PARTS:
        raise UsageError(f"expected data among {', '.join(PARTS)}, got {arm.data!r} in arm {name!r}")
    if arm.data == "text" and begin in ("adaptive", "abstractor only"):
        raise UsageError(f"expected data with images where only images train, got arm {name!r}")
    return arm


TASKS = ("name", "kind", "is_kind", "is_there", "count")
"""Questions about a drawing, and about scenes of several."""

SCENES = ("is_there", "count")
VISUAL = ("model.vision.", "model.abstractor.")


def held_out(count: int, size: int = SIDE) -> dict[str, list[Example]]:
    """Task -> questions about drawings of a style that training never shows."""
    return {task: drawings(size, 1).examples(task, "test", count) for task in TASKS}


def batch_of(
    processor: MPlugOwl2Processor,
    examples: Sequence[Example],
    sentences: Sequence[Sample] = (),
    rng: np.random.Generator | None = None,
    *,
    shown: bool = True,
) -> dict[str, Tensor]:
    """A supervised batch of questions about drawings, then about sentences.

    Args:
        processor: of the model.
        examples: questions about a drawing or a scene.
        sentences: questions about what they feel.
        rng: of augmentation, none without it.
        shown: False leaves pictures and placeholders out.

    Returns:
        input_ids, attention_mask, labels (batch, seq), and of drawings pixel_values (batch, 3, side, side).
    """
    asked = [(IMAGE * shown + e.question, e.answer) for e in examples] + [review(sample) for sample in sentences]
    turns = [[{"from": "human", "value": says}, {"from": "gpt", "value": answer}] for says, answer in asked]
    pictures = [Image.fromarray(e.frames[0]) for e in examples] if shown and examples else None
    batch = dict(processor.supervised(turns, pictures))
    if pictures and rng is not None:
        pixels = as_pixels(np.stack([e.frames[0] for e in examples]))
        scenes = torch.tensor([e.task in SCENES for e in examples])
        for chosen, strength in ((~scenes, 0.5), (scenes, 0.15)):  # small things must stay in sight
            if chosen.any():
                pixels[chosen] = augment(pixels[chosen], strength, rng)
        batch["pixel_values"] = normalised(pixels, processor.image_processor)
    return batch


def load(directory: Path) -> tuple[Any, Any]:
    """Model and processor of an arm."""
    model, processor = load_any(directory)
    model.set_attn_implementation("sdpa")
    return model, processor


def fresh(
    llm: Path, routed: tuple[str, ...] = (), seed: int = 0
) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """The upcycled language model with a fresh tower over 8 x 8 patches."""
    reader = AbstractorConfig(num_queries=QUERIES, num_heads=6, num_layers=2, mlp_dim=512, grid_size=SIDE // PATCH)
    model, processor = upcycle(llm, vision=TOWER, abstractor=reader, routed=routed, seed=seed)
    with torch.no_grad():  # an end vector as long as the words it stands among
        model.model.abstractor.end.mul_(model.model.token_embedding.weight.square().mean().sqrt())
    model.set_attn_implementation("sdpa")
    return model, processor


def begin(llm: Path, warm: Path, arm: Arm) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """An arm's model before tuning: every way a copy of the language model, tower and abstractor of the warm-up.

    Args:
        llm: directory of the language model.
        warm: model directory of the warm-up.
        arm: that is begun.

    Raises:
        ValueError: where the warm-up has another tower or abstractor.
    """
    model, processor = fresh(llm, arm.routed)
    found = read_checkpoint(warm).state
    # The warm-up's decoder is shared; only what stands before it fits every arm.
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
    """Tower and abstractor alone: an image's positions move to the embedding of its name; every arm begins here."""
    model, processor = fresh(llm, seed=seed)
    shown = drawings(SIDE, 1)
    names = sorted({row.text or "" for row in shown.rows})
    words = [processor.tokenizer(" " + name)["input_ids"] for name in names]

    def collate(numbers: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        pixels = augment(as_pixels(np.stack([np.asarray(shown.pictures[n]) for n in numbers])), 0.7, rng)
        labels = torch.tensor([[names.index(shown.rows[number].text or "")] for number in numbers])
        return {"pixel_values": normalised(pixels, processor.image_processor), "labels": labels}

    def read(model: MPlugOwl2ForConditionalGeneration, pixels: Tensor) -> Tensor:
        return model.model.encode_images(pixels)[:, :-1]  # without the end vector

    numbers = shown.numbers("train")
    source = partial(Reader, numbers, collate, as_it_is, order=InEpochs(len(numbers)))
    warmed = stage(
        "warm-up", partial(towards_words, words, read), source, steps, batch_size, lr,
        trainable=("model.vision.*", "model.abstractor.*"), weight_decay=0.05,
    )  # fmt: skip
    return Recipe(lambda: model, [warmed], partial(save_pair, processor))


class InEpochs(Shuffled):
    """The order that the study was measured with: a batch may reach from one epoch into the next."""

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Places of samples, none twice in a batch that is smaller than the data."""
        epoch, place = divmod(step * batch_size, len(self))
        turns = [np.random.default_rng((seed, turn)).permutation(len(self)) for turn in (epoch, epoch + 1)]
        return np.concatenate(turns)[place : place + batch_size].tolist()


def tuning(
    llm: Path, warm: Path, arm: Arm, steps: int, *, batch_size: int = 16, lr: float = 5e-4, full: bool = False
) -> Recipe:
    """Joint tuning of one arm on questions about drawings and sentences; a step shows one modality, as published.

    Args:
        llm, warm, arm: as in `begin`.
        steps, batch_size, lr: of the stage.
        full: everything trains, in every arm, as in the paper; for a GPU.
    """
    model, processor = begin(llm, warm, arm)
    shown, turn = drawings(arm.image_size, 1), in_turn(PARTS[arm.data])
    source = Questions(shown, TASKS, partial(batch_of, processor), training.snippets("train"), turn)
    patterns = () if full else arm.patterns
    tuned = stage("tuning", answer_loss, lambda: source, steps, batch_size, lr, trainable=patterns)
    return Recipe(lambda: model, [tuned], partial(save_pair, processor))


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
